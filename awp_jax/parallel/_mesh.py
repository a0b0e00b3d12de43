"""The mesh, and which of its devices hold what."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the axis ``"data"`` over the devices of all processes.

    Args:
        devices: The first so many; ``None`` for all, or for the one that ``jax_default_device``
            names where somebody has chosen one.

    Returns:
        The mesh.

    Raises:
        ValueError: For more devices than there are, or for a part of them in a run of several
            processes.
    """
    there = jax.devices()
    chosen = getattr(jax.config, "jax_default_device", None)
    if devices is None and isinstance(chosen, jax.Device) and jax.process_count() == 1:
        there = [chosen]
    if devices is None:
        devices = len(there)
    if not 1 <= devices <= len(there):
        raise ValueError(
            f"devices is {devices}, but a number from 1 to {len(there)} was expected: so many "
            f"{there[0].platform} devices are there."
        )
    if jax.process_count() > 1 and devices != len(there):
        raise ValueError(
            f"devices is {devices}, but a run of {jax.process_count()} processes uses all "
            f"{len(there)} of theirs."
        )
    return Mesh(np.array(there[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Split along the leading axis; replicated where ``batch`` does not divide.

    Evaluation pads its batches to a multiple of the devices, and training pads the last batch of an
    epoch to the size of the others, where ``Experiment.padded`` allows it. Where not, each device
    computes all of that batch, at the cost of at most one step.
    """
    return NamedSharding(mesh, P(AXIS) if batch % mesh.size == 0 else P())


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh with a ``"data"`` axis that the arrays of ``tree`` lie on, if they lie on one."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and AXIS in sharding.mesh.axis_names:
            mesh = sharding.mesh
            return mesh if isinstance(mesh, Mesh) else None
    return None


def shards(model: Any) -> int:
    """Among how many devices batches for ``model`` are split: pad them to a multiple of it.

    Args:
        model: A pytree, such as the logits function of a classifier, whose parameters may lie on
            a mesh.
    """
    mesh = mesh_of(model)
    return 1 if mesh is None else mesh.size


def place(
    sharding: NamedSharding, shape: tuple[int, ...], rows: Callable[[slice], np.ndarray]
) -> jax.Array:
    """A global array of which every process looks at what its own devices hold, and no more.

    Args:
        sharding: Split along the leading axis, or replicated.
        shape: Of the whole array.
        rows: Called with a slice of the leading axis, once per device of this process.
    """
    return jax.make_array_from_callback(
        shape, sharding, lambda index: rows(index[0] if index else slice(None))
    )


def follow(model: Any, arrays: Iterable[Any]) -> tuple[Any, ...]:
    """Batches put where the parameters of ``model`` are, split along the ``"data"`` axis.

    With several processes all of them call this with the same arrays.

    Args:
        model: As in ``shards``.
        arrays: Arrays ``[batch, ...]`` of one batch size, or typed keys ``[batch]``.

    Returns:
        The arrays in their order; as they came when the model lies on no mesh, or on one device.
    """
    arrays = tuple(arrays)
    mesh = mesh_of(model)
    if mesh is None or mesh.size == 1:
        return arrays
    return tuple(_split(mesh, array) for array in arrays)


def _split(mesh: Mesh, array: Any) -> jax.Array:
    sharding = batch_sharding(mesh, array.shape[0])
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _split(mesh, jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    whole = to_host(array)
    return place(sharding, whole.shape, whole.__getitem__)


def to_host(tree: Any) -> Any:
    """NumPy arrays, whole in every process, of arrays that may be split among processes.

    All processes must call this in the same order.

    Args:
        tree: Any pytree of arrays.
    """

    def whole(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)
