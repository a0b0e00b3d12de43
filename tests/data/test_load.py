"""Names, places and subsets."""

import data_writers as writers
import numpy as np
import pytest

from awp_jax.data import DataError, as_float, dataset_names, load


@pytest.fixture(autouse=True)
def no_default_folder(monkeypatch):
    monkeypatch.delenv("AWP_JAX_DATA", raising=False)


@pytest.mark.core
def test_digits():
    splits = load("digits")
    assert splits.train.images.shape == (1000, 8, 8, 1) and len(splits.test) == 797
    assert splits.validation is None and splits.train.num_classes == 10
    images = np.concatenate([splits.train.images, splits.test.images])
    assert as_float(images) is images and images.max() == 1
    np.testing.assert_array_equal(images * 16, np.round(images * 16))
    from sklearn.datasets import load_digits

    originals = {
        (image.tobytes(), label) for image, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    labels = np.concatenate([splits.train.labels, splits.test.labels])
    scaled = (images * 16).astype(np.float64).reshape(1797, -1)
    assert {(i.tobytes(), label) for i, label in zip(scaled, labels, strict=True)} == originals
    # The split is the same for everybody, whatever the seed.
    assert splits.test.labels[:5].tolist() == load("digits", seed=5).test.labels[:5].tolist()
    assert np.bincount(splits.test.labels, minlength=10).min() > 60


@pytest.mark.core
def test_subsets():
    whole = load("digits").train
    position = {image.tobytes(): index for index, image in enumerate(whole.images)}

    def indices(dataset):
        return [position[image.tobytes()] for image in dataset.images]

    assert len(position) == 1000
    small = load("digits", train_examples=100, validation_examples=50, test_examples=20)
    large = load("digits", train_examples=200, validation_examples=50)
    rest = load("digits", validation_examples=50)
    assert len(small.train) == 100 and len(small.validation) == 50 and len(rest.train) == 950
    assert indices(small.validation) == indices(large.validation) == indices(rest.validation)
    assert indices(small.train) == sorted(indices(small.train))
    assert set(indices(small.train)) < set(indices(large.train)) < set(indices(rest.train))
    assert not set(indices(rest.train)) & set(indices(rest.validation))
    assert rest.validation.name == "digits validation"
    other = load("digits", validation_examples=50, seed=1)
    assert indices(other.validation) != indices(rest.validation)
    assert np.bincount(small.test.labels).tolist() == [2] * 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train_examples": 1001}, "1000 training examples.*train_examples=1001"),
        ({"validation_examples": 1000}, "1000 training examples.*validation_examples=1000"),
        ({"train_examples": 600, "validation_examples": 401}, "600 and validation_examples=401"),
        ({"test_examples": 798}, "797 test examples.*798"),
        ({"train_examples": 0}, "train_examples"),
        ({"test_examples": 1.5}, "test_examples"),
        ({"validation_examples": -1}, "validation_examples"),
        ({"validation_examples": None}, "validation_examples"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"num_classes": 10}, "num_classes is only for npz"),
        ({"downsample": 0}, "downsample"),
        ({"downsample": 3}, "downsample is 3, but a divisor .* 8 x 8, was expected"),
    ],
)
def test_impossible_subsets(arguments, message):
    with pytest.raises(DataError, match=message):
        load("digits", **arguments)


def test_smaller_images(tmp_path):
    """Averages of blocks, as Pillow makes them; bytes stay bytes."""
    from PIL import Image

    writers.write_cifar(tmp_path, "cifar10", "binary")
    whole = load("cifar10", path=tmp_path, validation_examples=2)
    small = load("cifar10", path=tmp_path, validation_examples=2, downsample=4)
    for before, after in zip(vars(whole).values(), vars(small).values(), strict=True):
        assert after.images.shape[1:] == (8, 8, 3) and after.images.dtype == np.uint8
        np.testing.assert_array_equal(after.labels, before.labels)
        for image, smaller in zip(before.images, after.images, strict=True):
            for channel in range(3):
                peer = Image.fromarray(image[:, :, channel].astype(np.float32)).reduce(4)
                np.testing.assert_array_equal(smaller[:, :, channel], np.rint(np.asarray(peer)))
    floats, halved = load("digits").test.images, load("digits", downsample=2).test.images
    assert halved.dtype == np.float32
    np.testing.assert_allclose(halved.mean((1, 2)), floats.mean((1, 2)), rtol=1e-6)


@pytest.mark.core
def test_unknown_names():
    with pytest.raises(DataError, match="Unknown data set 'cifar-10': did you mean 'cifar10'"):
        load("cifar-10")
    with pytest.raises(DataError, match="known are digits, mnist"):
        load("zzzzzz")
    assert "svhn" in dataset_names()


def test_default_folder(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="svhn needs train_32x32.mat.*AWP_JAX_DATA.*svhn/"):
        load("svhn")
    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path))
    with pytest.raises(DataError, match="mnist needs .*does not exist"):
        load("mnist")
    writers.write_mnist(tmp_path / "mnist")
    assert len(load("mnist").train) == 7
    with pytest.raises(DataError, match="nowhere does not exist"):
        load("mnist", path=tmp_path / "nowhere")
