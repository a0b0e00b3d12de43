"""TrivialAugment inside jit, with the arithmetic of Pillow: one random operation for each image.

Müller and Hutter, ICCV 2021, arXiv:2103.10158: the "wide" set of operations and strengths, as
torchvision's TrivialAugmentWide has it.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import streams
from awp_jax.data import _pillow
from awp_jax.random import fold_keys

LEVELS = 31
# Largest strength: slope, pixels, degrees, and what a factor differs from 1 by.
MOVES = {"shear-x": 0.99, "shear-y": 0.99, "translate-x": 32.0, "translate-y": 32.0, "rotate": 135}
FACTORS = {"brightness": 0.99, "color": 0.99, "contrast": 0.99, "sharpness": 0.99}
OTHERS = ("posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = ("identity", *MOVES, *FACTORS, *OTHERS)
SIGNED = {*MOVES, *FACTORS}


def trivialaugment(keys: jax.Array, images: jax.Array | np.ndarray) -> jax.Array:
    """Apply one operation of TrivialAugment's wide set, at a random strength, to each image.

    The operation is uniform over 14, its strength over 31 levels, its sign over both where it has
    one. Draws are independent of those of `augment`, `autoaugment` and `cutout` with the same keys;
    it follows crop and flip, and precedes cutout.

    Args:
        keys: typed keys `[batch]`, one per example.
        images: uint8 `[batch, height, width, 3]`.

    Returns:
        Images of the same shape and type; empty parts are black.

    Raises:
        ValueError: for images that are not uint8 in three channels.
    """
    _pillow.check_images(images, "TrivialAugment")
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,), jnp.float32))(
        fold_keys(keys, streams.AUGMENT_TRIVIAL)
    )
    counts = jnp.array([len(OPERATIONS), LEVELS, 2])
    operation, level, sign = jnp.floor(draws * counts[None, :]).astype(jnp.int32).T
    return apply(operation, level, sign, images)


def apply(
    operations: jax.Array, levels: jax.Array, signs: jax.Array, images: jax.Array | np.ndarray
) -> jax.Array:
    """Operations of ``OPERATIONS`` by number, at levels 0 to 30, negative where the sign is 0."""
    table = _table(*images.shape[1:3])
    rows = operations, levels, signs
    branch, place, lines = (jnp.asarray(column)[rows] for column in table)
    # Under vmap every branch is computed for every image: all moves are one of them.
    return jax.vmap(lambda code, *rest: jax.lax.switch(code, _BRANCHES, *rest))(
        branch, place, lines, jnp.asarray(images)
    )


class _Table(NamedTuple):
    """Of each operation, level and sign, ``[14, 31, 2]``: what computes it, and from what.

    Attributes:
        branch: Which of ``_BRANCHES``.
        place: The factor's place in ``_PRODUCTS``; bits to keep; or the threshold.
        lines: Pillow's fixed-point lines of a move, ``[..., 2, 3]``.
    """

    branch: np.ndarray
    place: np.ndarray
    lines: np.ndarray


@functools.lru_cache(maxsize=8)
def _table(height: int, width: int) -> _Table:
    shape = (len(OPERATIONS), LEVELS, 2)
    branch, place = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    lines = np.zeros((*shape, 2, 3), np.int32)
    for number, name in enumerate(OPERATIONS):
        branch[number] = _NAMES.index("move" if name in MOVES else name)
        for level in range(LEVELS):
            for sign in (0, 1):
                size = strength(name, level) * (1 if sign or name not in SIGNED else -1)
                if name in MOVES:
                    lines[number, level, sign] = _lines(name, size, height, width)
                # Factors are looked up by their number, all else is the strength itself.
                number_of = LEVELS - 1 + (level if sign else -level)
                place[number, level, sign] = number_of if name in FACTORS else size
    return _Table(branch, place, lines)


def strength(name: str, level: int) -> float:
    """The strength of an operation at a level from 0 to 30, without its sign."""
    if name in SIGNED:
        largest = (MOVES | FACTORS)[name]
        return float(np.linspace(0, largest, LEVELS, dtype=np.float32)[level])
    if name == "posterize":
        return 8 - round(level / ((LEVELS - 1) / 6))
    if name == "solarize":
        return float(np.linspace(255, 0, LEVELS, dtype=np.float32)[level])
    return 0.0


def _lines(name: str, size: float, height: int, width: int) -> np.ndarray:
    """``x = (a column + b row + c) / 65536``, and y alike, in which Pillow reads a moved image."""
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "shear-x":
        b = size
    elif name == "shear-y":
        d = size
    elif name == "translate-x":
        c = -int(size)
    elif name == "translate-y":
        f = -int(size)
    else:  # about the centre, in doubles: a rotation may meet the edges of pixels
        angle, x, y = -math.radians(size), width / 2, height / 2
        a = e = round(math.cos(angle), 15)
        b = round(math.sin(angle), 15)
        c, d, f = x - a * x - b * y, -b, y + b * x - e * y
    halves = [[a, b, c + a * 0.5 + b * 0.5], [d, e, f + d * 0.5 + e * 0.5]]
    return np.floor(np.array(halves) * 65536 + 0.5).astype(np.int32)


def _move(place: jax.Array, lines: jax.Array, image: jax.Array) -> jax.Array:
    del place
    height, width, _ = image.shape
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    x, y = ((a * column + b * row + c) >> 16 for a, b, c in lines)
    return _pillow.picked(x, y, image)


def _still(operation: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    return lambda place, lines, image: operation(place, image)


# 61 factors, from 0.01 to 1.99.
_AWAY = np.array([strength("color", level) for level in range(LEVELS)])
_PRODUCTS = _pillow.products(1 + np.concatenate([-_AWAY[:0:-1], _AWAY]))


def _whole(place: jax.Array) -> jax.Array:
    return place.astype(jnp.int32)


_FUNCTIONS: dict[str, Callable[..., jax.Array]] = {
    "identity": lambda place, lines, image: image,
    "move": _move,
    **{name: _still(_pillow.enhance(name, _PRODUCTS, _whole)) for name in FACTORS},
    "posterize": _still(_pillow.posterize),
    "solarize": _still(_pillow.solarize),
    "autocontrast": _still(_pillow.per_channel(_pillow.autocontrast)),
    "equalize": _still(_pillow.per_channel(_pillow.equalize)),
}
_NAMES, _BRANCHES = tuple(_FUNCTIONS), list(_FUNCTIONS.values())
