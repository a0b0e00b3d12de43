"""The wide and pre-activation residual networks that lead RobustBench since 2020.

DeepMind's definition (Gowal et al. 2020, https://arxiv.org/abs/2010.03593; released file
adversarial_robustness/pytorch/model_zoo.py): as the networks of ``wide_resnet`` and
``preact_resnet``, but where a convolution has stride 2, zeros are padded after the last row and
column alone, as TensorFlow does, and only a block that changes the width has a projection. All
published weights are of networks with SiLU. For 10 classes WRN-28-10 has 36,479,194 parameters,
WRN-70-16 266,796,506.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jax import Array

from awp_jax.models.context import Context
from awp_jax.models.initial import normal_fan_out
from awp_jax.models.layers import Layers, Residual, global_average_pool
from awp_jax.models.mean_sparse import MeanSparse
from awp_jax.models.preact_resnet import PreActResNet
from awp_jax.models.wide_resnet import check_depth_and_width


class SqueezeExcitation(nnx.Module):
    """Scales channels by a sigmoid of two dense layers on their averages, with ReLU between.

    As ``torchvision.ops.SqueezeExcitation``, whose layers are 1x1 convolutions.
    """

    def __init__(self, make: Layers, features: int, squeezed: int):
        # RaWRN starts all convolutions so.
        start = normal_fan_out(1, squeezed), normal_fan_out(1, features)
        self.fc1 = make.conv(features, squeezed, 1, bias=True, init=start[0])
        self.fc2 = make.conv(squeezed, features, 1, bias=True, init=start[1])

    def __call__(self, inputs: Array) -> Array:
        averages = inputs.mean((1, 2), keepdims=True)
        return inputs * nnx.sigmoid(self.fc2(nnx.relu(self.fc1(averages))))


def _padding(stride: int) -> Any:
    return 1 if stride == 1 else ((0, 1), (0, 1))


class DMBlock(nnx.Module):
    """Pre-activation block; when the width changes, everything reads the activated input."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int, network: DMWideResNet):
        self.activation = make.activate()
        self.batchnorm_0 = make.batch_norm(inputs)
        self.conv_0 = network.conv(make, inputs, outputs, 3, stride, _padding(stride))
        self.batchnorm_1 = make.batch_norm(outputs)
        self.conv_1 = network.conv(make, outputs, outputs, 3, 1, 1)
        self.projects = inputs != outputs
        if self.projects:
            self.shortcut = network.conv(make, inputs, outputs, 1, stride, 0)
        self.squeezes = network.squeeze > 0
        if self.squeezes:
            self.se = SqueezeExcitation(make, outputs, round(network.squeeze * outputs))
        self.sparse = network.mean_sparse
        if self.sparse:
            self.meansparse_0 = MeanSparse(inputs)
            self.meansparse_1 = MeanSparse(outputs)
            self.meansparse_2 = MeanSparse(outputs)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.batchnorm_0(x, context)
        out = self.activation(self.meansparse_0(out) if self.sparse else out)
        shortcut = self.shortcut(out) if self.projects else x
        out = self.batchnorm_1(self.conv_0(out), context)
        out = self.activation(self.meansparse_1(out) if self.sparse else out)
        out = self.conv_1(out)
        if self.squeezes:
            out = self.se(out)
        out = shortcut + out
        return self.meansparse_2(out) if self.sparse else out


class DMWideResNet(Residual):
    """WRN-depth-width as DeepMind has it.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        depth: 6 n + 4 with n >= 1 blocks in each of the three stages.
        width: the stages have 16, 32 and 64 times this many channels.
        mean_sparse: whether ``MeanSparse`` stands before every activation and after every block,
            as in the "MeanSparse" entries.
    """

    own_activation = "silu"
    squeeze = 0.0  # channels of squeeze and excitation, as a part of the block's
    by_fan_out = False  # whether convolutions start so, and not as PyTorch's do by default

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 28,
        width: int = 10,
        mean_sparse: bool = False,
    ):
        check_depth_and_width(depth, width)
        blocks = (depth - 4) // 6
        channels = [16 * width, 32 * width, 64 * width]
        self._build(make, image_shape, num_classes, 16, [blocks] * 3, channels, mean_sparse)

    def _build(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        stem: int,
        blocks: Sequence[int],
        channels: Sequence[int],
        mean_sparse: bool,
    ) -> None:
        self.mean_sparse = mean_sparse
        self.activation = make.activate()
        self.init_conv = self.conv(make, image_shape[-1], stem, 3, 1, 1)

        def block(inputs: int, outputs: int, stride: int) -> DMBlock:
            return DMBlock(make, inputs, outputs, stride, self)

        last = self.add_stages(block, stem, zip(blocks, channels, (1, 2, 2), strict=True))
        self.batchnorm = make.batch_norm(last)
        if mean_sparse:
            self.meansparse_end = MeanSparse(last)
        self.logits = make.dense(last, num_classes, classifies=True)

    def conv(
        self, make: Layers, inputs: int, outputs: int, size: int, stride: int, padding: Any
    ) -> nnx.Conv:
        init = normal_fan_out(size, outputs) if self.by_fan_out else None
        return make.conv(inputs, outputs, size, stride=stride, padding=padding, init=init)

    def features(self, images: Array, context: Context) -> Array:
        out = self.batchnorm(self.run_stages(self.init_conv(images), context), context)
        out = self.meansparse_end(out) if self.mean_sparse else out
        return global_average_pool(self.activation(out))

    def classify(self, features: Array, context: Context) -> Array:
        return self.logits(features)


class RaWideResNet(DMWideResNet):
    """RaWRN-70-16 (Peng et al. 2023, https://arxiv.org/abs/2308.16258), of another shape.

    Stages of 30, 31 and 10 blocks with 216, 432 and 864 channels, a stem of 96, and squeeze and
    excitation at the end of each block. 267,240,802 parameters for 10 classes.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        mean_sparse: as in ``DMWideResNet``.
    """

    squeeze = 0.25
    by_fan_out = True

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        mean_sparse: bool = False,
    ):
        blocks, channels = (30, 31, 10), (216, 432, 864)
        self._build(make, image_shape, num_classes, 96, blocks, channels, mean_sparse)


class DMPreActBlock(nnx.Module):
    """Pre-activation block whose projection, 3x3, reads the input as it is."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int):
        self.activation = make.activate()
        padding = _padding(stride)
        self.bn1 = make.batch_norm(inputs)
        self.conv1 = make.conv(inputs, outputs, 3, stride=stride, padding=padding)
        self.bn2 = make.batch_norm(outputs)
        self.conv2 = make.conv(outputs, outputs, 3, padding=1)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = make.conv(inputs, outputs, 3, stride=stride, padding=padding)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.bn1(x, context, self.activation)
        out = self.conv2(self.bn2(self.conv1(out), context, self.activation))
        return out + (self.shortcut(x) if self.projects else x)


class DMPreActResNet(PreActResNet):
    """PreActResNet as DeepMind has it, of ``DMPreActBlock``; the arguments are the same."""

    own_activation = "silu"
    block = DMPreActBlock
