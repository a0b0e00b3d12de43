"""Common corruptions of images (Hendrycks and Dietterich, ICLR 2019): those with a closed form.

Ten of the corruptions of CIFAR-10-C and ImageNet-C, computed anew and not read from their files,
with the severities of the released ``make_cifar_c.py`` up to 64 x 64 pixels and of
``make_imagenet_c.py`` above. Left out are weather, motion and the blurs that need pictures or
libraries of their own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from awp_jax.checks import choice, positive_integer
from awp_jax.extras import needed_by

SEVERITIES = (1, 2, 3, 4, 5)
_SMALL = 64  # the longer side of images that CIFAR-10-C's severities are for

# By name the strengths of the five severities, of small and of large images.
_STRENGTHS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian-noise": ((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse-noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle-noise": ((0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian-blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": (
        ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
        ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
    ),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
CORRUPTIONS: tuple[str, ...] = tuple(_STRENGTHS)


def corrupt(images: np.ndarray, name: str, severity: int, *, seed: int = 0) -> np.ndarray:
    """Images with a common corruption.

    Args:
        images: uint8 ``[n, height, width, channels]`` with 1 or 3 channels.
        name: One of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: Of the noise, with the place of each image: images keep theirs in a longer array.

    Returns:
        uint8 of the same shape, cut off as the released files are.

    Raises:
        ValueError: For an unknown name, another severity, other images, or "saturate" of grey ones.
        MissingExtraError: For "pixelate" and "jpeg" where Pillow is not installed.

    Example:
        >>> import numpy as np
        >>> from awp_jax.data import corrupt
        >>> images = np.full((1, 8, 8, 3), 128, np.uint8)
        >>> int(corrupt(images, "brightness", 3)[0, 0, 0, 0])  # 128 / 255 + 0.15
        166
    """
    choice(name, CORRUPTIONS, "corruption")
    if positive_integer(severity, "severity") > 5:
        raise ValueError(f"severity is {severity}, but an integer from 1 to 5 was expected.")
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}, but uint8 [n, height, width, 1 or 3] "
            "were expected."
        )
    if name == "saturate" and images.shape[-1] != 3:
        raise ValueError("saturate changes colours, but the images have one channel.")
    large = max(images.shape[1:3]) > _SMALL
    strength = _STRENGTHS[name][large][severity - 1]
    if name in _BY_PILLOW:
        with needed_by(f"The corruption {name}"):
            import PIL.Image
        change = _BY_PILLOW[name]
        return np.stack([change(PIL.Image, image, strength) for image in images])
    made = np.empty_like(images)
    for place, image in enumerate(images):
        random = np.random.default_rng([seed, CORRUPTIONS.index(name), place])
        changed = _BY_NUMPY[name](image / 255.0, strength, random)
        made[place] = (np.clip(changed, 0, 1) * 255).astype(np.uint8)
    return made


def _impulses(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    hit, salt = random.random(x.shape) <= share, random.random(x.shape) <= 0.5
    return np.where(hit, salt.astype(x.dtype), x)


def _blur(x: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    # As skimage.filters.gaussian: edges repeated, cut off at four deviations.
    return ndimage.gaussian_filter(x, (deviation, deviation, 0), mode="nearest", truncate=4.0)


def _brightness(x: np.ndarray, more: float, random: np.random.Generator) -> np.ndarray:
    # The value of HSV is the largest channel; hue and saturation stay where all grow alike.
    value = x.max(-1, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _contrast(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * share + mean


def _saturate(
    x: np.ndarray, strength: tuple[float, float], random: np.random.Generator
) -> np.ndarray:
    value, least = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    saturation = (value - least) / np.where(value > 0, value, 1)
    new = np.clip(saturation * strength[0] + strength[1], 0, 1)
    # What is grey has hue 0, which is red.
    red = value * (1 - new * np.array([0.0, 1.0, 1.0]))
    scaled = value - (value - x) * new / np.where(saturation > 0, saturation, 1)
    return np.where(saturation > 0, scaled, red)


def _pixelate(pillow: Any, image: np.ndarray, share: float) -> np.ndarray:
    picture = pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    width, height = picture.size
    small = picture.resize((int(width * share), int(height * share)), pillow.Resampling.BOX)
    return np.asarray(small.resize((width, height), pillow.Resampling.BOX)).reshape(image.shape)


def _jpeg(pillow: Any, image: np.ndarray, quality: int) -> np.ndarray:
    picture = pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return np.asarray(pillow.open(file)).reshape(image.shape)


_BY_NUMPY: dict[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = {
    "gaussian-noise": lambda x, size, random: x + size * random.standard_normal(x.shape),
    "shot-noise": lambda x, counts, random: random.poisson(x * counts) / counts,
    "impulse-noise": _impulses,
    "speckle-noise": lambda x, size, random: x + x * size * random.standard_normal(x.shape),
    "gaussian-blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
}
_BY_PILLOW: dict[str, Callable[[Any, np.ndarray, Any], np.ndarray]] = {
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
