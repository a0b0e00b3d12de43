"""The two dense layers that ConvNeXt and transformers apply to each pixel or token."""

from __future__ import annotations

from typing import TypedDict

from flax import nnx
from jax import Array

from awp_jax.models.initial import ZEROS, Initial, normal
from awp_jax.models.layers import Layers
from awp_jax.models.mean_sparse import MeanSparse


class _Start(TypedDict):
    init: Initial
    bias_init: Initial


# How both start. timm's trunc_normal_(std=0.02) cuts at -2 and 2, a hundred deviations away, so
# that it is a normal distribution.
START: _Start = {"init": normal(0.02**2), "bias_init": ZEROS}


class FeedForward(nnx.Module):
    """Dense, activation, dense; four times as wide between."""

    def __init__(self, make: Layers, width: int, *, mean_sparse: bool = False):
        self.activation = make.activate()
        self.fc1 = make.dense(width, 4 * width, **START)
        self.sparse = mean_sparse
        if mean_sparse:
            self.meansparse = MeanSparse(4 * width)
        self.fc2 = make.dense(4 * width, width, **START)

    def __call__(self, x: Array) -> Array:
        out = self.fc1(x)
        return self.fc2(self.activation(self.meansparse(out) if self.sparse else out))
