"""An operator before activations that makes a trained network more robust."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from awp_jax.models.initial import ZEROS
from awp_jax.models.layer_norm import along_last


class MeanSparse(nnx.Module):
    """Replaces what is near its channel's mean by the mean (Amini et al. 2024).

    Where ``abs(x - mean) < threshold * deviation``, x becomes the mean, in every mode. Mean,
    variance and threshold are measured once after training, and stay as they are; at threshold 0,
    with which a new network starts, nothing is replaced.

    Args:
        features: size of the last axis.

    References:
        https://arxiv.org/abs/2406.05927, equation 9.
    """

    def __init__(self, features: int):
        zeros = jnp.zeros((features,), jnp.float32)
        self.mean = nnx.BatchStat(zeros, initial=ZEROS)
        self.var = nnx.BatchStat(zeros, initial=ZEROS)
        self.threshold = nnx.BatchStat(jnp.zeros((), jnp.float32), initial=ZEROS)

    def __call__(self, inputs: Array) -> Array:
        mean, var, threshold = (
            along_last(value, inputs) for value in (self.mean, self.var, self.threshold)
        )
        near = jnp.abs(inputs - mean) < threshold * jnp.sqrt(var)
        return jnp.where(near, mean, inputs)
