"""The layers that the networks are built from, with PyTorch's padding and initialisation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from awp_jax.checks import choice
from awp_jax.models.batch_norm import BatchNorm
from awp_jax.models.context import Context
from awp_jax.models.initial import Initial, uniform_fan_in
from awp_jax.models.layer_norm import LayerNorm
from awp_jax.models.small_images import convolution

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # the exact one, as PyTorch
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
}

# The compute dtype that means "whatever the parameters are": float32, or float64 in tests.
COMPUTE_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one network, all with the same settings.

    Attributes:
        rngs: source of the initial values.
        activation: one of "relu", "silu", "gelu", "mish", "softplus".
        dtype: compute dtype of convolutions and hidden dense layers; "float32" means that of the
            parameters. The classifying layer always computes in the parameters' dtype.
        batch_norm_groups: see ``BatchNorm``.
        axis_name: see ``BatchNorm``.
    """

    rngs: nnx.Rngs
    activation: str = "relu"
    dtype: str = "float32"
    batch_norm_groups: int = 1
    axis_name: str | None = None

    def activate(self) -> Callable[[Array], Array]:
        """The activation function."""
        return ACTIVATIONS[choice(self.activation, ACTIVATIONS, "activation")]

    def conv(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int | tuple[tuple[int, int], tuple[int, int]] = 0,
        groups: int = 1,
        bias: bool = False,
        init: Initial | None = None,
        bias_init: Initial | None = None,
    ) -> nnx.Conv:
        """A size x size convolution, padded by ``padding`` zeros on every side at any stride.

        ``padding`` may also be ((top, bottom), (left, right)). With ``groups`` > 1 each part of the
        outputs sees one part of the inputs; as many as inputs: a depthwise convolution.
        """
        default = uniform_fan_in(size * size * (inputs // groups))
        if isinstance(padding, int):
            padding = ((padding, padding), (padding, padding))
        return nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=(stride, stride),
            padding=padding,
            feature_group_count=groups,
            use_bias=bias,
            conv_general_dilated=convolution,
            dtype=self._dtype(),
            **_initialised(init or default, bias_init or default),
            rngs=self.rngs,
        )

    def dense(
        self,
        inputs: int,
        outputs: int,
        *,
        classifies: bool = False,
        init: Initial | None = None,
        bias_init: Initial | None = None,
    ) -> nnx.Linear:
        """A dense layer; ``classifies=True`` for the one that returns the logits."""
        default = uniform_fan_in(inputs)
        return nnx.Linear(
            inputs,
            outputs,
            dtype=None if classifies else self._dtype(),
            **_initialised(init or default, bias_init or default),
            rngs=self.rngs,
        )

    def batch_norm(self, features: int) -> BatchNorm:
        """A BatchNorm over the last axis."""
        return BatchNorm(features, groups=self.batch_norm_groups, axis_name=self.axis_name)

    def layer_norm(self, features: int) -> LayerNorm:
        """A LayerNorm over the last axis."""
        return LayerNorm(features)

    def _dtype(self):
        if self.dtype == "float64":
            raise ValueError(
                'dtype "float64" is not a compute dtype: cast the parameters, and keep "float32".'
            )
        return COMPUTE_DTYPES[choice(self.dtype, COMPUTE_DTYPES, "compute dtype")]


def _initialised(kernel: Initial, bias: Initial) -> dict[str, Any]:
    return {
        "kernel_init": kernel,
        "bias_init": bias,
        "kernel_metadata": {"initial": kernel},
        "bias_metadata": {"initial": bias},
    }


class Network(nnx.Module):
    """Base of the networks: ``features`` then ``classify``.

    Both take and return arrays with the batch first; ``features`` gets images [batch, height,
    width, channels] and returns [batch, d].
    """

    own_activation: str = "relu"  # where none is chosen
    dropout_rate: float = 0.0
    auxiliary: Any = None  # a second head on the features, see `from_network`
    remat: bool = False  # see `from_network`

    def __call__(self, images: Array) -> Array:
        """Logits on running statistics, without dropout: what others expect of a module."""
        context = Context("running")
        return self.classify(self.features(images, context), context)

    def run(self, block: Callable[[Array, Context], Array], x: Array, context: Context) -> Array:
        """A residual block; with ``remat`` the backward pass computes what is inside again."""
        if not self.remat:
            return block(x, context)
        again = nnx.remat(lambda block, x: block(x, context))
        return again(block, x)

    def features(self, images: Array, context: Context) -> Array:
        raise NotImplementedError

    def classify(self, features: Array, context: Context) -> Array:
        raise NotImplementedError


class Residual(Network):
    """A network of stages of residual blocks, ``layer1``, ``layer2``, ... ."""

    stage = "layer"  # what the stages are called in the parameters

    def add_stages(self, block: Callable, channels: int, stages: Iterable[tuple]) -> int:
        """Sets them from ``(blocks, channels, stride of the first block)`` each.

        ``block(inputs, outputs, stride)`` makes one; returns the channels of the last.
        """
        for number, (blocks, outputs, stride) in enumerate(stages, start=1):
            sizes = [(channels, outputs, stride), *[(outputs, outputs, 1)] * (blocks - 1)]
            setattr(self, f"{self.stage}{number}", nnx.List([block(*each) for each in sizes]))
            channels = outputs
        return channels

    def run_stages(self, x: Array, context: Context) -> Array:
        number = 1
        while hasattr(self, name := f"{self.stage}{number}"):
            for block in getattr(self, name):
                x = self.run(block, x, context)
            number += 1
        return x


def global_average_pool(x: Array) -> Array:
    """[batch, height, width, channels] to [batch, channels]."""
    return x.mean((1, 2))


def max_pool(x: Array) -> Array:
    """The maximum of each 2x2 window of [batch, height, width, channels].

    An odd last row or column is left out, and of equal values the first gets the gradient, as in
    PyTorch. The gradient of ``nnx.max_pool`` takes four times as long on CPU.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // 2, width // 2
    x = x[:, : 2 * rows, : 2 * columns].reshape(batch, rows, 2, columns, 2, channels)
    x = _larger(x[:, :, :, :, 0], x[:, :, :, :, 1])
    return _larger(x[:, :, 0], x[:, :, 1])


def overlapping_max_pool(x: Array) -> Array:
    """The maximum of each 3x3 window of [batch, height, width, channels], at stride 2.

    One row and column around the image belong to no window's maximum. Gradients as in
    ``max_pool``.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (2, 1):  # columns first: of equal values the first in reading order wins
        count = (x.shape[axis] - 1) // 2
        first, second, third = (
            jax.lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis) for start in range(3)
        )
        x = _larger(_larger(first, second), third)
    return x


def _larger(first: Array, second: Array) -> Array:
    # NaN wins on either side, as in jnp.maximum, which halves the gradient of equal values.
    return jnp.where((first >= second) | jnp.isnan(first), first, second)


def check_rate(rate: float) -> float:
    """A dropout probability in [0, 1), or ValueError."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout must be in [0, 1), got {rate}.")
    return float(rate)
