"""Normalisation and activation as one function, with a backward pass of its own.

What autodiff makes of BatchNorm and ReLU reads and writes each activation some fifteen times, in
about twenty kernels; here the forward pass reads it twice and writes once, and so does the backward
pass, in four and three kernels. That is what counts on a GPU, where a training step spends half of
its time on this. A CPU gets the same function with statistics in two passes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from awp_jax.batch_norm import EPSILON
from awp_jax.models.layer_norm import along_last
from awp_jax.reductions import parts_of, sums

_LEAST_ROWS = 128  # of a part in the first stage of a sum


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalised(
    activation: Callable[[Array], Array], x: Array, scale: Array, bias: Array, shift: Array
) -> tuple[Array, Array, Array]:
    """Normalises by the statistics of all axes but the last, scales, and activates.

    Args:
        activation: Elementwise, static.
        x: ``[batch, ..., channels]``, in the compute dtype.
        scale: ``[channels]``, in the dtype in which statistics are computed.
        bias: ``[channels]``, as scale.
        shift: ``[channels]``, a guess of the mean, such as the running one. But on a CPU, mean and
            variance come from one pass over x less shift: where the mean is d deviations away
            from it, their relative error grows by d squared (of 10, two of float32's seven digits).

    Returns:
        ``activation((x - mean) / sqrt(variance + 1e-5) * scale + bias)`` in the dtype of x; the
        mean; the biased variance. No derivative goes through the last two, and none to shift, on
        which the numbers do not depend.
    """
    return _forward(activation, x, scale, bias, shift)[0]


def _forward(
    activation: Callable[[Array], Array], x: Array, scale: Array, bias: Array, shift: Array
) -> tuple[tuple[Array, Array, Array], Any]:
    wide = x.astype(scale.dtype)
    mean, variance = lax.platform_dependent(wide, shift, cpu=_in_two_passes, default=_in_one_pass)
    inverse = lax.rsqrt(variance + EPSILON)
    factor = inverse * scale
    # Centred before it is scaled, which loses nothing where the mean is large.
    z = along_last(factor, wide) * (wide - along_last(mean, wide)) + along_last(bias, wide)
    border = None
    if activation is jax.nn.relu:
        # Where z is 0; behind a factor of 0 all of x, or nothing, lies above.
        border = mean - bias / factor, factor >= 0
    return (activation(z).astype(x.dtype), mean, variance), (x, mean, inverse, factor, bias, border)


def _backward(
    activation: Callable[[Array], Array], kept: Any, cotangents: Any
) -> tuple[Array, Array, Array, Array]:
    # Computed again from x, behind a barrier: else XLA keeps what the forward pass has made.
    x, mean, inverse, factor, bias, border = lax.optimization_barrier(kept)
    count, wide = math.prod(x.shape[:-1]), x.astype(factor.dtype)
    centred, g = wide - along_last(mean, wide), cotangents[0].astype(factor.dtype)
    if border is not None:
        # A comparison for each number and nothing else: short enough for XLA to do it twice, in
        # place of a kernel that writes a mask.
        zero, rises = border
        shape = (1,) * (x.ndim - 1) + (-1,)
        g = jnp.where((wide > along_last(zero, wide)) == rises.reshape(shape), g, 0)
    else:
        z = along_last(factor, wide) * centred + along_last(bias, wide)
        (g,) = jax.vjp(activation, z)[1](g)
    d_bias, products = two_sums(g, g * centred)
    d_scale = products * inverse
    constant, slope = -factor * d_bias / count, -factor * inverse * d_scale / count
    dx = along_last(factor, g) * g + along_last(slope, g) * centred + along_last(constant, g)
    return dx.astype(x.dtype), d_scale, d_bias, jnp.zeros_like(mean)


normalised.defvjp(_forward, _backward)


def _in_two_passes(x: Array, shift: Array) -> tuple[Array, Array]:
    del shift  # needs none
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - along_last(mean, x)).mean(axes)


def _in_one_pass(x: Array, shift: Array) -> tuple[Array, Array]:
    shifted = x - along_last(shift, x)
    count = math.prod(x.shape[:-1])
    first, second = (total / count for total in two_sums(shifted, jnp.square(shifted)))
    return first + shift, jnp.maximum(second - jnp.square(first), 0)


@jax.custom_vjp
def two_sums(first: Array, second: Array) -> tuple[Array, Array]:
    """The sums of two arrays ``[..., channels]`` over all axes but the last, read together.

    Differentiable as often as needed, by reverse mode.
    """
    return lax.platform_dependent(first, second, cpu=_apart, tpu=_apart, default=_together)


def _apart(first: Array, second: Array) -> tuple[Array, Array]:
    """By two reductions, where launches cost nothing: XLA vectorises or joins them itself."""
    axes = tuple(range(first.ndim - 1))
    return first.sum(axes), second.sum(axes)


def _together(first: Array, second: Array) -> tuple[Array, Array]:
    """By one reduction with two results, in two stages of as many parts as keep a GPU busy."""
    channels = first.shape[-1]
    rows = first.size // channels
    parts = parts_of(rows, _LEAST_ROWS)
    shape = (parts, rows // parts, channels)
    partial = sums((first.reshape(shape), second.reshape(shape)), 1)
    one, other = sums(partial, 0)
    return one, other


def _sums_forward(first: Array, second: Array) -> tuple[tuple[Array, Array], Any]:
    return two_sums(first, second), (first, second)


def _sums_backward(kept: Any, cotangents: Any) -> tuple[Array, Array]:
    def spread(cotangent: Array, like: Array) -> Array:
        return jnp.broadcast_to(along_last(cotangent, like), like.shape)

    return spread(cotangents[0], kept[0]), spread(cotangents[1], kept[1])


two_sums.defvjp(_sums_forward, _sums_backward)
