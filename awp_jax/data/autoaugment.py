"""AutoAugment's CIFAR-10 policy inside jit, with the arithmetic of Pillow.

Cubuk et al., CVPR 2019, arXiv:1805.09501, table 7. Magnitudes, and the random signs, are those of
torchvision's AutoAugment: the paper's ranges in ten steps.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import streams
from awp_jax.random import fold_keys

# (operation, probability, magnitude 0..9) twice, of which one pair is drawn per image.
CIFAR10_POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate-x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear-y", 0.5, 8), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear-y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate-x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate-y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate-y", 0.9, 9), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate-y", 0.7, 9), ("autocontrast", 0.9, 0)),
)
_SIGNED = {"rotate", "translate-x", "translate-y", "shear-y"}
_SIGNED |= {"contrast", "sharpness", "color", "brightness"}
# Draws per image: which pair, then for each of its two operations whether and with which sign.
_PAIR, _FIRST, _SECOND = 0, 1, 3


def autoaugment(keys: jax.Array, images: jax.Array | np.ndarray) -> jax.Array:
    """Apply a random pair of the CIFAR-10 policy to each image.

    Draws are independent of those of `augment` and `cutout` with the same keys; AutoAugment
    follows crop and flip, and precedes cutout.

    Args:
        keys: typed keys `[batch]`, one per example.
        images: uint8 `[batch, height, width, 3]`.

    Returns:
        Images of the same shape and type; empty parts are black.

    Raises:
        ValueError: for images that are not uint8 in three channels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            "AutoAugment takes uint8 images [batch, height, width, 3], not "
            f"{images.dtype} of shape {images.shape}."
        )
    draws = jax.vmap(lambda key: jax.random.uniform(key, (5,), jnp.float32))(
        fold_keys(keys, streams.AUGMENT_AUTOAUGMENT)
    )
    pairs = jnp.floor(draws[:, _PAIR] * len(CIFAR10_POLICY)).astype(jnp.int32)
    out = jnp.asarray(images)
    for place, first in ((0, _FIRST), (1, _SECOND)):
        chosen = [pair[place] for pair in CIFAR10_POLICY]
        codes = jnp.array([_OPERATIONS.index(name) for name, _, _ in chosen])[pairs]
        probability = jnp.array([p for _, p, _ in chosen], jnp.float32)[pairs]
        both = [[_magnitude(name, m, sign) for name, _, m in chosen] for sign in (-1, 1)]
        negative = draws[:, first + 1] < 0.5
        minus, plus = (jnp.array(values, jnp.float32)[pairs] for values in both)
        size = jnp.where(negative, minus, plus)
        happens = draws[:, first] < probability
        out = jnp.where(happens[:, None, None, None], _apply(codes, size, out), out)
    return out


def _apply(codes: jax.Array, sizes: jax.Array, images: jax.Array) -> jax.Array:
    """Operation ``codes`` of strength ``sizes``, both ``[batch]``."""
    branches = [_FUNCTIONS[name] for name in _OPERATIONS]
    # Under vmap every branch is computed for every image: a few microseconds each at 32 x 32.
    return jax.vmap(lambda code, *rest: jax.lax.switch(code, branches, *rest))(codes, sizes, images)


def _magnitude(name: str, level: int, sign: int) -> float:
    """The strength of an operation: degrees, slope, share of the side, factor, bits, threshold."""
    share = level / 9
    value = {
        "rotate": 30 * share,
        "shear-y": 0.3 * share,
        "translate-x": 150 / 331 * share,
        "translate-y": 150 / 331 * share,
        "posterize": 8 - round(level / (9 / 4)),
        "solarize": 255 - 255 * level / 9,
    }.get(name, 0.9 * share)
    value = sign * value if name in _SIGNED else value
    return 1 + value if name in ("contrast", "sharpness", "color", "brightness") else value


