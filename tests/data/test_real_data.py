"""The real MNIST and CIFAR-10."""

import pickle

import data_writers as writers
import numpy as np
import pytest

from awp_jax.data import as_float, load, statistics


def test_mnist(data_root):
    folder = data_root / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST in {folder}")
    splits = load("mnist", path=folder)
    assert splits.train.images.shape == (60_000, 28, 28, 1)
    assert splits.test.images.shape == (10_000, 28, 28, 1)
    assert splits.train.labels[:4].tolist() == [5, 0, 4, 1]
    assert splits.test.labels[:4].tolist() == [7, 2, 1, 0]
    counts = np.bincount(splits.train.labels)
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(as_float(splits.train.images).mean() - 0.1307) < 1e-4


@pytest.fixture(scope="module")
def cifar10(cifar10_dir):
    return load("cifar10", path=cifar10_dir)


def test_cifar10(cifar10):
    assert cifar10.train.images.shape == (50_000, 32, 32, 3)
    assert cifar10.test.images.shape == (10_000, 32, 32, 3)
    assert cifar10.test.labels[:4].tolist() == [3, 8, 8, 0]
    assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar10.test.labels).tolist() == [1000] * 10
    mean, _ = statistics("cifar10")
    np.testing.assert_allclose(cifar10.train.images.mean((0, 1, 2)) / 255, mean, atol=1e-4)


def test_cifar10_is_what_the_pickles_say(cifar10, cifar10_dir):
    # The files' MD5 sums were checked when they were restored.
    with (cifar10_dir / "test_batch").open("rb") as file:
        batch = pickle.load(file, encoding="bytes")
    planar = batch[b"data"].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(cifar10.test.images, planar.transpose(0, 2, 3, 1))
    assert cifar10.test.labels.tolist() == batch[b"labels"]


def test_cifar10_binary_equals_python(cifar10, tmp_path):
    # The first 1,000 images of each file: the rest only takes time.
    starts = range(0, 50_000, 10_000)
    parts = [cifar10.train.select(slice(start, start + 1000)) for start in starts]
    parts.append(cifar10.test.select(slice(1000)))
    for name, part in zip(writers.CIFAR_FILES["cifar10"], parts, strict=True):
        data = writers.cifar_binary(part.images, part.labels.astype(np.uint8), "cifar10")
        assert len(data) == 30_730_000 // 10  # a tenth of what is published
        (tmp_path / f"{name}.bin").write_bytes(data)
    binary = load("cifar10", path=tmp_path)
    np.testing.assert_array_equal(
        binary.train.images, np.concatenate([p.images for p in parts[:5]])
    )
    np.testing.assert_array_equal(
        binary.train.labels, np.concatenate([p.labels for p in parts[:5]])
    )
    np.testing.assert_array_equal(binary.test.images, parts[5].images)
    np.testing.assert_array_equal(binary.test.labels, parts[5].labels)
