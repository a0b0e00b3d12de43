"""Names, sizes, options, and initial values."""

import re
from itertools import filterfalse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from longer import some

from awp_jax import models

CIFAR = {"image_shape": (32, 32, 3), "num_classes": 10}
MNIST = {"image_shape": (28, 28, 1), "num_classes": 10}
DIGITS = {"image_shape": (8, 8, 1), "num_classes": 10}


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "shapes", "count"),
    [
        ("preact-resnet-18", CIFAR, 11_172_170),  # the released AWP code
        ("resnet-18", CIFAR, 11_173_962),  # kuangliu/pytorch-cifar
        ("wrn-34-10", CIFAR, 46_160_474),  # TRADES
        ("wrn-28-10", CIFAR, 36_479_194),  # RST
        ("dm-wrn-28-10", CIFAR, 36_479_194),
        ("dm-wrn-70-16", CIFAR, 266_796_506),
        ("dm-wrn-94-16", CIFAR, 365_915_610),
        ("ra-wrn-70-16", CIFAR, 267_240_802),
        ("wrn-a4", CIFAR, 147_291_738),
        ("dm-preact-resnet-18", CIFAR, 12_548_426),
        ("vgg-11", CIFAR, 9_231_114),
        ("vgg-19", CIFAR, 20_040_522),
        ("mnist-cnn", MNIST, 312_202),  # TRADES
        ("mlp", DIGITS, 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        ("linear", DIGITS, 650),
    ],
)
def test_parameter_counts(name, shapes, count):
    params, _ = jax.eval_shape(models.create(name, **shapes).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


# Differ from others by depth and width alone.
LARGER = re.compile(r"-(34|101|152|[bl])(-|$)|convnext-s|-[ml]12|mean-sparse-(ra|convnext)")


@pytest.mark.parametrize(
    "name", some(models.names(), set(filterfalse(LARGER.search, models.names())))
)
def test_every_name_can_be_created(name):
    shapes = MNIST if name == "mnist-cnn" else CIFAR
    classifier = models.create(name, **shapes)
    assert classifier.name == name
    logits, _ = jax.eval_shape(
        lambda key, images: classifier.apply(*classifier.init(key), images, mode="running"),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, *shapes["image_shape"]), jnp.float32),
    )
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32


@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_activations(activation):
    classifier = models.create("mlp", **DIGITS, depth=1, width=4, activation=activation)
    params, _ = classifier.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    layer = params["hidden"]["0"]
    expected = models.ACTIVATIONS[activation](
        images.reshape(2, 64) @ layer["kernel"] + layer["bias"][None]
    )
    np.testing.assert_allclose(classifier.features(params, {}, images), expected, atol=1e-6)


def test_gelu_is_the_exact_one():
    x = np.float32(1.5)
    np.testing.assert_allclose(models.ACTIVATIONS["gelu"](x), 1.3997892, rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("preact-resnt-18", {}, "Did you mean 'preact-resnet-18'"),
        ("preact-resnet-19", {}, "depth 10, 18 or 34, got 19"),
        ("resnet-50", {}, "depth 10, 18 or 34, got 50"),
        ("wrn-33-10", {}, r"depth 6n \+ 4 .*got 33"),
        ("wrn-34-0", {}, "at least 1, got 0"),
        ("vgg-12", {}, "depth 11, 13, 16 or 19, got 12"),
        ("vgg-11", {"image_shape": (28, 28, 1)}, r"at least 32x32.*\(28, 28, 1\)"),
        ("mnist-cnn", {"image_shape": (8, 8, 1)}, "16x16"),
        ("imagenet-resnet-20", {}, "depths 18, 34, 50, 101, 152, got 20"),
        ("imagenet-wrn-34-2", {}, "bottlenecks can be wide, got depth 34"),
        ("imagenet-wrn-50-0", {}, "at least 1, got 0|is 0"),
        ("imagenet-resnet-50", {"widen": 2}, "option of imagenet-resnet-50 'widen'"),
        ("convnext-t", {"image_shape": (28, 28, 3)}, r"at least 32x32.*\(28, 28, 3\)"),
        ("convnext-t-convstem", {"width": 6}, "multiple of 4 with a ConvStem, got 6"),
        ("convnext-t", {"blocks": (1, 1)}, "option of convnext-t 'blocks'"),
        ("vit-s", {"image_shape": (32, 24, 3)}, r"multiples of the patch, 16, got .*\(32, 24, 3\)"),
        ("vit-s", {"width": 100}, "multiple of the 6 heads, got 100"),
        ("vit-s", {"heads": 0}, "heads is 0|at least 1"),
        ("vit-s-convstem", {"image_shape": (36, 36, 3), "patch": 12}, "power of two.*got 12"),
        ("xcit-s12", {"width": 100}, "multiple of 8 and of the 8 heads, got 100"),
        ("xcit-s12-p8", {}, "Did you mean 'xcit-s12-p4'"),
        ("xcit-s12", {"image_shape": (40, 40, 3)}, r"multiples of the patch, 16, got"),
        ("mlp", {"depth": -1}, "-1"),
        ("mlp", {"activation": "rlu"}, "Did you mean 'relu'"),
        ("mlp", {"widht": 3}, "option of mlp 'widht'.*Did you mean 'width'"),
        ("wrn-34-10", {"width": 3}, "option of wrn-34-10 'width'"),
        ("wrn-10-1", {"dropout": 1.0}, r"\[0, 1\), got 1.0"),
        ("mlp", {"dtype": "float64"}, "cast the parameters"),
        ("mlp", {"dtype": "int8"}, "compute dtype 'int8'"),
        ("resnet-10", {"batch_norm_groups": 0}, "batch_norm_groups is 0"),
        ("mlp", {"mean": (0.5,)}, "one value per channel"),
        ("mlp", {"std": (1, 0, 1)}, "positive"),
        ("mlp", {"image_shape": (8, 8)}, r"\(height, width, channels\)"),
        ("mlp", {"num_classes": 0}, "num_classes"),
    ],
)
def test_errors_say_what_was_meant(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **{**CIFAR, **options})


