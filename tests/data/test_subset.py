"""Subsets keep the share of every class; statistics are those of the images."""

import numpy as np
import pytest

from awp_jax import data


def sorted_by_class(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Dataset(images, labels, len(counts), "sorted")


@pytest.mark.core
@pytest.mark.parametrize(
    ("counts", "examples", "expected"),
    [
        ((20, 20, 20), 6, [2, 2, 2]),
        ((20, 20, 20), 2, None),  # no class twice
        ((10, 30), 8, [2, 6]),
        ((0, 8, 24), 4, [0, 1, 3]),
    ],
)
def test_a_subset_of_a_sorted_file_has_every_class(counts, examples, expected):
    found = data.subset(sorted_by_class(*counts), examples)
    share = np.bincount(found.labels, minlength=len(counts))
    assert share.tolist() == expected if expected else sorted(share) == [0, 1, 1]


def test_a_subset_is_the_same_each_time_and_part_of_a_larger_one():
    whole = sorted_by_class(40, 25, 60)

    def chosen(examples, **seed):
        found = data.subset(whole, examples, **seed).images.ravel().tolist()
        assert found == sorted(found) and len(set(found)) == examples
        return found

    assert chosen(30) == chosen(30) != chosen(30, seed=1)
    assert set(chosen(10)) < set(chosen(30))
    assert max(chosen(30)) > 110  # not the first of each class
    for examples in (125, 200):
        assert data.subset(whole, examples) is whole
    with pytest.raises(ValueError, match="examples"):
        data.subset(whole, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_measured_statistics_are_those_of_numpy(dtype):
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (1500, 2, 2, 3)).astype(dtype)
    floats = np.float64(images) / 255
    images = images if dtype == np.uint8 else np.float32(floats)
    found = data.measured_statistics(data.Dataset(images, np.zeros(1500, int), 1, "some"))
    expected = floats.mean((0, 1, 2)), floats.std((0, 1, 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_constant_channel_has_no_statistics():
    images = np.zeros((3, 2, 2, 2), np.uint8)
    images[0, ..., 0] = 1
    with pytest.raises(data.DataError, match="channel 1 of the training images is constant"):
        data.measured_statistics(data.Dataset(images, np.zeros(3, int), 1, "some"))
