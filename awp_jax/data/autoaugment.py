"""AutoAugment's CIFAR-10 policy inside jit, with the arithmetic of Pillow.

Cubuk et al., CVPR 2019, arXiv:1805.09501, table 7. Magnitudes, and the random signs, are those of
torchvision's AutoAugment: the paper's ranges in ten steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import streams
from awp_jax.data import _pillow
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
    _pillow.check_images(images, "AutoAugment")
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


_TENTHS = _pillow.products(np.arange(20) / 10)  # factors up to 1.9


def _tenths(factor: jax.Array) -> jax.Array:
    return jnp.round(factor * 10).astype(jnp.int32)


_FUNCTIONS: dict[str, Callable] = {
    "rotate": _pillow.rotate,
    "translate-x": _pillow.translate(0),
    "translate-y": _pillow.translate(1),
    "shear-y": _pillow.shear_y,
    **{
        name: _pillow.enhance(name, _TENTHS, _tenths)
        for name in ("color", "brightness", "contrast", "sharpness")
    },
    "autocontrast": _pillow.per_channel(_pillow.autocontrast),
    "equalize": _pillow.per_channel(_pillow.equalize),
    "posterize": _pillow.posterize,
    "solarize": _pillow.solarize,
    "invert": _pillow.invert,
}
_OPERATIONS = tuple(_FUNCTIONS)
