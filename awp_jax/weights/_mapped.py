"""Gradients under pmap and shard_map."""

from typing import Any

import jax


def vary(tree: Any, axis_name: str | None) -> Any:
    """Marks replicated arrays as varying over a mapped axis, where there is one."""
    # Under shard_map, differentiating with respect to replicated parameters sums over devices
    # on its own; marking them as varying first leaves the mean to us, under pmap as well.
    # An axis of vmap is no mesh axis, and knows no such marking.
    if axis_name is None or axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), tree)


def mean(tree: Any, axis_name: str | None) -> Any:
    """The mean over a mapped axis, where there is one."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
