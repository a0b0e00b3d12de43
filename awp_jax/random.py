"""Random keys: one typed key in, folded by global example index.

Every draw for an example comes from a key of its own, so results depend neither on how examples
are cut into batches nor on how many devices there are.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.typing import PyTree


def check_key(key: Any) -> None:
    """Raises ``ValueError`` unless ``key`` is a typed key (``jax.random.key(seed)``)."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        swapped = getattr(key, "ndim", 0) > 1
        order = " (the order is attack(logits_fn, key, images, labels))" if swapped else ""
        raise ValueError(
            f"key is {type(key).__name__}, but a typed key was expected: "
            f"jax.random.key(seed){order}."
        )


def example_keys(key: jax.Array, batch: int, first: int | jax.Array = 0) -> jax.Array:
    """One key per example.

    Args:
        key: A typed key, or already one key per example, ``[batch]`` (returned as it is).
        batch: Number of examples.
        first: Global index of the first example.

    Returns:
        Typed keys ``[batch]``; the key of global example ``i`` is ``fold_in(key, i)``. Those of
        ``rbg`` and ``unsafe_rbg``, whose draws under ``vmap`` depend on the whole batch, become
        ``threefry2x32`` keys, so that no result depends on batching.

    Raises:
        ValueError: For a raw ``uint32`` key or a number of keys that is not ``batch``.

    Example:
        >>> import jax
        >>> from awp_jax.random import example_keys
        >>> keys = example_keys(jax.random.key(0), 4)
        >>> bool((keys[2:] == example_keys(jax.random.key(0), 2, first=2)).all())
        True
    """
    check_key(key)
    key = _drawn_one_by_one(key)
    if key.ndim == 0:
        return _folded(key, first, batch)
    if key.shape != (batch,):
        raise ValueError(
            f"key has shape {key.shape}, but one key, or {batch} of them, was expected."
        )
    return key


@functools.partial(jax.jit, static_argnames="batch")
def _folded(key: jax.Array, first: int | jax.Array, batch: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(batch))


def _drawn_one_by_one(key: jax.Array) -> jax.Array:
    """``key``, or threefry keys from the first half of RBG ones, each of which is two of those."""
    if "rbg" not in str(jax.random.key_impl(key)):
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl="threefry2x32")


def keys_at(key: jax.Array, places: jax.Array) -> jax.Array:
    """The keys of the examples at these places of a batch, int ``[n]``; see ``example_keys``."""
    check_key(key)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(_drawn_one_by_one(key), places)


def fold_keys(keys: jax.Array, data: int | jax.Array) -> jax.Array:
    """Folds the same ``data`` (a step or a restart) into every key of ``[batch]``."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def leaf_keys(key: jax.Array, tree: PyTree) -> Any:
    """One key per leaf of ``tree``, in the tree's structure.

    Example:
        >>> import jax
        >>> from awp_jax.random import leaf_keys
        >>> sorted(leaf_keys(jax.random.key(0), {"kernel": 1.0, "bias": 2.0}))
        ['bias', 'kernel']
    """
    check_key(key)
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure, list(jax.random.split(key, max(len(leaves), 1)))[: len(leaves)]
    )
