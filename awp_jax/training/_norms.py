"""Norms of several trees of weights, taken together."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from awp_jax.reductions import keeps_axes, parts_of, sums

_SMALL = 1 << 14  # leaves below are joined to one vector


def norms(*trees: Any) -> tuple[jax.Array, ...]:
    """The Euclidean norm of each tree.

    On a GPU by one reduction for each large leaf, which reads that leaf of all trees, in place of
    two for each leaf of each tree: of a residual network some 50 kernels in place of 300.

    Args:
        *trees: Of the same structure and shapes, floating leaves.

    Returns:
        A scalar for each, to rounding ``optax.tree.norm`` of it, and where launches cost nothing
        (CPU, TPU) that itself.
    """
    if keeps_axes(trees):
        return _apart(*trees)
    return lax.platform_dependent(*trees, cpu=_apart, tpu=_apart, default=_together)


def _apart(*trees: Any) -> tuple[jax.Array, ...]:
    return tuple(optax.tree.norm(tree) for tree in trees)


def _together(*trees: Any) -> tuple[jax.Array, ...]:
    leaves = list(zip(*map(jax.tree.leaves, trees), strict=True))
    small = [group for group in leaves if group[0].size < _SMALL]
    large = [group for group in leaves if group[0].size >= _SMALL]
    partial = [_partial(group) for group in large]
    if small:
        joined = [
            jnp.concatenate([jnp.ravel(leaf) for leaf in column])
            for column in zip(*small, strict=True)
        ]
        partial.append([jnp.square(vector) for vector in joined])
    if not partial:
        return tuple(jnp.zeros(()) for _ in trees)
    rows = [jnp.concatenate(column) for column in zip(*partial, strict=True)]
    return tuple(jnp.sqrt(jnp.stack(sums(rows, 0))))


def _partial(group: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Sums of squares ``[parts]`` of one leaf of every tree."""
    parts = parts_of(group[0].size)
    return sums([jnp.square(leaf.reshape(parts, -1)) for leaf in group], 1)
