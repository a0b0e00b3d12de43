"""Architectures behind one contract, the ``Classifier``: pure functions of plain nested dicts."""

from awp_jax.extras import needed_by

with needed_by("awp_jax.models"):
    from awp_jax.models.adaptors import from_callable, from_linen
    from awp_jax.models.batch_norm import MOMENTUM, BatchNorm
    from awp_jax.models.classifier import Classifier
    from awp_jax.models.context import MODES, Context, Mode
    from awp_jax.models.conv_stem import ConvStem
    from awp_jax.models.convnext import ConvNeXt
    from awp_jax.models.dm_wide_resnet import DMPreActResNet, DMWideResNet, RaWideResNet
    from awp_jax.models.imagenet_resnet import ImageNetResNet
    from awp_jax.models.initial import Initial
    from awp_jax.models.layer_norm import LayerNorm
    from awp_jax.models.layers import ACTIVATIONS, Layers, Network
    from awp_jax.models.mean_sparse import MeanSparse
    from awp_jax.models.nnx_classifier import from_network
    from awp_jax.models.nnx_module import as_classifier, from_nnx
    from awp_jax.models.noise import noisy_kernels, with_parametric_noise
    from awp_jax.models.preact_resnet import PreActResNet
    from awp_jax.models.published import PUBLISHED, Published, published
    from awp_jax.models.registry import create, names
    from awp_jax.models.resnet import ResNet
    from awp_jax.models.small_cnn import MLP, Linear, MnistCNN
    from awp_jax.models.vgg import VGG
    from awp_jax.models.vit import VisionTransformer
    from awp_jax.models.wide_resnet import WideResNet, WideResNet34R, WideResNetA4
    from awp_jax.models.xcit import XCiT

__all__ = [
    "ACTIVATIONS",
    "BatchNorm",
    "Classifier",
    "Context",
    "ConvNeXt",
    "ConvStem",
    "DMPreActResNet",
    "DMWideResNet",
    "ImageNetResNet",
    "Initial",
    "LayerNorm",
    "Layers",
    "Linear",
    "MLP",
    "MODES",
    "MeanSparse",
    "MOMENTUM",
    "MnistCNN",
    "Mode",
    "Network",
    "PUBLISHED",
    "PreActResNet",
    "Published",
    "RaWideResNet",
    "ResNet",
    "VGG",
    "VisionTransformer",
    "WideResNet",
    "WideResNet34R",
    "WideResNetA4",
    "XCiT",
    "as_classifier",
    "create",
    "from_callable",
    "from_linen",
    "from_network",
    "from_nnx",
    "names",
    "noisy_kernels",
    "published",
    "with_parametric_noise",
]
