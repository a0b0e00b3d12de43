"""VGG with BatchNorm for 32x32 images (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556).

Convolutions have a bias, five max pools take 32x32 to 1x1, and one dense layer classifies the 512
features. Initialised as PyTorch does by default.
"""

from __future__ import annotations

from flax import nnx
from jax import Array

from awp_jax.models.context import Context
from awp_jax.models.layers import Layers, Network, global_average_pool, max_pool

# Convolutions in each of the five stages.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
MULTIPLIERS = (1, 2, 4, 8, 8)


class VGG(Network):
    """VGG-11, -13, -16 or -19.

    Args:
        make: makes the layers.
        image_shape: height, width (both at least 32), channels. Larger images than 32x32 are
            averaged over what the pools leave.
        num_classes: number of logits.
        depth: 11, 13, 16 or 19.
        width: channels of the first stage; the last has eight times as many.
    """

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 19,
        width: int = 64,
    ):
        if depth not in CONVOLUTIONS:
            raise ValueError(f"VGG has depth 11, 13, 16 or 19, got {depth}.")
        if min(image_shape[:2]) < 32:
            raise ValueError(f"VGG needs images of at least 32x32, got shape {image_shape}.")
        self.activation = make.activate()
        convolutions, norms, pooled_after = [], [], []
        channels = image_shape[-1]
        for repeats, multiplier in zip(CONVOLUTIONS[depth], MULTIPLIERS, strict=True):
            for _ in range(repeats):
                outputs = width * multiplier
                convolutions.append(make.conv(channels, outputs, 3, padding=1, bias=True))
                norms.append(make.batch_norm(outputs))
                channels = outputs
            pooled_after.append(len(convolutions))
        self.conv = nnx.List(convolutions)
        self.bn = nnx.List(norms)
        self.pooled_after = tuple(pooled_after)
        self.classifier = make.dense(channels, num_classes, classifies=True)

    def features(self, images: Array, context: Context) -> Array:
        x = images
        for index, (conv, norm) in enumerate(zip(self.conv, self.bn, strict=True), start=1):
            x = norm(conv(x), context, self.activation)
            if index in self.pooled_after:
                x = max_pool(x)
        return global_average_pool(x)

    def classify(self, features: Array, context: Context) -> Array:
        return self.classifier(features)
