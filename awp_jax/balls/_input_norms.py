"""Norms and directions of inputs, one for each example, without overflow or underflow."""

import functools

import jax
import jax.numpy as jnp

from awp_jax.balls._norms import (
    at_least_float32,
    largest,
    reciprocal,
    sizes,
)
from awp_jax.typing import Inputs


def input_norms(inputs: Inputs, norm: str) -> jax.Array:
    """The norm of each example, without overflow or underflow.

    Args:
        inputs: ``[batch, ...]``, or a pytree of them: then over all leaves together.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
        ``[batch]``, in the units of ``inputs``; float32 for half precision.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import input_norms
        >>> moves = jnp.array([[3.0, -4.0]])
        >>> [float(input_norms(moves, norm)[0]) for norm in ("linf", "l2", "l1")]
        [4.0, 5.0, 7.0]
    """
    leaves = [at_least_float32(jnp.asarray(leaf)) for leaf in jax.tree.leaves(inputs)]
    size, total = measured(leaves, norm)
    return size * total


def measured(leaves: list[jax.Array], norm: str) -> tuple[jax.Array, jax.Array]:
    """Two factors of the norm of each example: a power of two, and the norm of what it leaves."""
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    if norm == "linf":  # the largest entry itself: nothing is squared that could overflow
        most = functools.reduce(jnp.maximum, [largest(leaf, (1,))[:, 0] for leaf in flat])
        return jnp.ones_like(most), most
    found = sizes(flat, norm, [(1,)] * len(flat), together=True)
    return found.power[0][:, 0], found.rest[0][:, 0]


def per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    """``[batch]`` with axes added, so that it broadcasts against ``like``."""
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def directions(norm: str, gradients: list[jax.Array]) -> list[jax.Array]:
    """Steepest ascent of length 1 in ``norm`` for each example, over all arrays together.

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        gradients: Each ``[batch, ...]``; those of integers (``float0``) stay as they are.

    Returns:
        Arrays like the gradients; zero where the gradient of an example is zero or not finite.
    """
    if norm == "linf":
        # sign(NaN) is NaN: an entry that nobody knows stays.
        return [jnp.where(jnp.isnan(g), 0, jnp.sign(g)).astype(g.dtype) for g in gradients]
    moving = [at_least_float32(g) for g in gradients if g.dtype != jax.dtypes.float0]
    size, rest = measured(moving, norm)
    known = jnp.isfinite(rest)
    if norm == "l2":
        factor = jnp.where(known, reciprocal(rest), 0.0)

        def unit(g: jax.Array) -> jax.Array:
            # Zero before the product as well: NaN times the factor 0 would stay NaN.
            wide = jnp.where(per_example(known, g), at_least_float32(g), 0.0)
            scaled = wide / per_example(size, g).astype(wide.dtype)
            return (scaled * per_example(factor, g).astype(wide.dtype)).astype(g.dtype)

        return [g if g.dtype == jax.dtypes.float0 else unit(g) for g in gradients]
    # L1: the one entry with the largest gradient, over all leaves.
    flat = [jnp.abs(g).reshape(g.shape[0], -1) for g in moving]
    ends = [leaf.shape[1] for leaf in flat]
    every = jnp.concatenate(flat, axis=1)
    best = every.argmax(axis=1)
    chosen = jax.nn.one_hot(best, every.shape[1], dtype=every.dtype)
    # The argmax of zeros is the first entry, which has no reason to move.
    chosen = jnp.where((every > 0) & known[:, None], chosen, jnp.zeros_like(chosen))
    parts, first = [], 0
    for end in ends:
        parts.append(chosen[:, first : first + end])
        first += end
    found = iter(parts)
    return [
        g
        if g.dtype == jax.dtypes.float0
        else (
            next(found).reshape(g.shape).astype(g.dtype) * jnp.where(jnp.isnan(g), 0, jnp.sign(g))
        )
        for g in gradients
    ]


def shortened(move: jax.Array, outside: jax.Array, size: jax.Array, factor: jax.Array) -> jax.Array:
    """``move / size * factor`` for the examples outside."""
    wide = at_least_float32(move)
    size, factor = (
        per_example(jnp.broadcast_to(v.astype(wide.dtype), move.shape[:1]), move)
        for v in (size, factor)
    )
    return jnp.where(per_example(outside, move), wide / size * factor, wide).astype(move.dtype)
