"""A factor of losses while they are differentiated, so that small gradients do not underflow."""

from typing import Any

import jax
import jax.numpy as jnp


def times(values: jax.Array, scale: Any) -> jax.Array:
    """Losses times the scale, where there is one."""
    return values if scale is None else values * _as(scale, values)


def over(tree: Any, scale: Any) -> Any:
    """Gradients divided by the scale, where there is one."""
    if scale is None:
        return tree
    return jax.tree.map(lambda leaf: leaf / _as(scale, leaf), tree)


def _as(scale: Any, leaf: jax.Array) -> jax.Array:
    return jnp.asarray(scale, leaf.dtype)
