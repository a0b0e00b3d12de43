"""Post-activation ResNet for small images (He et al., https://arxiv.org/abs/1512.03385).

The first version of AWP and the flatness study (Stutz et al., https://arxiv.org/abs/2104.04448)
train ResNet-18: 3x3 stem with BatchNorm, four stages, 11,173,962 parameters for 10 classes.
"""

from __future__ import annotations

from flax import nnx
from jax import Array

from awp_jax.models.context import Context
from awp_jax.models.layers import Layers, Residual, global_average_pool
from awp_jax.models.preact_resnet import four_stages


class Block(nnx.Module):
    """Convolution, BatchNorm, activation, twice; the second activation after the sum."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int):
        self.activation = make.activate()
        self.conv1 = make.conv(inputs, outputs, 3, stride=stride, padding=1)
        self.bn1 = make.batch_norm(outputs)
        self.conv2 = make.conv(outputs, outputs, 3, padding=1)
        self.bn2 = make.batch_norm(outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut_conv = make.conv(inputs, outputs, 1, stride=stride)
            self.shortcut_bn = make.batch_norm(outputs)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.bn1(self.conv1(x), context, self.activation)
        out = self.bn2(self.conv2(out), context)
        shortcut = self.shortcut_bn(self.shortcut_conv(x), context) if self.projects else x
        return self.activation(out + shortcut)


class ResNet(Residual):
    """ResNet-10, -18 or -34.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        depth: 10, 18 or 34.
        width: channels of the first stage, doubled by each of the other three.
    """

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
        self.bn1 = make.batch_norm(width)
        stages = four_stages(depth, width)
        channels = self.add_stages(lambda *sizes: Block(make, *sizes), width, stages)
        self.linear = make.dense(channels, num_classes, classifies=True)

    def features(self, images: Array, context: Context) -> Array:
        x = self.bn1(self.conv1(images), context, self.activation)
        return global_average_pool(self.run_stages(x, context))

    def classify(self, features: Array, context: Context) -> Array:
        return self.linear(features)
