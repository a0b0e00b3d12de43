"""Random directions of inputs, one for each example."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.balls._norms import is_float
from awp_jax.random import example_keys, fold_keys
from awp_jax.typing import Inputs, Key


def leaf_keys_of(keys: Key, leaves: list[Any]) -> list[jax.Array]:
    """Keys ``[batch]`` for each array: one array draws from the key itself, several from their own.

    Args:
        keys: One typed key, or one for each example.
        leaves: The arrays ``[batch, ...]``.
    """
    keys = example_keys(keys, leaves[0].shape[0])
    return [keys] if len(leaves) == 1 else [fold_keys(keys, i) for i in range(len(leaves))]


def noise_like(keys: Key, images: Inputs, norm: str) -> Any:
    """A random direction for each example: U(-1, 1) for Linf, else N(0, 1).

    Args:
        keys: One typed key, or one for each example.
        images: ``[batch, ...]``, or a pytree of them; integers stay as they are.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
    """
    draw = _uniform if norm == "linf" else jax.random.normal
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, images))

    def one(key: Key, leaf: jax.Array) -> jax.Array:
        if not is_float(leaf):
            return leaf
        # By key, not one draw of the whole shape: an example's noise is the same in any batch.
        return jax.vmap(functools.partial(draw, shape=leaf.shape[1:], dtype=leaf.dtype))(key)

    drawn = [one(k, leaf) for k, leaf in zip(leaf_keys_of(keys, leaves), leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _uniform(key: Key, shape: tuple[Any, ...], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
