"""Checks of Dataset, and the conversion to floats."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.data import DataError, Dataset, as_float, statistics

IMAGES = np.zeros((3, 4, 5, 1), np.uint8)
LABELS = np.array([0, 1, 2], np.int64)


@pytest.mark.core
def test_dataset_converts_labels_and_is_frozen():
    dataset = Dataset(IMAGES, LABELS, 3, "toy")
    assert dataset.labels.dtype == np.int32 and dataset.images is IMAGES and len(dataset) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"
    part = dataset.select(slice(1, 3))
    assert part.labels.tolist() == [1, 2] and np.shares_memory(part.images, IMAGES)
    assert dataset.select(np.array([2, 0])).labels.tolist() == [2, 0]


@pytest.mark.core
@pytest.mark.parametrize(
    "images, labels, classes, message",
    [
        (IMAGES[..., 0], LABELS, 3, r"not of shape \(3, 4, 5\)"),
        (IMAGES[:0], LABELS[:0], 3, "non-empty"),
        (IMAGES[:, :0], LABELS, 3, "non-empty"),
        (IMAGES.astype(np.int32), LABELS, 3, "not int32"),
        (IMAGES.astype(np.float64), LABELS, 3, "not float64"),
        (np.full(IMAGES.shape, 1.5, np.float32), LABELS, 3, r"in \[1.5, 1.5\]"),
        (np.full(IMAGES.shape, -0.1, np.float32), LABELS, 3, "-0.1"),
        (np.full(IMAGES.shape, np.nan, np.float32), LABELS, 3, "nan"),
        (np.full(IMAGES.shape, np.inf, np.float32), LABELS, 3, "inf"),
        (IMAGES.tolist(), LABELS, 3, "not list"),
        (IMAGES, LABELS[:2], 3, "3 images have 2 labels"),
        (IMAGES, LABELS, 2, r"label 2 is not one of 0\.\.1"),
        (IMAGES, LABELS - 1, 3, "label -1"),
        (IMAGES, LABELS.astype(np.float32), 3, "not float32"),
        (IMAGES, LABELS + 2**32, 3, "label 4294967298"),
        (IMAGES, LABELS[:, None], 3, r"\(3, 1\)"),
        (IMAGES, LABELS.tolist(), 3, "list"),
        (IMAGES, LABELS, 0, "num_classes"),
        (IMAGES, LABELS, 3.0, "num_classes"),
        (IMAGES, LABELS, True, "num_classes"),
    ],
)
def test_dataset_says_in_one_sentence_what_is_wrong(images, labels, classes, message):
    with pytest.raises(DataError, match=message) as error:
        Dataset(images, labels, classes, "toy")
    assert isinstance(error.value, ValueError)
    assert str(error.value).startswith("toy: ") and str(error.value).endswith(".")


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_as_float_is_exact_division_in_numpy_and_jit(dtype):
    values = np.arange(256, dtype=np.uint8)
    exact = (values.astype(np.float32) / np.float32(255)).astype(jnp.dtype(dtype))
    for floats in (
        as_float(values, dtype),
        as_float(jnp.asarray(values), dtype),
        jax.jit(lambda x: as_float(x, dtype))(values),
    ):
        assert floats.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(floats), exact)


def test_as_float_in_float64(x64):
    values = np.arange(256, dtype=np.uint8)
    floats = jax.jit(lambda x: as_float(x, jnp.float64))(values)
    assert floats.dtype == jnp.float64
    np.testing.assert_array_equal(np.asarray(floats), values / 255)


def test_as_float_leaves_floats_alone():
    floats = np.linspace(0, 1, 5, dtype=np.float32)
    assert as_float(floats) is floats
    assert isinstance(as_float(np.zeros(2, np.uint8)), np.ndarray)
    assert as_float(jnp.asarray(floats), jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="not int32"):
        as_float(np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="not int8"):
        as_float(np.zeros(2, np.uint8), np.int8)


def test_statistics():
    mean, std = statistics("cifar10")
    assert mean == (0.4914, 0.4822, 0.4465) and std == (0.2471, 0.2435, 0.2616)
    assert statistics("svhn") == ((0.5,) * 3, (0.5,) * 3)
    assert len(statistics("cifar100")[0]) == 3
    with pytest.raises(DataError, match="cifar11"):
        statistics("cifar11")
