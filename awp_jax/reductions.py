"""Sums as a GPU computes them well: of several arrays at once, and in parts that keep it busy."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from awp_jax.explicit import explicit_mesh

PARTS = 256  # most that an array is taken in: as many as a GPU has processors to keep busy

_SPLIT = contextvars.ContextVar("split", default=False)


@contextlib.contextmanager
def of_split_weights() -> Iterator[None]:
    """Traced inside, sums of weights keep their axes: those of many devices would move."""
    token = _SPLIT.set(True)
    try:
        yield
    finally:
        _SPLIT.reset(token)


def keeps_axes(arrays: Any) -> bool:
    """Whether ``arrays`` may be split among devices, so that they are summed as they are."""
    return _SPLIT.get() or explicit_mesh(arrays) is not None


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
