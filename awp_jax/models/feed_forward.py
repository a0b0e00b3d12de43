"""The two dense layers that ConvNeXt and transformers apply to each pixel or token."""

from __future__ import annotations

from typing import TypedDict

from flax import nnx
from jax import Array

from awp_jax.models.initial import ZEROS, Initial, normal
from awp_jax.models.layers import Layers


class _Start(TypedDict):
    init: Initial
    bias_init: Initial


# How both start. timm's trunc_normal_(std=0.02) cuts at -2 and 2, a hundred deviations away, so
# that it is a normal distribution.
START: _Start = {"init": normal(0.02**2), "bias_init": ZEROS}


class FeedForward(nnx.Module):
    """Dense, activation, dense; ``expansion`` times as wide between."""

    def __init__(self, make: Layers, width: int, expansion: int = 4):
        self.activation = make.activate()
        self.fc1 = make.dense(width, expansion * width, **START)
        self.fc2 = make.dense(expansion * width, width, **START)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.activation(self.fc1(x)))
