"""Floating-point operations, against counts by hand and published ones."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from awp_jax import models, runs, training
from awp_jax.config import default
from awp_jax.runs._operations import operations


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolved(x, kernel, stride=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_products_and_convolutions_by_hand():
    assert operations(jnp.matmul, shaped(3, 4), shaped(4, 5)) == 2 * 3 * 4 * 5
    assert operations(jnp.matmul, shaped(2, 3, 4), shaped(2, 4, 5)) == 2 * 2 * 3 * 4 * 5
    forward = 2 * (2 * 4 * 4) * 6 * (2 * 2 * 3)  # outputs, their channels, the window
    images, kernel = shaped(2, 8, 8, 3), shaped(2, 2, 3, 6)
    assert operations(lambda x, k: convolved(x, k, 2), images, kernel) == forward
    depthwise = lambda x, k: convolved(x, k, groups=3)  # noqa: E731
    assert operations(depthwise, images, shaped(3, 3, 1, 3)) == 2 * (2 * 6 * 6) * 3 * 9


def test_a_backward_pass_takes_as_much_as_the_forward_pass():
    images, kernel = shaped(2, 8, 8, 3), shaped(2, 2, 3, 6)
    strided = lambda x, k: jnp.square(convolved(x, k, 2)).sum()  # noqa: E731
    forward = operations(strided, images, kernel)
    for which in (0, 1):
        assert operations(jax.grad(strided, which), images, kernel) == 2 * forward


def test_loops_branches_and_functions_inside():
    x = shaped(4, 4)
    square = lambda x: x @ x  # noqa: E731
    loop = lambda x: lax.fori_loop(0, 7, lambda _, x: square(x), x)  # noqa: E731
    assert operations(loop, x) == 7 * operations(square, x)
    either = lambda x: lax.cond(x[0, 0] > 0, square, lambda x: x, x)  # noqa: E731
    assert operations(either, x) == operations(square, x) == operations(jax.jit(square), x)
    again = jax.grad(jax.checkpoint(lambda x: jnp.sin(square(jnp.sin(square(x)))).sum()))
    assert operations(again, x) > operations(jax.grad(lambda x: square(square(x)).sum()), x)


@pytest.mark.parametrize(
    ("name", "expected"),
    # Multiply-adds as torchvision publishes them with its weights.
    [("imagenet-resnet-18", 1.81e9), ("imagenet-resnet-50", 4.09e9), ("convnext-t", 4.46e9)],
)
def test_published_numbers(name, expected):
    classifier = models.create(name, image_shape=(224, 224, 3), num_classes=1000)
    state = jax.eval_shape(classifier.init, jax.random.key(0))
    forward = lambda *state_and_images: classifier.apply(*state_and_images, mode="running")[0]  # noqa: E731
    assert operations(forward, *state, shaped(1, 224, 224, 3)) / 2 == pytest.approx(expected, 3e-3)


def described(**changes):
    config = default()
    config.data.name, config.data.path = "digits", None
    config.model.name, config.model.normalize = "linear", False
    config.batch_size, config.data.validation_examples = 10, 100
    for path, value in changes.items():
        group, _, key = path.partition("_")
        config[group][key] = value
    return runs.describe(training.build(config)).operations


def test_a_step_of_each_kind():
    """PGD-10's passes, those of AWP's steps, and the descent."""
    one = 2 * 64 * 10
    assert described(weights_method="none")["forward"] == one
    # A gradient by images takes forward and backward, one by weights of a single layer, too.
    assert described(weights_method="none")["step"] == 10 * one * (10 * 2 + 2)
    assert described()["step"] == 10 * one * (10 * 2 + 2 + 2)
    # An attack of one step, whatever attack.steps says of PGD.
    assert described(attack_name="n-fgsm")["step"] == 10 * one * (2 + 2 + 2)
    assert described(objective_name="trades")["step"] == 10 * one * (10 * 2 + 4 + 4)
    assert described(objective_name="natural", weights_method="none")["step"] == 10 * one * 2
