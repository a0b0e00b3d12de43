"""A network with BatchNorm that compiles quickly."""

from flax import nnx

from awp_jax import models


class TinyNet(models.Network):
    """Two convolutions with BatchNorm: all that the contract needs, quick to compile."""

    def __init__(self, make, classes=3):
        self.activation = make.activate()
        self.conv1 = make.conv(1, 4, 3, padding=1)
        self.bn1 = make.batch_norm(4)
        self.blocks = nnx.List([make.conv(4, 6, 3, stride=2, padding=1)])
        self.bn2 = make.batch_norm(6)
        self.linear = make.dense(6, classes, classifies=True)

    def features(self, images, context):
        x = self.activation(self.bn1(self.conv1(images), context))
        return self.activation(self.bn2(self.blocks[0](x), context)).mean((1, 2))

    def classify(self, features, context):
        return self.linear(features)
