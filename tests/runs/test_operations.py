"""Floating-point operations, against counts by hand and published ones."""

import json

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


def described(what="operations", **changes):
    config = default()
    config.data.name, config.data.path = "digits", None
    config.model.name, config.model.normalize = "linear", False
    config.batch_size, config.data.validation_examples = 10, 100
    for path, value in changes.items():
        group, _, key = path.partition("_")
        config[group][key] = value
    return getattr(runs.describe(training.build(config)), what)


def test_a_step_of_each_kind():
    """PGD-10's passes, those of AWP's steps, and the descent."""
    one = 2 * 64 * 10
    assert described(weights_method="none")["forward"] == one
    # A gradient by images takes forward and backward, one by weights of a single layer, too.
    assert described(weights_method="none")["step"] == 10 * one * (10 * 2 + 2)
    assert described()["step"] == 10 * one * (10 * 2 + 2 + 2)
    # An attack of one step, whatever attack.steps says of PGD.
    assert described(attack_name="n-fgsm")["step"] == 10 * one * (2 + 2 + 2)
    # Nor of free adversarial training, whose one way back is to weights and images.
    assert described(attack_name="free")["step"] == 10 * one * (2 + 3)
    assert described(objective_name="trades")["step"] == 10 * one * (10 * 2 + 4 + 4)
    assert described(objective_name="natural", weights_method="none")["step"] == 10 * one * 2
    assert described(weights_method="random")["step"] == 10 * one * (10 * 2 + 2)
    # In parts AWP costs what it did; RWP's K2 = 10 steps have a forward pass more.
    assert described(optimizer_micro_batches=5)["step"] == described()["step"]
    assert described(weights_method="rwp")["step"] == 10 * one * (10 * 2 + 20 + 2)
    parts = described(weights_method="rwp", optimizer_micro_batches=5)
    assert parts["step"] == 10 * one * (10 * 2 + 30 + 2)


def test_gradients_that_are_aligned_are_counted():
    """Forward and backward of two images, and the way back through both to the weights."""
    one, changes = 2 * 64 * 10, {"attack_name": "n-fgsm", "weights_method": "none"}
    plain = described(**changes)["step"]
    aligned = described(**changes, objective_gradient_alignment=0.2)["step"]
    # Each is 2 passes; the backward pass of a backward pass has two products for each of its one,
    # and the forward pass has one more.
    assert aligned - plain == 10 * one * 2 * (2 + 2 + 1)


def test_parts_keep_less_for_the_backward_pass():
    """One hidden layer of 128: what it keeps grows with the images of a part."""

    def kept(parts):
        memory = described("memory", model_name="mlp", optimizer_micro_batches=parts)
        (key,) = [key for key in memory if key.startswith("kept for")]
        return key, memory[key]

    (whole, most), (part, least) = kept(1), kept(5)
    assert whole == "kept for the backward pass of 10 images"
    assert part == "kept for the backward pass of 2 images, one of 5 parts of a batch"
    assert least == pytest.approx(most / 5, rel=0.01)


def test_a_teacher_is_counted_while_it_is_there(tmp_path):
    config = default()
    config.data.name, config.data.validation_examples = "digits", 100
    config.model.name, config.model.normalize = "linear", False
    config.objective.name, config.weights.method, config.batch_size = "natural", "none", 10
    files = tmp_path / "teacher"
    files.mkdir()
    (files / "config.json").write_text(json.dumps(training.plain(config)))
    config.objective.name, config.objective.teacher = "ard", str(files)

    def found():
        return runs.describe(training.build(config))

    one = 2 * 64 * 10
    assert found().operations["step"] == 10 * one * (10 * 2 + 2 * 2 + 1)
    assert found().memory["teacher, linear"] == 4 * 650
    (files / "config.json").unlink()
    assert found().operations["step"] == 10 * one * (10 * 2 + 2 * 2)
    assert found().memory["teacher, which is not there and not counted"] == 0
