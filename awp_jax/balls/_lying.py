"""How radii, bounds and masks lie over inputs."""

from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.typing import Inputs


def lying(norm: str, value: jax.Array, leaf: jax.Array, name: str) -> jax.Array:
    """A radius or step size with as many axes as ``leaf``, or none (one number).

    Raises:
        ValueError: Where its shape is neither that of examples nor (for Linf) of features.
    """
    if value.ndim == 0:
        return value
    batch, features = leaf.shape[0], leaf.shape[-1]
    for_example = value.shape == (batch,)
    if norm == "linf":
        for_feature = value.shape in ((features,), (1,)) and leaf.ndim > 1
        if for_example and for_feature and batch > 1:
            ones = ", ".join(["1"] * (leaf.ndim - 1))
            raise ValueError(
                f"{name} has shape {value.shape}, which may be one for each of {batch} "
                f"examples or one for each of {features} features: give it the shape "
                f"({batch}, {ones}) or ({ones}, {features})."
            )
        if not for_example:
            return broadcastable(value, leaf, name)
    elif not for_example and value.size != 1:
        if value.shape != (batch,) + (1,) * (leaf.ndim - 1):
            raise ValueError(
                f"{name} has shape {value.shape}, but for {norm} one number, or one for "
                f"each of {batch} examples, was expected."
            )
    return value.reshape((-1,) + (1,) * (leaf.ndim - 1))


def spread(value: Any, centres: list[Any]) -> list[Any]:
    """One value for each leaf: the same for all, or the leaves of a pytree of as many."""
    leaves = jax.tree.leaves(value, is_leaf=lambda x: x is None)
    return leaves if len(leaves) == len(centres) else leaves * len(centres)


def broadcastable(value: jax.Array, leaf: jax.Array, name: str) -> jax.Array:
    """``value`` with leading axes of 1, when it lies over ``leaf``; a scalar as it is."""
    if value.ndim == 0:
        return value
    fits = value.ndim <= leaf.ndim and all(
        n in (1, m) for n, m in zip(value.shape[::-1], leaf.shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} has shape {value.shape}, which does not lie over inputs of shape {leaf.shape}."
        )
    return value.reshape((1,) * (leaf.ndim - value.ndim) + value.shape)


def clipped(point: jax.Array, low: Any, high: Any) -> jax.Array:
    low = None if low is None else low.astype(point.dtype)
    high = None if high is None else high.astype(point.dtype)
    return point if low is None and high is None else jnp.clip(point, low, high)


def has_room(gradient: jax.Array, point: jax.Array, low: Any, high: Any) -> jax.Array:
    up = jnp.bool_(True) if high is None else point < high.astype(point.dtype)
    down = jnp.bool_(True) if low is None else point > low.astype(point.dtype)
    return jnp.where(gradient > 0, up, down)


def of_rows(value: Any, centre: Inputs, rows: Any) -> Any:
    """``value`` (radii, bounds or a mask) of some of the examples, where it has one for each."""
    first = jax.tree.leaves(centre)[0]
    batch = first.shape[0]

    def cut(value: Any, leaf: Any) -> Any:
        full = jnp.ndim(value) == jnp.ndim(leaf) and jnp.shape(value)[0] == batch > 1
        alone = jnp.ndim(value) == 1 and jnp.shape(value)[0] == batch > 1
        # For Linf a vector as long as batch and features alike is refused before.
        return value[rows] if full or alone else value

    structure: Any = jax.tree.structure
    if structure(value) == structure(centre):
        return jax.tree.map(cut, value, centre)
    return jax.tree.map(lambda v: cut(v, first), value)
