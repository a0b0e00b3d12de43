"""Random crops, flips, rotations, cutout and erasing, pure functions of one key per example.

With a key per example (`awp_jax.random.example_keys`) what happens to an image depends on its key
alone, not on its place in a batch, on the batch's size or on the number of devices. That holds for
jax's default generator, threefry; the `rbg` generators mix the keys of a batch under vmap.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage

from awp_jax import streams
from awp_jax.checks import choice, positive_integer
from awp_jax.random import fold_keys

# One draw of four numbers per example serves all of `augment`: switching an operation off leaves
# what the others draw as it is.
_ROW, _COLUMN, _FLIP, _ANGLE = range(4)


def augment(
    keys: jax.Array,
    images: jax.Array | np.ndarray,
    *,
    crop_padding: int = 4,
    crop_mode: Literal["reflect", "zero"] = "reflect",
    flip: bool = True,
    rotation_degrees: float = 0.0,
    rotation_interpolation: Literal["nearest", "bilinear"] = "nearest",
) -> jax.Array:
    """Randomly crop, flip and rotate each image, in this order.

    A crop pads the image on all sides and cuts the original size out of it, at an offset uniform
    over all that fit. A flip is horizontal and happens with probability 1/2. A rotation is about
    the centre, by an angle uniform in +-`rotation_degrees` (positive: counter-clockwise); what
    comes from outside the image is 0. What is switched off costs nothing. uint8 images are moved
    about as uint8, a quarter of the traffic: convert with `as_float` afterwards.

    The defaults are those of the AWP release (csdongxian/AWP) for CIFAR-10; its CIFAR-100 runs use
    `crop_mode="zero", rotation_degrees=15`, its SVHN runs no augmentation.

    Args:
        keys: typed keys `[batch]`, one per example (see
            `awp_jax.random.example_keys`).
        images: `[batch, height, width, channels]`, uint8 in 0..255 or floats in [0, 1].
        crop_padding: pixels on each side, 0 for no crop.
        crop_mode: "reflect" mirrors the image without repeating its edge, "zero" pads with 0.
        flip: whether to flip.
        rotation_degrees: largest angle in degrees, in [0, 180], 0 for no rotation.
        rotation_interpolation: "nearest" (the default of torchvision's RandomRotation) or
            "bilinear".

    Returns:
        Images of the same shape, type and range.

    Raises:
        ValueError: for other shapes, types or values, before tracing.
    """
    images = _checked(keys, images)
    _, height, width, _ = images.shape
    crop_padding = positive_integer(crop_padding, "crop_padding", minimum=0)
    choice(crop_mode, ("reflect", "zero"), "crop_mode")
    choice(rotation_interpolation, ("nearest", "bilinear"), "rotation_interpolation")
    if crop_mode == "reflect" and crop_padding >= min(height, width):
        raise ValueError(
            f"crop_padding {crop_padding} must be smaller than the image, {height} x {width}, to "
            "be filled by reflection."
        )
    if not 0 <= rotation_degrees <= 180:
        raise ValueError(f"rotation_degrees must lie in [0, 180], not {rotation_degrees!r}.")
    if not (crop_padding or flip or rotation_degrees):
        return images
    draws = _uniform(keys, 4)
    if crop_padding:
        images = _crop(draws[:, _ROW : _COLUMN + 1], images, crop_padding, crop_mode)
    if flip:
        flipped = draws[:, _FLIP] < 0.5
        images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    if rotation_degrees:
        angles = (2 * draws[:, _ANGLE] - 1) * math.radians(rotation_degrees)
        images = _rotate(angles, images, rotation_interpolation)
    return images


def cutout(keys: jax.Array, images: jax.Array | np.ndarray, size: int) -> jax.Array:
    """Set one square of each image to 0 (DeVries and Taylor, arXiv:1708.04552).

    The centre is uniform over the pixels, so that part of the square may lie outside. Draws are
    independent of those of `augment` with the same keys.

    Args:
        keys: typed keys `[batch]`, one per example.
        images: `[batch, height, width, channels]`, uint8 in 0..255 or floats in [0, 1].
        size: side of the square in pixels, 0 for none; the paper takes 16 on CIFAR-10 and 8 on
            CIFAR-100.

    Returns:
        Images of the same shape, type and range.

    Raises:
        ValueError: for other shapes, types or values, before tracing.
    """
    images = _checked(keys, images)
    size = positive_integer(size, "size", minimum=0)
    if not size:
        return images
    _, height, width, _ = images.shape

    # Folded, so that these are other draws than those of `augment`.
    draws = _uniform(fold_keys(keys, streams.AUGMENT_CUTOUT), 2)
    inside = []
    for draw, length in zip(draws.T, (height, width), strict=True):
        start = jnp.floor(draw * length).astype(jnp.int32)[:, None] - size // 2
        pixels = jnp.arange(length, dtype=jnp.int32)[None, :]
        inside.append((pixels >= start) & (pixels < start + size))
    kept = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return jnp.where(kept[..., None], images, jnp.zeros((), images.dtype))


_TRIES = 10  # rectangles that are drawn for one that lies inside


def random_erasing(
    keys: jax.Array,
    images: jax.Array | np.ndarray,
    probability: float = 0.5,
    *,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float = 0.0,
) -> jax.Array:
    """Erase a random rectangle of some images (Zhong et al., AAAI 2020, arXiv:1708.04896).

    As torchvision's RandomErasing: the area is uniform, the ratio of height to width uniform in its
    logarithm, the place uniform over those that fit; of ten rectangles the first that is smaller
    than the image on both sides counts, and where none is, the image stays. Draws are independent
    of those of `augment` and `cutout` with the same keys.

    Args:
        keys: typed keys `[batch]`, one per example.
        images: `[batch, height, width, channels]`, uint8 in 0..255 or floats in [0, 1].
        probability: of an image to be erased in, in [0, 1]; 0.5 in the paper, 0 for none.
        scale: smallest and largest area, as shares of the image's, in [0, 1].
        ratio: smallest and largest height, in widths, above 0.
        value: what is put there, in [0, 1], also for uint8.

    Returns:
        Images of the same shape, type and range.

    Raises:
        ValueError: for other shapes, types or values, before tracing.
    """
    images = _checked(keys, images)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], not {probability!r}.")
    if not (len(scale) == 2 and 0 <= scale[0] <= scale[1] <= 1):
        raise ValueError(f"scale must be two rising shares in [0, 1], not {scale!r}.")
    if not (len(ratio) == 2 and 0 < ratio[0] <= ratio[1] < math.inf):
        raise ValueError(f"ratio must be two rising numbers above 0, not {ratio!r}.")
    if not 0 <= value <= 1:
        raise ValueError(f"value must lie in [0, 1], not {value!r}.")
    if not probability:
        return images
    _, height, width, _ = images.shape
    draws = _uniform(fold_keys(keys, streams.AUGMENT_ERASING), 3 + 2 * _TRIES)
    happens, row, column = draws[:, :3].T
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:, 3 : 3 + _TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    root = jnp.exp((low + (high - low) * draws[:, 3 + _TRIES :]) / 2)
    sides = [jnp.round(side) for side in (jnp.sqrt(area) * root, jnp.sqrt(area) / root)]
    fits = (sides[0] < height) & (sides[1] < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    erased = (happens < probability) & fits.any(axis=1)
    inside = []
    for side, draw, length in zip(sides, (row, column), (height, width), strict=True):
        side = jnp.take_along_axis(side, first, axis=1)
        start = jnp.floor(draw[:, None] * (length - side + 1))
        pixels = jnp.arange(length, dtype=jnp.float32)[None, :]
        inside.append((pixels >= start) & (pixels < start + side))
    box = inside[0][:, :, None] & inside[1][:, None, :] & erased[:, None, None]
    put = round(255 * value) if images.dtype == np.uint8 else value
    return jnp.where(box[..., None], jnp.asarray(put, images.dtype), images)


def _checked(keys: jax.Array, images: jax.Array | np.ndarray) -> jax.Array:
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images must be non-empty [batch, height, width, channels], not of shape "
            f"{images.shape}."
        )
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or floating, not {images.dtype}.")
    typed = isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not typed or keys.shape != images.shape[:1]:
        raise ValueError(
            f"keys must be {images.shape[0]} typed keys, one per image (see "
            "awp_jax.random.example_keys), not "
            f"{getattr(keys, 'dtype', type(keys).__name__)} of shape {jnp.shape(keys)}."
        )
    return jnp.asarray(images)


def _uniform(keys: jax.Array, count: int) -> jax.Array:
    """float32 `[batch, count]` in [0, 1), always float32 so that the draws are the same in x64."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(keys)


def _crop(draws: jax.Array, images: jax.Array, padding: int, mode: str) -> jax.Array:
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, sides, mode="reflect" if mode == "reflect" else "constant")
    offsets = jnp.floor(draws * (2 * padding + 1)).astype(jnp.int32)

    def crop(offset: jax.Array, image: jax.Array) -> jax.Array:
        start = (offset[0], offset[1], jnp.int32(0))
        return jax.lax.dynamic_slice(image, start, images.shape[1:])

    return jax.vmap(crop)(offsets, padded)


def _rotate(angles: jax.Array, images: jax.Array, interpolation: str) -> jax.Array:
    """Rotate by `angles` in radians, `[batch]`, counter-clockwise."""
    _, height, width, _ = images.shape
    # Coordinates are float32 also for images of lower precision.
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    dtype = jnp.promote_types(images.dtype, jnp.float32) if floating else jnp.float32
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height, dtype=dtype)[:, None] - centre_y
    x = jnp.arange(width, dtype=dtype)[None, :] - centre_x
    order = 0 if interpolation == "nearest" else 1

    def rotate(angle: jax.Array, image: jax.Array) -> jax.Array:
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        # Where each pixel comes from; rows count downwards.
        source = [cosine * y + sine * x + centre_y, cosine * x - sine * y + centre_x]

        def sample(channel: jax.Array) -> jax.Array:
            return ndimage.map_coordinates(channel, source, order=order, mode="constant", cval=0)

        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    rotated = jax.vmap(rotate)(angles.astype(dtype), images)
    if floating and interpolation == "bilinear":
        rotated = jnp.clip(rotated, 0, 1)  # interpolation weights may round to a sum above 1
    return rotated.astype(images.dtype)
