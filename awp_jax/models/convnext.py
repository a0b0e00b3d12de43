"""ConvNeXt (Liu et al., https://arxiv.org/abs/2201.03545).

timm's definition, with its names (timm/models/convnext.py): LayerNorm with epsilon 1e-6, depthwise
7x7 convolutions, exact GELU, a scale for each channel of what a block adds. For 1000 classes
ConvNeXt-T has 28,589,128 parameters, -S 50,223,688, -B 88,591,464 and -L 197,767,336. Drop path
(stochastic depth) is left out: it is for training alone, and the published robust models of this
size were trained from weights that had it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from awp_jax.models.context import Context
from awp_jax.models.conv_stem import ConvStem
from awp_jax.models.feed_forward import START, FeedForward
from awp_jax.models.initial import Initial
from awp_jax.models.layer_norm import along_last
from awp_jax.models.layers import Layers, Network, global_average_pool
from awp_jax.models.mean_sparse import MeanSparse

_LAYER_SCALE = 1e-6  # what the scales of blocks start at


class ConvNeXtBlock(nnx.Module):
    """Depthwise convolution, LayerNorm and two dense layers on the channels of each pixel."""

    def __init__(self, make: Layers, width: int, mean_sparse: bool):
        self.conv_dw = make.conv(width, width, 7, padding=3, groups=width, bias=True, **START)
        self.norm = make.layer_norm(width)
        self.mlp = FeedForward(make, width, mean_sparse=mean_sparse)
        self.sparse = mean_sparse
        if mean_sparse:
            self.meansparse = MeanSparse(width)
        scale = Initial("constant", _LAYER_SCALE)
        self.gamma = nnx.Param(jnp.full((width,), _LAYER_SCALE, jnp.float32), initial=scale)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.mlp(self.norm(self.conv_dw(x)))
        out = along_last(self.gamma, out) * out
        return x + (self.meansparse(out) if self.sparse else out)


class ConvNeXtStage(nnx.Module):
    """Blocks of one width, after a LayerNorm and a 2x2 convolution at stride 2 where it changes."""

    def __init__(self, make: Layers, inputs: int, outputs: int, blocks: int, *, mean_sparse: bool):
        self.downsamples = inputs != outputs
        if self.downsamples:
            conv = make.conv(inputs, outputs, 2, stride=2, bias=True, **START)
            self.downsample = nnx.List([make.layer_norm(inputs), conv])
        self.blocks = nnx.List([ConvNeXtBlock(make, outputs, mean_sparse) for _ in range(blocks)])

    def __call__(self, x: Array) -> Array:
        if not self.downsamples:
            return x
        norm, conv = self.downsample
        return conv(norm(x))


class ConvNeXtHead(nnx.Module):
    """A LayerNorm and the layer that classifies."""

    def __init__(self, make: Layers, width: int, num_classes: int):
        self.norm = make.layer_norm(width)
        self.fc = make.dense(width, num_classes, classifies=True, **START)


class ConvNeXt(Network):
    """A ConvNeXt of four stages.

    Args:
        make: makes the layers.
        image_shape: height, width (both at least 32), channels.
        num_classes: number of logits.
        blocks: of each stage.
        width: channels of the first stage, doubled by each of the other three.
        conv_stem: convolutions in place of the 4x4 patches: 0 for none, 2 as Singh et al. have for
            T and S, 3 as for B and L.
        mean_sparse: whether ``MeanSparse`` stands before every activation and behind every layer
            scale, as in the "MeanSparse" entry.
    """

    own_activation = "gelu"

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        blocks: tuple[int, int, int, int] = (3, 3, 9, 3),
        width: int = 96,
        conv_stem: int = 0,
        mean_sparse: bool = False,
    ):
        if min(image_shape[:2]) < 32:
            raise ValueError(f"ConvNeXt needs images of at least 32x32, got shape {image_shape}.")
        if conv_stem not in (0, 2, 3):
            raise ValueError(f"A ConvStem of ConvNeXt has 2 or 3 convolutions, got {conv_stem}.")
        if conv_stem and width % 4:
            raise ValueError(f"width must be a multiple of 4 with a ConvStem, got {width}.")
        channels = image_shape[-1]
        if conv_stem == 2:
            self.stem: Any = ConvStem(make, (channels, width // 2, width), (2, 2))
        elif conv_stem == 3:
            inner = width // 2, 3 * width // 4
            self.stem = ConvStem(make, (channels, *inner, width), (2, 2, 1))
        else:
            patches = make.conv(channels, width, 4, stride=4, bias=True, **START)
            self.stem = nnx.List([patches, make.layer_norm(width)])
        widths = [width * 2**stage for stage in range(len(blocks))]
        self.stages = nnx.List(
            ConvNeXtStage(make, *sizes, mean_sparse=mean_sparse)
            for sizes in zip([width, *widths[:-1]], widths, blocks, strict=True)
        )
        self.head = ConvNeXtHead(make, widths[-1], num_classes)

    def features(self, images: Array, context: Context) -> Array:
        x = images
        for layer in [self.stem] if isinstance(self.stem, ConvStem) else self.stem:
            x = layer(x)
        for stage in self.stages:
            x = stage(x)
            for block in stage.blocks:
                x = self.run(block, x, context)
        return self.head.norm(global_average_pool(x))

    def classify(self, features: Array, context: Context) -> Array:
        return self.head.fc(features)
