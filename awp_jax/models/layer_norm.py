"""LayerNorm with statistics in at least float32, as PyTorch's under automatic mixed precision."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from awp_jax.models.initial import ONES, ZEROS

EPSILON = 1e-6  # timm's for ConvNeXt and ViT; PyTorch's own is 1e-5


def along_last(vector: nnx.Variable | Array, x: Array) -> Array:
    """A vector (or one number) that acts along the last axis of ``x``, in its dtype and rank."""
    return vector[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class LayerNorm(nnx.Module):
    """Normalises each vector along the last axis, and scales and shifts it.

    Statistics are computed in float32, or in the inputs' dtype where that is wider; outputs have
    the inputs' dtype. Flax's own takes the variance as E[x^2] - E[x]^2 by default, which loses its
    digits where the mean is large.

    Args:
        features: size of the last axis.

    References:
        Ba et al., https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32), initial=ONES)
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32), initial=ZEROS)

    def __call__(self, inputs: Array) -> Array:
        """``inputs``: floating [..., features]."""
        x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        scale, bias = along_last(self.scale, x), along_last(self.bias, x)
        x = x - x.mean(-1, keepdims=True)
        x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
        return (x * scale + bias).astype(inputs.dtype)
