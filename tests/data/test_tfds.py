"""TensorFlow Datasets, mocked."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from image_files import write_folders, write_records

from awp_jax.data import DataError, Decoding, load, prepare_tfds
from awp_jax.extras import MissingExtraError

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")


@pytest.fixture(autouse=True)
def no_default_folder(monkeypatch):
    monkeypatch.delenv("AWP_JAX_DATA", raising=False)


def test_mocked_data_without_tensorflow():
    with tfds.testing.mock_data(num_examples=6):
        splits = load("tfds:cifar10", train_examples=3, validation_examples=2, test_examples=4)
    assert splits.train.images.shape == (3, 32, 32, 3) and splits.train.images.dtype == np.uint8
    assert len(splits.validation) == 2 and len(splits.test) == 4
    assert splits.test.num_classes == 10 and splits.test.name == "tfds:cifar10 test"
    if importlib.util.find_spec("tensorflow") is None:
        assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name, classes", [("mnist", 10), ("cifar100", 100)])
def test_other_sets(name, classes):
    with tfds.testing.mock_data(num_examples=2):
        assert load(f"tfds:{name}").train.num_classes == classes


def test_unprepared_unknown_and_unfit_sets(tmp_path):
    with pytest.raises(DataError, match=r"prepare_tfds\('cifar10', data_dir\) makes it"):
        load("tfds:cifar10", path=tmp_path)
    with pytest.raises(DataError, match="cannot load 'cifar11'") as error:
        load("tfds:cifar11", path=tmp_path)
    assert len(str(error.value)) < 200
    with pytest.raises(DataError, match="no image and class label"):
        load("tfds:imdb_reviews", path=tmp_path)
    with pytest.raises(DataError, match="Unknown data set 'tfds:'"):
        load("tfds:")


def test_damaged_records(monkeypatch):
    with tfds.testing.mock_data(num_examples=2):
        monkeypatch.setattr(tfds, "data_source", lambda *args, **kwargs: [{"image": 1}])
        with pytest.raises(DataError, match="split 'train', could not be read"):
            load("tfds:cifar10")


def test_preparing_asks_for_array_record(tmp_path, monkeypatch):
    calls = []

    class Builder:
        def download_and_prepare(self):
            calls.append("prepared")

    def builder(name, **arguments):
        calls.append((name, arguments))
        return Builder()

    monkeypatch.setattr(tfds, "builder", builder)
    prepare_tfds("cifar10", tmp_path)
    arguments = {"data_dir": str(tmp_path), "file_format": "array_record"}
    assert calls == [("cifar10", arguments), "prepared"]


def test_images_of_any_size_stay_in_their_shards(tmp_path, monkeypatch):
    pytest.importorskip("array_record")
    pytest.importorskip("google.protobuf")
    folders = write_folders(tmp_path / "folders")
    root = write_records(folders, tmp_path / "records")
    features = {
        "image": types.SimpleNamespace(shape=(None, None, 3)),
        "label": types.SimpleNamespace(num_classes=3),
    }
    files = {name: sorted(root.glob(f"*{name}*")) for name in ("train", "validation")}
    parts = {name: types.SimpleNamespace(filepaths=found) for name, found in files.items()}
    info = types.SimpleNamespace(features=features, splits=parts)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: types.SimpleNamespace(info=info))
    decoding = Decoding(16, 20)
    found = load("tfds:imagenet2012", decoding=decoding)
    expected = load("images", path=folders, decoding=decoding)
    for one, other in ((found.train, expected.train), (found.test, expected.test)):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images[:], other.images[:])
    assert found.train.num_classes == 3 and found.test.name == "tfds:imagenet2012 validation"
    parts["train"].filepaths = [tmp_path / "imagenet-train.tfrecord-00000-of-00001"]
    with pytest.raises(DataError, match="has no split 'train' in the array_record format"):
        load("tfds:imagenet2012")


def test_without_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for call in (lambda: load("tfds:cifar10"), lambda: prepare_tfds("cifar10")):
        with pytest.raises(MissingExtraError, match=r"needs .* pip install .awp_jax\[tfds\]"):
            call()
