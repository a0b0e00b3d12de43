"""Convolutions of images smaller than their kernel, which XLA computes slowly on a CPU."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def convolution(
    images: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Any,
    *,
    feature_group_count: int = 1,
    **settings: Any,
) -> Array:
    """``lax.conv_general_dilated`` of NHWC images, for ``nnx.Conv``; the same but for rounding.

    Where images have fewer pixels than the kernel, or leave fewer, XLA swaps the two, here or in
    the backward pass, and a CPU computes what comes out in plain loops: more than half of the time
    of a step on digits, whose last layers see 2 x 2 pixels and one. There each convolution is a
    product with what lies under the kernel, side by side.
    """

    def plain(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            images, kernel, strides, padding, feature_group_count=feature_group_count, **settings
        )

    dilations = (settings.get("lhs_dilation"), settings.get("rhs_dilation"))
    dilated = any(d is not None and max(d) > 1 for d in dilations)
    if feature_group_count > 1 or dilated or isinstance(padding, str) or kernel.ndim != 4:
        return plain(images, kernel)
    window, before = kernel.shape[:2], images.shape[1:3]
    after = [
        (size + sum(pad) - width) // stride + 1
        for size, pad, width, stride in zip(before, padding, window, strides, strict=True)
    ]
    if math.prod(window) <= min(math.prod(before), math.prod(after)):
        return plain(images, kernel)
    product = functools.partial(_as_product, strides, padding, after, settings.get("precision"))
    return lax.platform_dependent(images, kernel, cpu=product, default=plain)


def _as_product(
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    precision: Any,
    images: Array,
    kernel: Array,
) -> Array:
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows, columns = ((size - 1) * stride + 1 for size, stride in zip(sizes, strides, strict=True))
    under = [
        padded[:, row : row + rows : strides[0], column : column + columns : strides[1]]
        for row in range(kernel.shape[0])
        for column in range(kernel.shape[1])
    ]
    flat = kernel.reshape(-1, kernel.shape[-1])
    return jnp.matmul(jnp.concatenate(under, axis=-1), flat, precision=precision)
