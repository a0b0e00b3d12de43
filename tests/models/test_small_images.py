"""Convolutions of few pixels: the numbers of plain ones, and none in plain loops on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from awp_jax import models
from awp_jax.models.small_images import convolution

RANDOM = np.random.default_rng(0)
NHWC = ("NHWC", "HWIO", "NHWC")
# Height and width, kernel, stride, padding.
SMALL = [
    ((2, 2), 3, 1, ((1, 1), (1, 1))),
    ((2, 2), 3, 2, ((1, 1), (1, 1))),
    ((1, 1), 3, 1, ((1, 1), (1, 1))),
    ((4, 4), 3, 2, ((1, 1), (1, 1))),  # leaves 2 x 2
    ((4, 3), 3, 2, ((0, 1), (1, 0))),
    ((3, 5), 4, 2, ((2, 1), (1, 1))),
]
LARGE = [((8, 8), 3, 1, ((1, 1), (1, 1))), ((2, 2), 1, 2, ((0, 0), (0, 0)))]


def both(stride, padding, **settings):
    given = dict(strides=(stride, stride), padding=padding, dimension_numbers=NHWC, **settings)
    ours = functools.partial(convolution, **given)
    given["window_strides"] = given.pop("strides")
    return ours, functools.partial(lax.conv_general_dilated, **given)


def given(shape, size, groups=1):
    images = jnp.asarray(RANDOM.normal(size=(3, *shape, 4)))
    return images, jnp.asarray(RANDOM.normal(size=(size, size, 4 // groups, 6)))


@pytest.mark.core
@pytest.mark.parametrize(("shape", "size", "stride", "padding"), SMALL + LARGE)
def test_values_and_derivatives_are_those_of_a_plain_one(x64, shape, size, stride, padding):
    ours, plain = both(stride, padding)
    images, kernel = given(shape, size)

    def all_of(conv):
        loss = lambda x, k: (jnp.tanh(conv(x, k)) ** 2).sum()  # noqa: E731
        gradient = jax.grad(loss, argnums=(0, 1))
        along = (jnp.cos(images), jnp.sin(kernel))
        second = jax.jvp(gradient, (images, kernel), along)[1]
        forward = jax.jvp(conv, (images, kernel), along)[1]
        return conv(images, kernel), gradient(images, kernel), second, forward

    for a, b in zip(jax.tree.leaves(all_of(ours)), jax.tree.leaves(all_of(plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
    mapped = jax.vmap(ours, (None, 0))(images, jnp.stack([kernel, -kernel]))
    np.testing.assert_allclose(mapped[1], -mapped[0], atol=1e-12)


@pytest.mark.parametrize(
    "settings", [{"feature_group_count": 2}, {"rhs_dilation": (2, 2)}], ids=str
)
def test_groups_and_dilations_stay(x64, settings):
    ours, plain = both(1, ((2, 2), (2, 2)), **settings)
    images, kernel = given((2, 2), 3, settings.get("feature_group_count", 1))
    np.testing.assert_array_equal(ours(images, kernel), plain(images, kernel))


def gradient_of(name, platform):
    classifier = models.create(name, image_shape=(8, 8, 1), num_classes=10, width=8)
    params, stats = jax.eval_shape(classifier.init, jax.random.key(0))

    def loss(params, stats, images):
        logits, _ = classifier.apply(params, stats, images, mode="update")
        return logits.sum()

    images = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    traced = jax.jit(jax.grad(loss, argnums=(0, 2))).trace(params, stats, images)
    return traced.lower(lowering_platforms=(platform,))


def test_no_convolution_of_digits_is_reversed_on_a_cpu():
    """XLA marks so what it has swapped, which no library computes."""
    text = gradient_of("preact-resnet-10", "cpu").compile().as_text()
    assert " convolution(" in text and "rhs_reversal" not in text


def test_other_devices_have_plain_convolutions():
    text = gradient_of("preact-resnet-10", "cuda").as_text()
    plain = gradient_of("preact-resnet-10", "cpu").as_text()
    # The stem and 11 of blocks and shortcuts, each forward and in both its derivatives.
    assert text.count("stablehlo.convolution") == 3 * 12 > plain.count("stablehlo.convolution")
