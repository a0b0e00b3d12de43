"""Convolutions in place of the patches that ConvNeXt and ViT begin with.

Singh et al. 2023 (https://arxiv.org/abs/2303.01870), as their entries at RobustBench have it
(architectures/convstem_models.py): 3x3 convolutions with LayerNorm and GELU between.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx
from jax import Array

from awp_jax.models.layers import Layers


class ConvStem(nnx.Module):
    """3x3 convolutions with bias, each followed by LayerNorm and GELU.

    Args:
        make: makes the layers; they start as PyTorch does by default.
        channels: of the images, then of the outputs of each convolution.
        strides: one for each convolution.
        last: channels that a 1x1 convolution at the end returns; 0 for none.
    """

    def __init__(
        self, make: Layers, channels: Sequence[int], strides: Sequence[int], last: int = 0
    ):
        convolutions = [
            make.conv(inputs, outputs, 3, stride=stride, padding=1, bias=True)
            for inputs, outputs, stride in zip(channels[:-1], channels[1:], strides, strict=True)
        ]
        if last:
            convolutions.append(make.conv(channels[-1], last, 1, bias=True))
        self.conv = nnx.List(convolutions)
        self.norm = nnx.List([make.layer_norm(outputs) for outputs in channels[1:]])

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, channels], which it divides by the product of the strides."""
        for index, conv in enumerate(self.conv):
            x = conv(x)
            if index < len(self.norm):
                # GELU whatever the activation of the network, as released.
                x = jax.nn.gelu(self.norm[index](x), approximate=False)
        return x
