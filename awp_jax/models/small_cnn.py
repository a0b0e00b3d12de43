"""Small models: the MNIST CNN of TRADES, a multi-layer perceptron, a linear classifier."""

from __future__ import annotations

from flax import nnx
from jax import Array

from awp_jax.models.context import Context
from awp_jax.models.initial import ZEROS, normal
from awp_jax.models.layers import Layers, Network, check_rate, max_pool


class MnistCNN(Network):
    """The CNN that TRADES trains on MNIST (Zhang et al., https://arxiv.org/abs/1901.08573).

    Two pairs of 3x3 convolutions without padding, each followed by a max pool; then dense layers
    of 200, dropout, 200. The classifying layer starts at zero, so that the first logits are zero.

    Args:
        make: makes the layers.
        image_shape: height, width (both at least 16), channels.
        num_classes: number of logits.
        width: channels of the first pair; the second has twice as many.
        hidden: width of the two dense layers.
        dropout: probability between the dense layers, in [0, 1).
    """

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int = 32,
        hidden: int = 200,
        dropout: float = 0.5,  # TRADES' models/small_cnn.py
    ):
        height, breadth, channels = image_shape
        if min(height, breadth) < 16:
            raise ValueError(f"The MNIST CNN needs 16x16 images or larger, got {image_shape}.")
        self.dropout_rate = check_rate(dropout)
        self.activation = make.activate()

        def conv(inputs: int, outputs: int) -> nnx.Conv:
            # kaiming_normal_ of PyTorch: N(0, 2 / fan_in), biases zero.
            init = normal(2 / (9 * inputs))
            return make.conv(inputs, outputs, 3, bias=True, init=init, bias_init=ZEROS)

        self.conv1 = conv(channels, width)
        self.conv2 = conv(width, width)
        self.conv3 = conv(width, 2 * width)
        self.conv4 = conv(2 * width, 2 * width)
        rows, columns = (((size - 4) // 2 - 4) // 2 for size in (height, breadth))
        self.fc1 = make.dense(rows * columns * 2 * width, hidden)
        self.fc2 = make.dense(hidden, hidden)
        self.fc3 = make.dense(hidden, num_classes, classifies=True, init=ZEROS, bias_init=ZEROS)

    def features(self, images: Array, context: Context) -> Array:
        x = images
        for first, second in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            x = self.activation(second(self.activation(first(x))))
            x = max_pool(x)
        # Channels first, as published weights of fc1 expect.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        x = context.dropout(self.activation(self.fc1(x)), self.dropout_rate)
        return self.activation(self.fc2(x))

    def classify(self, features: Array, context: Context) -> Array:
        return self.fc3(features)


class MLP(Network):
    """Dense layers with an activation after each but the last; images are flattened.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
        width: units of each hidden layer.
        depth: number of hidden layers; 0 is a linear classifier.
        dropout: probability after each hidden layer, in [0, 1).
    """

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.0,
    ):
        if depth < 0:
            raise ValueError(f"The number of hidden layers must not be negative, got {depth}.")
        self.dropout_rate = check_rate(dropout)
        self.activation = make.activate()
        height, breadth, channels = image_shape
        units = height * breadth * channels
        hidden = []
        for _ in range(depth):
            hidden.append(make.dense(units, width))
            units = width
        self.hidden = nnx.List(hidden)
        self.linear = make.dense(units, num_classes, classifies=True)

    def features(self, images: Array, context: Context) -> Array:
        x = images.reshape(images.shape[0], -1)
        for layer in self.hidden:
            x = context.dropout(self.activation(layer(x)), self.dropout_rate)
        return x

    def classify(self, features: Array, context: Context) -> Array:
        return self.linear(features)


class Linear(MLP):
    """One dense layer on the flattened image.

    Args:
        make: makes the layers.
        image_shape: height, width, channels.
        num_classes: number of logits.
    """

    def __init__(self, make: Layers, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__(make, image_shape, num_classes, depth=0)
