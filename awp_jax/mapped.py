"""Means, gradients and positions under ``jax.pmap`` and ``jax.shard_map``.

Each takes the name of the mapped axis, or ``None`` where the batch is whole, and is then idle.
"""

from typing import Any

import jax


def vary(tree: Any, axis_name: str | None) -> Any:
    """Marks replicated arrays as varying over a mapped axis.

    Under ``shard_map``, differentiating with respect to replicated parameters sums over devices on
    its own, and a mean afterwards would leave that sum. Marked first, each device has the gradient
    of its own part, and the mean is left to ``mean``, under ``pmap`` as well.
    """
    # An axis of vmap is no mesh axis, and knows no such marking.
    if axis_name is None or axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), tree)


def varies_over(leaf: Any) -> tuple[str, ...]:
    """The mapped axes over which ``shard_map`` knows an array to differ from device to device."""
    kind = jax.typeof(leaf)
    known = getattr(kind, "manual_axis_type", None)  # before jax 0.10 the type itself had them
    return tuple(sorted(getattr(kind, "vma", ()) if known is None else known.varying))


def names_of(axes: Any) -> tuple[str, ...]:
    """The names of mapped axes, of which one, several or none may be given."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def everywhere(flag: jax.Array, axes: Any) -> jax.Array:
    """Whether a flag holds on all devices of mapped axes, such as those of split weights."""
    names = names_of(axes)
    varying = varies_over(flag)
    if varying:  # what is the same on all devices has no minimum over them
        names = tuple(name for name in names if name in varying)
    return jax.lax.pmin(flag.astype("int32"), names) > 0 if names else flag


def mean(tree: Any, axis_name: str | None) -> Any:
    """The mean over a mapped axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def devices(axis_name: str | None) -> int:
    """Into how many parts the batch is split."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def first_example(batch: int, axis_name: str | None) -> int | jax.Array:
    """Index in the global batch of the first of this device's ``batch`` examples."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
