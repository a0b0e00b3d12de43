"""Logits, gradients and running statistics against PyTorch, in float64 and float32."""

import jax.numpy as jnp
import numpy as np
import pytest
from torch_models import (
    MnistNet,
    PostActBlock,
    PreActBlock,
    ResidualNet,
    VGGNet,
    WideNet,
    gap,
    relative,
    scattered,
)

from awp_jax import models

CASES = {
    "preact-resnet-18": (
        {"image_shape": (8, 8, 3), "num_classes": 5, "width": 4},
        lambda: ResidualNet(PreActBlock, 3, 5, 4, (2, 2, 2, 2)),
    ),
    "resnet-10": (
        {"image_shape": (8, 8, 3), "num_classes": 5, "width": 4},
        lambda: ResidualNet(PostActBlock, 3, 5, 4, (1, 1, 1, 1)),
    ),
    "wrn-10-1": ({"image_shape": (8, 8, 3), "num_classes": 5}, lambda: WideNet(10, 1, 3, 5)),
    "wrn-16-2": ({"image_shape": (9, 9, 2), "num_classes": 3}, lambda: WideNet(16, 2, 2, 3)),
    "vgg-11": (
        {"image_shape": (32, 32, 3), "num_classes": 5, "width": 2},
        lambda: VGGNet((1, 1, 2, 2, 2), 2, 3, 5),
    ),
    "mnist-cnn": ({"image_shape": (28, 28, 1), "num_classes": 10, "dropout": 0.0}, MnistNet),
}


def compare(name, mode):
    """``gap`` of the case called ``name``."""
    options, build = CASES[name]
    return gap(models.create(name, **options), build(), mode)


@pytest.mark.parametrize("mode", ["running", "update"])
@pytest.mark.parametrize(
    "name", ["preact-resnet-18", "resnet-10", "wrn-16-2", "vgg-11", "mnist-cnn"]
)
def test_float64(x64, name, mode):
    assert compare(name, mode) < 1e-9


@pytest.mark.parametrize("name", ["resnet-10", "wrn-10-1", "mnist-cnn"])
def test_float32(name):
    assert compare(name, "update") < 1e-4


def test_the_comparison_notices_a_small_error(x64):
    """The comparison notices one BatchNorm scale that is off by a hundredth."""
    classifier = models.create("wrn-10-1", image_shape=(8, 8, 3), num_classes=5)
    params, batch_stats = scattered(classifier)
    images = jnp.full((2, 8, 8, 3), 0.5)
    before, _ = classifier.apply(params, batch_stats, images, mode="running")
    params["block2"]["0"]["bn2"]["scale"] = params["block2"]["0"]["bn2"]["scale"].at[0].mul(1.01)
    after, _ = classifier.apply(params, batch_stats, images, mode="running")
    assert relative(after, np.asarray(before)) > 1e-6