def uniform(values, bound):
    """Bounded, and with the deviation and mean of the uniform distribution."""
    values = np.asarray(values).ravel()
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > bound * (1 - 20 / values.size)
    tolerance = 6 / np.sqrt(values.size)
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=tolerance)
    np.testing.assert_allclose(values.mean(), 0, atol=bound * tolerance)


def normal(values, variance):
    values = np.asarray(values).ravel()
    tolerance = 6 / np.sqrt(values.size)
    np.testing.assert_allclose(values.std(), variance**0.5, rtol=tolerance)
    np.testing.assert_allclose(values.mean(), 0, atol=variance**0.5 * tolerance)
    assert np.abs(values).max() > 2.5 * variance**0.5


def init(name, shapes, **options):
    return jax.jit(models.create(name, **shapes, **options).init)(jax.random.key(0))


@pytest.mark.parametrize("name", ["preact-resnet-10", "resnet-10"])
def test_residual_networks_start_as_pytorch_does(name):
    params, batch_stats = init(name, CIFAR, width=16)
    uniform(params["conv1"]["kernel"], (9 * 3) ** -0.5)
    uniform(params["layer3"]["0"]["conv2"]["kernel"], (9 * 64) ** -0.5)
    uniform(params["linear"]["kernel"], 128**-0.5)
    assert np.abs(params["linear"]["bias"]).max() <= 128**-0.5
    assert np.all(np.asarray(params["linear"]["bias"]) != 0)
    assert "bias" not in params["conv1"]
    norm = params["layer2"]["0"]["bn1"]
    assert np.all(norm["scale"] == 1) and np.all(norm["bias"] == 0)
    stats = batch_stats["layer2"]["0"]["bn1"]
    assert np.all(stats["mean"] == 0) and np.all(stats["var"] == 1)


def test_vgg_starts_as_pytorch_does():
    params, _ = init("vgg-11", CIFAR, width=8)
    uniform(params["conv"]["3"]["kernel"], (9 * 32) ** -0.5)
    uniform(params["conv"]["7"]["bias"], (9 * 64) ** -0.5)


def test_wide_resnet_starts_as_trades_does():
    params, _ = init("wrn-10-2", CIFAR)
    normal(params["conv1"]["kernel"], 2 / (9 * 16))
    normal(params["block3"]["0"]["conv1"]["kernel"], 2 / (9 * 128))
    normal(params["block2"]["0"]["shortcut"]["kernel"], 2 / 64)
    uniform(params["fc"]["kernel"], 128**-0.5)
    assert not np.any(params["fc"]["bias"])


def test_mnist_cnn_starts_as_trades_does():
    params, _ = init("mnist-cnn", MNIST)
    normal(params["conv3"]["kernel"], 2 / (9 * 32))
    assert not np.any(params["conv3"]["bias"])
    uniform(params["fc1"]["kernel"], 1024**-0.5)
    assert not np.any(params["fc3"]["kernel"]) and not np.any(params["fc3"]["bias"])
