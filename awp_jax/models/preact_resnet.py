"""PreActResNet for small images (He et al., https://arxiv.org/abs/1603.05027).

As in the released code of AWP: 3x3 stem without BatchNorm, four stages, a BatchNorm and activation
before the pool. PreActResNet-18 for 10 classes has 11,172,170 parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax import Array

from awp_jax.models.context import Context
from awp_jax.models.layers import Layers, Residual, global_average_pool

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def four_stages(depth: int, width: int) -> list[tuple[int, int, int]]:
    """Blocks, channels and stride of each stage, also of the post-activation ResNet."""
    if depth not in _BLOCKS:
        raise ValueError(f"A ResNet has depth 10, 18 or 34, got {depth}.")
    return [(n, width * 2**i, 2 if i else 1) for i, n in enumerate(_BLOCKS[depth])]


class PreActBlock(nnx.Module):
    """BatchNorm, activation, convolution, twice; the 1x1 shortcut reads the activated input."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int):
        self.activation = make.activate()
        self.bn1 = make.batch_norm(inputs)
        self.conv1 = make.conv(inputs, outputs, 3, stride=stride, padding=1)
        self.bn2 = make.batch_norm(outputs)
        self.conv2 = make.conv(outputs, outputs, 3, padding=1)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = make.conv(inputs, outputs, 1, stride=stride)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.bn1(x, context, self.activation)
        # As released: activated input into the 1x1 convolution, raw input past the block.
        shortcut = self.shortcut(out) if self.projects else x
        out = self.conv1(out)
        out = self.conv2(self.bn2(out, context, self.activation))
        return out + shortcut


class PreActResNet(Residual):
    """PreActResNet-10, -18 or -34.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        depth: 10, 18 or 34.
        width: channels of the first stage, doubled by each of the other three.
    """

    block: Callable[..., Any] = PreActBlock

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 18,
        width: int = 64,
    ):
        self.activation = make.activate()
        self.conv1 = make.conv(image_shape[-1], width, 3, padding=1)
        stages = four_stages(depth, width)
        channels = self.add_stages(lambda *sizes: self.block(make, *sizes), width, stages)
        self.bn = make.batch_norm(channels)
        self.linear = make.dense(channels, num_classes, classifies=True)

    def features(self, images: Array, context: Context) -> Array:
        x = self.run_stages(self.conv1(images), context)
        return global_average_pool(self.bn(x, context, self.activation))

    def classify(self, features: Array, context: Context) -> Array:
        return self.linear(features)
