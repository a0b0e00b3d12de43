"""SVHN's .mat and .npz from tiny files, and the messages for files that are wrong."""

import struct
import zipfile

import data_writers as writers
import numpy as np
import pytest
from data_writers import fails

from awp_jax.data import DataError, load, read_npz

# --- SVHN


@pytest.mark.core
@pytest.mark.parametrize("compress", [True, False])
def test_svhn(tmp_path, compress):
    written = writers.write_svhn(tmp_path, compress)
    splits = load("svhn", path=tmp_path)
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(splits, split).images, written[split][0])
        np.testing.assert_array_equal(getattr(splits, split).labels, written[split][1])
        assert 0 in written[split][1] or split == "test"


def test_svhn_errors(tmp_path):
    from scipy.io import savemat

    writers.write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"
    good = path.read_bytes()
    images = np.zeros((32, 32, 3, 2), np.uint8)
    labels = np.array([[1], [10]], np.uint8)
    for contents, message in (
        ({"X": images}, "no array y"),
        ({"X": images[:31], "y": labels}, r"\(31, 32, 3, 2\)"),
        ({"X": images, "y": labels * 1.5}, "not float64"),
        ({"X": images, "y": labels - 1}, r"label 0 is not one of 1\.\.10"),
        ({"X": images, "y": labels[:1]}, "2 images have 1 labels"),
        ({"X": images, "y": "text"}, "something else than real numbers"),
        ({"X": images, "y": labels + 1j}, "something else than real numbers"),
    ):
        savemat(path, contents)
        fails("svhn", tmp_path, message)
    header = good[:128]
    for data, message in (
        (b"", "no MATLAB 5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "no MATLAB 5 file"),
        (good[:-1], "but ends at"),
        (good[:132], "ends inside an element"),
        (header + struct.pack("<II", 14, 2**32 - 8) + bytes(64), "declares 4294967288 bytes"),
        (header + struct.pack("<II", 15, 20) + bytes(20), "could not be read"),
        (header + struct.pack("<II", 9, 8) + bytes(8), "type 9, which is no array"),
        (header, "no array X"),
    ):
        path.write_bytes(data)
        fails("svhn", tmp_path, message)
    path.unlink()
    fails("svhn", tmp_path, "train_32x32.mat is missing")


# --- npz


@pytest.mark.core
def test_npz(tmp_path):
    images, labels = writers.random_examples(6, (5, 4, 3), classes=4)
    labels[0] = 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:2], "y_test": labels[:2]}
    splits = load("npz", path=writers.write_npz(tmp_path / "all.npz", **arrays))
    np.testing.assert_array_equal(splits.train.images, images)
    np.testing.assert_array_equal(splits.test.labels, labels[:2])
    assert splits.train.num_classes == splits.test.num_classes == 4
    writers.write_npz(tmp_path / "train.npz", images=images, labels=labels)
    writers.write_npz(tmp_path / "test.npz", images=images[:2], labels=labels[:2, None])
    splits = load("npz", path=tmp_path, num_classes=7)
    assert splits.train.num_classes == splits.test.num_classes == 7
    assert splits.test.labels.shape == (2,)
    single = read_npz(tmp_path / "train.npz")
    np.testing.assert_array_equal(single.images, images)
    splits = load("npz", path=tmp_path / "train.npz", test_examples=2)
    assert len(splits.train) == 4 and len(splits.test) == 2
    together = np.concatenate([splits.train.images, splits.test.images])
    assert {image.tobytes() for image in together} == {image.tobytes() for image in images}


@pytest.mark.core
@pytest.mark.parametrize("names", [("image", "label"), ("images", "labels"), ("x", "y")])
def test_npz_has_the_spellings_of_extra_images(tmp_path, names):
    images, labels = writers.random_examples(6, (5, 4, 3), classes=4)
    for name in ("train", "test"):
        path = writers.write_npz(
            tmp_path / f"{name}.npz", **dict(zip(names, (images, labels), strict=True))
        )
        np.testing.assert_array_equal(read_npz(path).labels, labels)
    assert len(load("npz", path=tmp_path).test) == 6
    splits = load("npz", path=path, test_examples=2)
    assert (len(splits.train), len(splits.test)) == (4, 2)
    writers.write_npz(path, **{names[0]: images})
    fails("npz", path, "has no labels; it needs .*image and label, or x and y", test_examples=2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ">f4"])
def test_npz_floats_and_grey_images(tmp_path, dtype):
    images = np.asfortranarray(np.linspace(0, 1, 40).reshape(2, 5, 4).astype(dtype))
    path = writers.write_npz(
        tmp_path / "a.npz", images=images, labels=np.arange(2), num_classes=np.int64(9)
    )
    dataset = read_npz(path)
    assert dataset.images.shape == (2, 5, 4, 1) and dataset.images.dtype == np.float32
    np.testing.assert_array_equal(dataset.images[..., 0], images.astype(np.float32))
    assert dataset.num_classes == 9


def npy(header, content=b""):
    header = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": None}, "has no images"),
        ({"labels": None}, "has no labels"),
        ({"labels": np.array([0.0, 1.0])}, "not float64"),
        ({"labels": np.array([0, -1])}, "label -1"),
        ({"labels": np.arange(3)}, "2 images have 3 labels"),
        ({"labels": np.array(["a", "b"])}, "not numbers"),
        ({"labels": np.array([None, {}])}, "not numbers"),
        ({"images": np.zeros((2, 3), np.uint8)}, r"\(2, 3\)"),
        ({"images": np.zeros((2, 3, 3, 1), np.int64)}, "not int64"),
        ({"images": np.full((2, 3, 3, 1), 1e300)}, "inf"),
        ({"num_classes": np.arange(2)}, "num_classes must be one integer"),
        ({"num_classes": np.int64(1)}, "label 1"),
        ({"images": b"text"}, "is no .npy array"),
        ({"images": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9**30,)}")}, "npy"),
        (
            {"images": npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**50},)}}")},
            "holds 0 bytes",
        ),
        (
            {"images": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1)}", b"x")},
            "holds 1 bytes",
        ),
    ],
)
def test_npz_errors(tmp_path, change, message):
    arrays = {"images": np.zeros((2, 3, 3, 1), np.uint8), "labels": np.arange(2)} | change
    path = tmp_path / "a.npz"
    plain = {key: a for key, a in arrays.items() if a is not None and not isinstance(a, bytes)}
    np.savez(path, **plain)
    with zipfile.ZipFile(path, "a") as archive:
        for key, value in arrays.items():
            if isinstance(value, bytes):
                archive.writestr(f"{key}.npy", value)
    with pytest.raises(DataError, match=message) as error:
        read_npz(path)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_npz_without_what_it_needs(tmp_path):
    fails("npz", None, "npz needs path")
    fails("npz", tmp_path, "train.npz is not a file")
    fails("npz", tmp_path / "no.npz", "does not exist")
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 not a zip file")
    fails("npz", path, "could not be read")
    images, labels = writers.random_examples(3, (4, 4, 1))
    writers.write_npz(path, images=images, labels=labels)
    fails("npz", path, "holds one split: give test_examples")
    fails("npz", path, "leave none", test_examples=3)
    writers.write_npz(path, x_train=images, y_train=labels)
    fails("npz", path, "has no x_test")
