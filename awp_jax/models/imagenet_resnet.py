"""ResNet for images of ImageNet's size (He et al., https://arxiv.org/abs/1512.03385).

torchvision's definition, which RobustBench's entries are of (torchvision/models/resnet.py): 7x7
stem at stride 2, 3x3 max pool at stride 2, and in a bottleneck the stride on the 3x3 convolution.
For 1000 classes ResNet-18 has 11,689,512 parameters, ResNet-50 25,557,032, and Wide ResNet-50-2
(https://arxiv.org/abs/1605.07146) 68,883,240.
"""

from __future__ import annotations

from flax import nnx
from jax import Array

from awp_jax.checks import positive_integer
from awp_jax.models.context import Context
from awp_jax.models.initial import normal_fan_out
from awp_jax.models.layers import Layers, Residual, global_average_pool, overlapping_max_pool

_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_EXPANSION = 4  # channels that a bottleneck returns, by those of its stage


def _conv(
    make: Layers, inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int = 0
) -> nnx.Conv:
    # torchvision starts all convolutions so.
    init = normal_fan_out(size, outputs)
    return make.conv(inputs, outputs, size, stride=stride, padding=padding, init=init)


class _Block(nnx.Module):
    """What a block adds to: its input, or a projection where sizes change."""

    def add_projection(self, make: Layers, inputs: int, outputs: int, stride: int) -> None:
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            projection = _conv(make, inputs, outputs, 1, stride=stride)
            self.downsample = nnx.List([projection, make.batch_norm(outputs)])

    def shortcut(self, x: Array, context: Context) -> Array:
        if not self.projects:
            return x
        conv, norm = self.downsample
        return norm(conv(x), context)


class BasicBlock(_Block):
    """Two 3x3 convolutions with BatchNorm; the last activation after the sum."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int):
        self.activation = make.activate()
        self.conv1 = _conv(make, inputs, outputs, 3, stride=stride, padding=1)
        self.bn1 = make.batch_norm(outputs)
        self.conv2 = _conv(make, outputs, outputs, 3, padding=1)
        self.bn2 = make.batch_norm(outputs)
        self.add_projection(make, inputs, outputs, stride)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.bn1(self.conv1(x), context, self.activation)
        out = self.bn2(self.conv2(out), context)
        return self.activation(out + self.shortcut(x, context))


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm; the last activation after the sum."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int, widen: int):
        self.activation = make.activate()
        inner = outputs // _EXPANSION * widen
        self.conv1 = _conv(make, inputs, inner, 1)
        self.bn1 = make.batch_norm(inner)
        self.conv2 = _conv(make, inner, inner, 3, stride=stride, padding=1)
        self.bn2 = make.batch_norm(inner)
        self.conv3 = _conv(make, inner, outputs, 1)
        self.bn3 = make.batch_norm(outputs)
        self.add_projection(make, inputs, outputs, stride)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.bn1(self.conv1(x), context, self.activation)
        out = self.bn2(self.conv2(out), context, self.activation)
        out = self.bn3(self.conv3(out), context)
        return self.activation(out + self.shortcut(x, context))


class ImageNetResNet(Residual):
    """ResNet-18, -34, -50, -101 or -152, or a wide one, as torchvision has them.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        depth: 18 or 34 (two 3x3 convolutions a block), 50, 101 or 152 (bottlenecks).
        width: channels of the first stage, doubled by each of the other three; bottlenecks return
            four times as many.
        widen: factor of the channels inside bottlenecks, 2 for "Wide ResNet-50-2".
    """

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 50,
        width: int = 64,
        widen: int = 1,
    ):
        if depth not in _BLOCKS:
            known = ", ".join(map(str, _BLOCKS))
            raise ValueError(f"A ResNet for ImageNet has one of the depths {known}, got {depth}.")
        positive_integer(widen, "the factor in the name of a wide ResNet")
        if widen > 1 and depth < 50:
            raise ValueError(f"Only a ResNet with bottlenecks can be wide, got depth {depth}.")
        self._build(make, image_shape, num_classes, _BLOCKS[depth], width, widen, depth >= 50)

    def _build(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        blocks: tuple[int, ...],
        width: int,
        widen: int,
        bottlenecks: bool,
    ) -> None:
        self.activation = make.activate()
        self.conv1 = _conv(make, image_shape[-1], width, 7, stride=2, padding=3)
        self.bn1 = make.batch_norm(width)

        def block(inputs: int, outputs: int, stride: int) -> nnx.Module:
            if bottlenecks:
                return Bottleneck(make, inputs, outputs, stride, widen)
            return BasicBlock(make, inputs, outputs, stride)

        first = width * (_EXPANSION if bottlenecks else 1)
        stages = [(count, first * 2**i, 2 if i else 1) for i, count in enumerate(blocks)]
        last = self.add_stages(block, width, stages)
        self.fc = make.dense(last, num_classes, classifies=True)

    def features(self, images: Array, context: Context) -> Array:
        x = self.bn1(self.conv1(images), context, self.activation)
        return global_average_pool(self.run_stages(overlapping_max_pool(x), context))

    def classify(self, features: Array, context: Context) -> Array:
        return self.fc(features)
