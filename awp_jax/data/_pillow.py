"""Operations on uint8 images inside jit, with the arithmetic of Pillow: AutoAugment's and others'.

Each takes its strength and one image, uint8 ``[height, width, 3]``.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def check_images(images: jax.Array | np.ndarray, who: str) -> None:
    """Raises ``ValueError`` for a batch that is not of uint8 images in three channels."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"{who} takes uint8 images [batch, height, width, 3], not "
            f"{images.dtype} of shape {images.shape}."
        )


def affine(matrix: list[jax.Array | float], image: jax.Array) -> jax.Array:
    """Nearest neighbour of ``(a x + b y + c, d x + e y + f)``, in Pillow's 16-bit fixed point."""
    height, width, _ = image.shape

    def fixed(value):
        return jnp.floor(jnp.asarray(value, jnp.float32) * 65536 + 0.5).astype(jnp.int32)

    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    places = []
    for a, b, c in (matrix[:3], matrix[3:]):
        places.append((fixed(c + a * 0.5 + b * 0.5) + fixed(a) * x + fixed(b) * y) >> 16)
    column, row = places
    return picked(column, row, image)


def picked(column: jax.Array, row: jax.Array, image: jax.Array) -> jax.Array:
    """The pixels at these places, int32 ``[height, width]`` each; black outside."""
    height, width, _ = image.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    moved = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], moved, jnp.zeros((), image.dtype))


def rotate(degrees: jax.Array, image: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    angle = -degrees * (math.pi / 180)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return affine(
        [cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y], image
    )


def translate(axis: int) -> Callable:
    def translate(share: jax.Array, image: jax.Array) -> jax.Array:
        pixels = jnp.trunc(share * image.shape[1 - axis])
        across, down = (pixels, 0.0) if axis == 0 else (0.0, pixels)
        return affine([1.0, 0.0, across, 0.0, 1.0, down], image)

    return translate


def shear_y(slope: jax.Array, image: jax.Array) -> jax.Array:
    return affine([1.0, 0.0, 0.0, slope, 1.0, 0.0], image)


def grey(image: jax.Array) -> jax.Array:
    """Pillow's conversion to mode L, int32 ``[height, width]``."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


# Rounded before it is added: XLA would fuse the two and then truncate 0.9999995 to 0 where Pillow
# has 1.
def products(factors: np.ndarray) -> np.ndarray:
    """Factor times difference, ``[factors, 511]`` for differences of -255 to 255, in float32."""
    return factors.astype(np.float32)[:, None] * np.arange(-255, 256, dtype=np.float32)


def enhance(name: str, table: np.ndarray, place: Callable[[jax.Array], jax.Array]) -> Callable:
    """``(factor, image) -> image``: Pillow's enhancement of this name.

    Args:
        name: ``"color"``, ``"brightness"``, ``"contrast"`` or ``"sharpness"``.
        table: ``products`` of the factors there are.
        place: Where in it a factor is.
    """
    without = _WITHOUT[name]

    def apply(factor: jax.Array, image: jax.Array) -> jax.Array:
        # other + factor * (image - other), cut to 0..255 and truncated, as Pillow in float32.
        other, wide = without(image).astype(jnp.int32), image.astype(jnp.int32)
        product = jnp.asarray(table)[place(factor), wide - other + 255]
        return jnp.clip(other.astype(jnp.float32) + product, 0, 255).astype(jnp.uint8)

    return apply


def _without_color(image):
    return grey(image)[..., None]


def _without_contrast(image):
    values = grey(image)
    total, count = values.sum(), values.size
    return (2 * total + count) // (2 * count)  # the mean, rounded


def _without_sharpness(image):
    wide = image.astype(jnp.int32)
    height, width, _ = image.shape
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = (2 * around + 13) // 26  # the kernel sums to 13; the border stays as it is
    return wide.at[1 : height - 1, 1 : width - 1].set(smooth)


# What a factor of 0 leaves of an image.
_WITHOUT: dict[str, Callable[[jax.Array], jax.Array]] = {
    "color": _without_color,
    "brightness": jnp.zeros_like,
    "contrast": _without_contrast,
    "sharpness": _without_sharpness,
}


def per_channel(function: Callable) -> Callable:
    """``channel int32 [height, width] -> table [256]``, looked up."""

    def apply(size, image):
        del size

        def one(channel):
            return function(channel)[channel]

        wide = image.astype(jnp.int32)
        return jax.vmap(one, in_axes=-1, out_axes=-1)(wide).astype(jnp.uint8)

    return apply


def autocontrast(channel):
    low, high = channel.min(), channel.max()
    levels = jnp.arange(256)
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), levels)


def equalize(channel):
    levels = jnp.arange(256)
    below = jnp.searchsorted(jnp.sort(channel.ravel()), levels)  # pixels darker than each level
    step = below[channel.max()] // 255
    table = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(table, 0, 255), levels)


def posterize(bits, image):
    dropped = (2 ** (8 - bits)).astype(jnp.int32)
    return (image.astype(jnp.int32) // dropped * dropped).astype(jnp.uint8)


def solarize(threshold, image):
    return jnp.where(image < threshold, image, 255 - image)


def invert(size, image):
    del size
    return 255 - image
