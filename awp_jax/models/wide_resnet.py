"""Wide residual networks (Zagoruyko and Komodakis, https://arxiv.org/abs/1605.07146).

As in the released code of TRADES, MART, RST and AWP. For 10 classes WRN-34-10 has 46,160,474
parameters and WRN-28-10 has 36,479,194.
"""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx
from jax import Array

from awp_jax.models.context import Context
from awp_jax.models.initial import ZEROS, normal_fan_out
from awp_jax.models.layers import Layers, Residual, check_rate, global_average_pool


def _conv(make: Layers, inputs: int, outputs: int, size: int, stride: int) -> nnx.Conv:
    # The start is that of TRADES' models/wideresnet.py.
    init = normal_fan_out(size, outputs)
    return make.conv(inputs, outputs, size, stride=stride, padding=size // 2, init=init)


def check_depth_and_width(depth: int, width: int) -> None:
    """ValueError for what no wide ResNet has."""
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"A wide ResNet has depth 6n + 4 (10, 16, 22, 28, 34, ...), got {depth}.")
    if width < 1:
        raise ValueError(f"The width of a wide ResNet must be at least 1, got {width}.")


class WideBlock(nnx.Module):
    """Pre-activation block; when the width changes, everything reads the activated input."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int, dropout: float):
        self.activation = make.activate()
        self.dropout = dropout
        self.bn1 = make.batch_norm(inputs)
        self.conv1 = _conv(make, inputs, outputs, 3, stride)
        self.bn2 = make.batch_norm(outputs)
        self.conv2 = _conv(make, outputs, outputs, 3, 1)
        self.projects = inputs != outputs or stride != 1
        if self.projects:
            self.shortcut = _conv(make, inputs, outputs, 1, stride)

    def __call__(self, x: Array, context: Context) -> Array:
        out = self.bn1(x, context, self.activation)
        shortcut = self.shortcut(out) if self.projects else x
        out = self.bn2(self.conv1(out), context, self.activation)
        out = context.dropout(out, self.dropout)
        return self.conv2(out) + shortcut


class WideResNet(Residual):
    """WRN-depth-width.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        depth: 6 n + 4 with n >= 1 blocks in each of the three stages.
        width: the stages have 16, 32 and 64 times this many channels.
        dropout: probability inside the blocks, in [0, 1); 0 in every released adversarial
            training.
    """

    stage = "block"

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 34,
        width: int = 10,
        dropout: float = 0.0,
    ):
        check_depth_and_width(depth, width)
        blocks = (depth - 4) // 6
        channels = [16 * width, 32 * width, 64 * width]
        self._build(make, image_shape, num_classes, [blocks] * 3, channels, dropout)

    def _build(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        blocks: Sequence[int],
        channels: Sequence[int],
        dropout: float,
    ) -> None:
        self.dropout_rate = check_rate(dropout)
        self.activation = make.activate()
        self.conv1 = _conv(make, image_shape[-1], 16, 3, 1)

        def block(inputs: int, outputs: int, stride: int) -> WideBlock:
            return WideBlock(make, inputs, outputs, stride, self.dropout_rate)

        last = self.add_stages(block, 16, zip(blocks, channels, (1, 2, 2), strict=True))
        self.bn1 = make.batch_norm(last)
        # Its bias starts at zero in TRADES' models/wideresnet.py too.
        self.fc = make.dense(last, num_classes, classifies=True, bias_init=ZEROS)

    def features(self, images: Array, context: Context) -> Array:
        x = self.run_stages(self.conv1(images), context)
        return global_average_pool(self.bn1(x, context, self.activation))

    def classify(self, features: Array, context: Context) -> Array:
        return self.fc(features)


class ShapedWideResNet(WideResNet):
    """A wide ResNet with blocks and widths of its own in each stage: "wrn-a4", "wrn-34-r".

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        dropout: as in ``WideResNet``.
    """

    blocks: Sequence[int]
    widths: Sequence[int]

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dropout: float = 0.0,
    ):
        self._build(make, image_shape, num_classes, self.blocks, self.widths, dropout)


class WideResNetA4(ShapedWideResNet):
    """WRN-A4 (Huang et al. 2022, https://arxiv.org/abs/2212.11005), with SiLU as published."""

    own_activation = "silu"
    blocks = (27, 28, 13)
    widths = (160, 448, 384)


class WideResNet34R(ShapedWideResNet):
    """WRN-34-R (Huang et al. 2021, https://arxiv.org/abs/2110.03825): a narrower last stage."""

    blocks = (5, 5, 5)
    widths = (320, 640, 512)
