"""The mesh, and which of its devices hold what."""

import fnmatch
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS, FSDP = "data", "fsdp"
ONLY_DATA = "data:-1"
# Smaller arrays lie whole on every device: a message costs more than they do.
_LEAST = 1 << 12


def axes_of(shape: str) -> dict[str, int]:
    """The axes of a mesh, and how many devices each has: ``{"data": 2, "fsdp": 4}``.

    Args:
        shape: ``"data:2,fsdp:4"``; -1 for what is left.

    Raises:
        ValueError: In one sentence, for other names, or numbers that are none.
    """
    found: dict[str, int] = {}
    for part in shape.split(","):
        name, _, count = part.strip().partition(":")
        if name not in (AXIS, FSDP) or name in found:
            raise ValueError(
                f"parallel.mesh is {shape!r}, which names the axis {name!r}, but data and fsdp, "
                "each once, were expected, such as data:2,fsdp:4."
            )
        if not count.strip().lstrip("-").isdigit() or (int(count) < 1 and int(count) != -1):
            raise ValueError(
                f"parallel.mesh is {shape!r}, but a number of devices, or -1 for what is left, was "
                f"expected behind {name!r}, such as data:2,fsdp:4."
            )
        found[name] = int(count)
    if AXIS not in found or list(found.values()).count(-1) > 1:
        raise ValueError(
            f"parallel.mesh is {shape!r}, but an axis data, and -1 once at most, were expected, "
            "such as data:2,fsdp:-1."
        )
    return found


