"""Checks of arguments: one sentence each, naming the value."""

import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax import checks


@pytest.mark.core
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.031", 0.031),
        ("1e-3", 0.001),
        (0, 0.0),
        (1, 1.0),
        (Fraction(1, 4), 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
    ],
)
def test_radius_reads_numbers_and_fractions(value, expected):
    found = checks.radius(value)
    assert type(found) is float and found == expected


@pytest.mark.parametrize(
    "value",
    [-1, -0.1, "-8/255", float("nan"), float("inf"), "8/0", "eight", "", None, True, 1j, []],
)
def test_bad_radius_names_the_value(value):
    with pytest.raises(ValueError) as error:
        checks.radius(value, "gamma")
    message = str(error.value)
    assert message.startswith(f"gamma is {value!r}, but ") and message.count("\n") == 0
    assert error.value.__cause__ is None


def test_radius_above_one_warns():
    with pytest.warns(UserWarning, match="epsilon is 8, above 1: .* was 8/255 meant"):
        assert checks.radius(8) == 8.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checks.radius(12, "epsilon", "l1") == 12.0
        assert checks.radius(2, "epsilon", "l2") == 2.0
    with pytest.warns(UserWarning, match="epsilon is 128, above 16: .* was 128/255 meant"):
        checks.radius(128, "epsilon", "l2")


def test_radius_lets_arrays_and_tracers_through():
    array = jnp.float32(0.1)
    assert checks.radius(array) is array
    assert jax.jit(lambda value: checks.radius(value) * 2)(3.0) == 6.0


def test_positive_integer():
    assert checks.positive_integer(3, "steps") == 3
    assert type(checks.positive_integer(np.int32(3), "steps")) is int
    assert checks.positive_integer(0, "steps", minimum=0) == 0
    for value in (0, -1, 1.0, "3", True, None):
        with pytest.raises(ValueError, match="steps is .* integer of at least 1 was expected"):
            checks.positive_integer(value, "steps")


def test_choice_says_what_was_meant():
    assert checks.choice("l2", ("linf", "l2"), "norm") == "l2"
    with pytest.raises(ValueError) as error:
        checks.choice("linff", ("linf", "l2"), "norm")
    assert str(error.value) == "Unknown norm 'linff'; known: linf, l2. Did you mean 'linf'?"
    with pytest.raises(ValueError) as error:
        checks.choice("wasserstein", ("linf", "l2"), "norm")
    assert str(error.value) == "Unknown norm 'wasserstein'; known: linf, l2."
    with pytest.raises(ValueError, match="Unknown norm 'LINFF'.* Did you mean 'Linf'"):
        checks.choice("LINFF", ("Linf", "l2"), "norm")
    with pytest.raises(ValueError, match="Unknown norm 2"):
        checks.choice(2, ("linf", "l2"), "norm")


IMAGES, LABELS = jnp.full((2, 3, 3, 1), 0.5), jnp.array([0, 1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_good_batches_pass(dtype):
    checks.images_and_labels(IMAGES.astype(dtype), LABELS, 2)
    checks.images_and_labels(np.zeros((2, 4)), np.array([0, 9], np.uint8))
    checks.images_and_labels(jnp.array([[0.0, 1.0]]), jnp.array([1]), 2)


@pytest.mark.core
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES * 255, LABELS, r"images hold \[127.5, 127.5\]"),
        (IMAGES - 1, LABELS, r"images hold \[-0.5, -0.5\]"),
        (IMAGES.at[0, 0, 0, 0].set(jnp.nan), LABELS, "images hold NaN"),
        (IMAGES.at[0, 0, 0, 0].set(jnp.inf), LABELS, r"images hold \[0.5, inf\]"),
        ((IMAGES * 255).astype(jnp.uint8), LABELS, "dtype uint8.*divide uint8 images by 255"),
        (IMAGES, LABELS.astype(jnp.float32), "labels have dtype float32"),
        (IMAGES, LABELS == 0, "labels have dtype bool"),
        (IMAGES, LABELS[:1], r"shape \(2, 3, 3, 1\) and labels \(1,\)"),
        (IMAGES, jnp.eye(2, dtype=jnp.int32), r"labels \(2, 2\)"),
        (IMAGES[:0], LABELS[:0], "The batch is empty"),
        (IMAGES, LABELS - 1, r"labels lie in \[-1, 0\]"),
        (IMAGES, LABELS + 1, r"labels lie in \[1, 2\], but values from 0 to below 2"),
        (IMAGES.tolist(), LABELS, "must be arrays"),
        (jax.random.split(jax.random.key(0), 2), LABELS, "images have dtype key"),
    ],
)
def test_bad_batches(images, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        checks.images_and_labels(images, labels, 2)
    assert "\n" not in str(error.value)


def test_values_are_checked_while_something_else_is_traced():
    def traced(scale):
        checks.images_and_labels(IMAGES * 2 - 1 + 0 * scale, LABELS)  # traced: only shapes
        checks.images_and_labels(BAD, LABELS)
        return scale

    BAD = np.full((2, 3), 2.0)
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        jax.jit(traced)(1.0)


def test_shapes_are_checked_under_jit():
    def traced(images):
        checks.images_and_labels(images, LABELS)
        return images

    assert jax.jit(traced)(IMAGES * 255).shape == IMAGES.shape
    with pytest.raises(ValueError, match="labels"):
        jax.jit(traced)(IMAGES[:1])


def test_is_concrete():
    seen = []
    jax.jit(lambda x: seen.append(checks.is_concrete({"x": x, "y": 1})) or x)(1.0)
    assert seen == [False] and checks.is_concrete({"x": jnp.ones(2), "y": None})
