"""Norms that neither overflow nor underflow: values are scaled before they are squared."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def is_float(array: Any) -> bool:
    """Whether an adversary can move an array: tokens and other integers stay as they are."""
    return jnp.issubdtype(array.dtype, jnp.floating)


def at_least_float32(array: jax.Array) -> jax.Array:
    """Half precision as float32, in which it is summed and divided; float64 stays float64."""
    wide = jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits >= 32
    return array if wide else array.astype(jnp.float32)


def power_of_two(largest: jax.Array) -> jax.Array:
    """A power of two near ``largest``, by which division is exact; a small one for zero.

    It stays where its own reciprocal is a normal number, so that squares of what was divided by it
    can be summed: 3e38 becomes less than 4.
    """
    # The exponent of a float is in its bits. Taking it from there is four operations;
    # jnp.frexp and jnp.ldexp are a hundred, for each of all weights in every step.
    limits = jnp.finfo(largest.dtype)
    integer = jnp.dtype(f"int{limits.bits}")
    bits = jax.lax.bitcast_convert_type(largest, integer)
    unit = 1 << limits.nmant
    least, most = (
        exponent - limits.minexp + 1 for exponent in (limits.minexp + 1, limits.maxexp - 2)
    )
    mask = ((1 << limits.nexp) - 1) * unit
    exponent = jnp.clip(bits & jnp.array(mask, integer), least * unit, most * unit)
    return jax.lax.bitcast_convert_type(exponent.astype(integer), largest.dtype)


def largest(array: jax.Array, axes: Sequence[int] | None) -> jax.Array:
    """The largest absolute value over ``axes`` (``None``: all, without axes), zero for no entry."""
    return jnp.max(jnp.abs(array), axis=axes, keepdims=axes is not None, initial=0.0)


def power_sum(array: jax.Array, kind: str, axes: Sequence[int] | None) -> jax.Array:
    """The sum of absolute values (``"l1"``) or squares (``"l2"``) over ``axes``."""
    powers = jnp.abs(array) if kind == "l1" else jnp.square(array)
    return jnp.sum(powers, axis=axes, keepdims=axes is not None)


def length(total: jax.Array, kind: str) -> jax.Array:
    """The norm that belongs to a ``power_sum``."""
    return total if kind == "l1" else jnp.sqrt(total)


def reciprocal(values: jax.Array) -> jax.Array:
    """``1 / values``, and 0 where they are 0."""
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
