"""Sums as a GPU computes them well: of several arrays at once, and in parts that keep it busy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PARTS = 256  # most that an array is taken in: as many as a GPU has processors to keep busy


def parts_of(count: int, least: int = 1) -> int:
    """Into how many equal parts to take so many numbers.

    Args:
        count: How many there are.
        least: In a part, where there are as many.

    Returns:
        A power of two up to ``PARTS`` that divides ``count``.
    """
    parts = PARTS
    while parts > 1 and (count % parts or count // parts < least):
        parts //= 2
    return parts


def sums(arrays: Sequence[jax.Array], axis: int) -> list[jax.Array]:
    """The sums of arrays of one shape over an axis: one reduction with a result for each."""
    zeros = [jnp.zeros((), array.dtype) for array in arrays]

    def add(x: Any, y: Any) -> Any:
        return [a + b for a, b in zip(x, y, strict=True)]

    return lax.reduce(list(arrays), zeros, add, (axis,))