def _affine(matrix: list[jax.Array | float], image: jax.Array) -> jax.Array:
    """Nearest neighbour of ``(a x + b y + c, d x + e y + f)``, in Pillow's 16-bit fixed point."""
    height, width, _ = image.shape

    def fixed(value):
        return jnp.floor(jnp.asarray(value, jnp.float32) * 65536 + 0.5).astype(jnp.int32)

    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    places = []
    for a, b, c in (matrix[:3], matrix[3:]):
        places.append((fixed(c + a * 0.5 + b * 0.5) + fixed(a) * x + fixed(b) * y) >> 16)
    column, row = places
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    moved = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], moved, jnp.zeros((), image.dtype))


def _rotate(degrees: jax.Array, image: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    angle = -degrees * (math.pi / 180)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return _affine(
        [cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y], image
    )


def _translate(axis: int) -> Callable:
    def translate(share: jax.Array, image: jax.Array) -> jax.Array:
        pixels = jnp.trunc(share * image.shape[1 - axis])
        across, down = (pixels, 0.0) if axis == 0 else (0.0, pixels)
        return _affine([1.0, 0.0, across, 0.0, 1.0, down], image)

    return translate


def _shear_y(slope: jax.Array, image: jax.Array) -> jax.Array:
    return _affine([1.0, 0.0, 0.0, slope, 1.0, 0.0], image)


def _grey(image: jax.Array) -> jax.Array:
    """Pillow's conversion to mode L, int32 ``[height, width]``."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


# Factor (in tenths, up to 1.9) times difference, rounded before it is added: XLA would fuse the two
# and then truncate 0.9999995 to 0 where Pillow has 1.
_PRODUCTS = (np.arange(20) / 10).astype(np.float32)[:, None] * np.arange(
    -255, 256, dtype=np.float32
)


def _blend(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """``other + factor * (image - other)``, cut to 0..255 and truncated, as Pillow in float32."""
    other, wide = other.astype(jnp.int32), image.astype(jnp.int32)
    tenths = jnp.round(factor * 10).astype(jnp.int32)
    product = jnp.asarray(_PRODUCTS)[tenths, wide - other + 255]
    return jnp.clip(other.astype(jnp.float32) + product, 0, 255).astype(jnp.uint8)


def _color(factor, image):
    return _blend(_grey(image)[..., None], image, factor)


def _brightness(factor, image):
    return _blend(jnp.zeros_like(image), image, factor)


def _contrast(factor, image):
    grey = _grey(image)
    total, count = grey.sum(), grey.size
    return _blend((2 * total + count) // (2 * count), image, factor)  # the mean, rounded


def _sharpness(factor, image):
    wide = image.astype(jnp.int32)
    height, width, _ = image.shape
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = (2 * around + 13) // 26  # the kernel sums to 13; the border stays as it is
    smooth = wide.at[1 : height - 1, 1 : width - 1].set(smooth)
    return _blend(smooth, image, factor)


def _per_channel(function: Callable) -> Callable:
    """``channel int32 [height, width] -> table [256]``, looked up."""

    def apply(size, image):
        del size

        def one(channel):
            return function(channel)[channel]

        wide = image.astype(jnp.int32)
        return jax.vmap(one, in_axes=-1, out_axes=-1)(wide).astype(jnp.uint8)

    return apply


def _autocontrast(channel):
    low, high = channel.min(), channel.max()
    levels = jnp.arange(256)
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), levels)


def _equalize(channel):
    levels = jnp.arange(256)
    below = jnp.searchsorted(jnp.sort(channel.ravel()), levels)  # pixels darker than each level
    step = below[channel.max()] // 255
    table = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(table, 0, 255), levels)


def _posterize(bits, image):
    dropped = (2 ** (8 - bits)).astype(jnp.int32)
    return (image.astype(jnp.int32) // dropped * dropped).astype(jnp.uint8)


def _solarize(threshold, image):
    return jnp.where(image < threshold, image, 255 - image)


def _invert(size, image):
    del size
    return 255 - image


_FUNCTIONS: dict[str, Callable] = {
    "rotate": _rotate,
    "translate-x": _translate(0),
    "translate-y": _translate(1),
    "shear-y": _shear_y,
    "color": _color,
    "brightness": _brightness,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "autocontrast": _per_channel(_autocontrast),
    "equalize": _per_channel(_equalize),
    "posterize": _posterize,
    "solarize": _solarize,
    "invert": _invert,
}
_OPERATIONS = tuple(_FUNCTIONS)