def sizes_of(shape: str, devices: int) -> dict[str, int]:
    """The axes of a mesh of so many devices, which need not be there.

    Args:
        shape: See ``axes_of``.
        devices: How many.

    Raises:
        ValueError: In one sentence, for axes that do not come to their number.
    """
    axes = axes_of(shape)
    known = math.prod(count for count in axes.values() if count > 0)
    free = -1 in axes.values()
    if devices % known or (not free and known != devices):
        raise ValueError(
            f"parallel.mesh is {shape!r}, which is made of {'a multiple of ' if free else ''}"
            f"{known} devices, but {devices} are there."
        )
    return {name: count if count > 0 else devices // known for name, count in axes.items()}


def data_mesh(devices: int | None = None, shape: str = ONLY_DATA) -> Mesh:
    """A mesh with the axis ``"data"`` over the devices of all processes.

    Args:
        devices: The first so many; ``None`` for all, or for the one that ``jax_default_device``
            names where somebody has chosen one.
        shape: See ``axes_of``; along ``"fsdp"`` the weights are split (``state_sharding``), and
            batches along both.

    Returns:
        The mesh.

    Raises:
        ValueError: For more devices than there are, a part of them in a run of several processes,
            or axes that do not come to their number.
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
    axes = sizes_of(shape, devices)
    places = np.array(there[:devices]).reshape(list(axes.values()))
    return Mesh(places, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Split along the leading axis; replicated where ``batch`` does not divide.

    Evaluation pads its batches to a multiple of the devices, and training pads the last batch of an
    epoch to the size of the others, where ``Experiment.padded`` allows it. Where not, each device
    computes all of that batch, at the cost of at most one step.
    """
    return NamedSharding(mesh, P(batch_axes(mesh)) if batch % mesh.size == 0 else P())


def batch_axes(mesh: Mesh) -> Any:
    """Over which axes of the mesh a batch is split: over all."""
    return mesh.axis_names[0] if len(mesh.axis_names) == 1 else tuple(mesh.axis_names)


def splits_weights(mesh: Mesh) -> bool:
    """Whether the weights lie in parts on the devices of this mesh."""
    return mesh.shape.get(FSDP, 1) > 1


def state_sharding(mesh: Mesh, tree: Any, rules: str = "") -> Any:
    """Where the arrays of a training state lie: whole, or in parts along ``"fsdp"``.

    The largest axis that divides by the devices of ``"fsdp"`` is split, the last one of those of
    one size: of weights, and so of the optimiser's moments, averages and displacements. Arrays of
    fewer than 4096 numbers are whole on every device.

    Args:
        mesh: From ``data_mesh``.
        tree: Arrays, or their shapes.
        rules: Other axes, see ``rules_of``.

    Returns:
        A ``NamedSharding`` for each.
    """

    def place(leaf: Any, axis: int) -> NamedSharding:
        return replicated(mesh) if axis < 0 else NamedSharding(mesh, P(*[None] * axis, FSDP))

    return jax.tree.map(place, tree, split_axes(tree, mesh.shape.get(FSDP, 1), rules))


def split_axes(tree: Any, count: int, rules: str = "") -> Any:
    """Which axis of each array ``count`` devices share, see ``state_sharding``; -1 for none."""
    known = rules_of(rules)

    def axis(path: Any, leaf: Any) -> int:
        if count == 1:
            return -1
        for pattern, chosen in known:
            if _matches(pattern, path):
                fits = chosen < len(leaf.shape) and leaf.shape[chosen] % count == 0
                return chosen if fits else -1
        return _largest_axis(leaf.shape, count)

    return jax.tree_util.tree_map_with_path(axis, tree)


def rules_of(rules: str) -> list[tuple[str, int]]:
    """Which arrays are split along another axis than the largest, the first that fits counting.

    Args:
        rules: ``"linear.kernel:0,*embed*:none"``: patterns (``fnmatch``) of the path of an array,
            or of its end, so that a rule for a weight holds for its moments and averages; and the
            axis, from 0, or none for an array that stays whole.

    Returns:
        Patterns and axes; -1 for none.

    Raises:
        ValueError: In one sentence, for what is no rule.
    """
    found = []
    for rule in filter(None, map(str.strip, rules.split(","))):
        pattern, _, axis = rule.rpartition(":")
        if not pattern or not (axis == "none" or axis.isdecimal()):
            raise ValueError(
                f"parallel.rules has {rule!r}, but a path and an axis, from 0, or none, were "
                "expected, such as linear.kernel:0 or *embed*:none."
            )
        found.append((pattern.replace("/", "."), -1 if axis == "none" else int(axis)))
    return found


def check_rules(params: Any, count: int, rules: str) -> None:
    """Raises ``ValueError`` where a rule fits no weight, or an axis does not divide.

    Args:
        params: Weights, or their shapes.
        count: Devices that share each.
        rules: See ``rules_of``.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for pattern, axis in rules_of(rules):
        fitting = [(path, leaf.shape) for path, leaf in leaves if _matches(pattern, path)]
        if not fitting:
            first = _dotted(max(leaves, key=lambda item: item[1].size)[0])
            raise ValueError(
                f"parallel.rules names {pattern!r}, but no weight of the model is called so; one "
                f"is called {first!r}."
            )
        for path, shape in fitting:
            if axis >= len(shape) or (axis >= 0 and shape[axis] % count):
                raise ValueError(
                    f"parallel.rules splits axis {axis} of {_dotted(path)}, of shape {shape}, "
                    f"among {count} devices, which do not divide it."
                )


def _matches(pattern: str, path: Any) -> bool:
    name = _dotted(path)
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _largest_axis(shape: tuple[int, ...], count: int) -> int:
    dividing = [axis for axis, size in enumerate(shape) if size % count == 0]
    if math.prod(shape) < _LEAST:
        return -1
    return max(dividing, key=lambda axis: (shape[axis], axis), default=-1)


def gathered(mesh: Mesh, tree: Any) -> Any:
    """Arrays whole on every device, where the weights of this mesh lie in parts."""
    if not splits_weights(mesh):
        return tree
    # Compiled: a process cannot put elsewhere what it holds only in part.
    return jax.jit(_as_it_is, out_shardings=replicated(mesh))(tree)


def _as_it_is(tree: Any) -> Any:
    return tree


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
