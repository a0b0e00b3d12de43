"""Extra images: every way to name them, rows read from files, and what is refused."""

import pickle
import subprocess
import sys
import zipfile

import data_writers as writers
import numpy as np
import pytest
from damage import ROUNDS, damaged

from awp_jax import data
from awp_jax.data import DataError, _entries, open_extra, open_images
from awp_jax.data._rows import FileRows, JoinedRows

IMAGES, LABELS = writers.random_examples(20, (5, 4, 3))
SOME = np.array([19, 0, 7, 7], np.int32)


def saved(path, **arrays):
    arrays = arrays or {"image": IMAGES, "label": LABELS}
    (np.save if path.suffix == ".npy" else np.savez)(path, *arrays.pop("bare", ()), **arrays)
    return path


def check(found, images=IMAGES, labels=LABELS):
    assert len(found) == len(found.images) == len(images)
    assert (found.images.shape, found.images.nbytes) == (images.shape, images.nbytes)
    np.testing.assert_array_equal(found.images[SOME], images[SOME])
    np.testing.assert_array_equal(found.images[3:9], images[3:9])
    np.testing.assert_array_equal(found.images[9:3:-2], images[9:3:-2])
    assert found.images[:0].shape == (0, *images.shape[1:])
    assert found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, labels)
    whole = found.in_memory()
    np.testing.assert_array_equal(whole.images, images)
    assert whole.labels.dtype == np.int32


@pytest.mark.core
@pytest.mark.parametrize("names", ["image label", "images labels", "x y"])
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "u1"])
def test_rows_are_read_from_the_file(tmp_path, names, dtype):
    arrays = dict(zip(names.split(), (IMAGES, LABELS[:, None].astype(dtype)), strict=True))
    found = open_extra(saved(tmp_path / "a.npz", **arrays), num_classes=10)
    assert isinstance(found.images, FileRows)
    check(found)


@pytest.mark.core
def test_images_of_one_channel_need_no_axis_for_it(tmp_path):
    found = open_images(saved(tmp_path / "a.npy", bare=(IMAGES[..., 0],)))
    assert isinstance(found, FileRows)
    np.testing.assert_array_equal(found[SOME], IMAGES[SOME][..., :1])


@pytest.mark.core
def test_several_files_are_one(tmp_path):
    """Of several kinds: in the file, compressed, with labels of their own, a pickle."""
    saved(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", image=IMAGES[:7], label=LABELS[:7])
    saved(tmp_path / "c.npy", bare=(IMAGES[7:],))
    saved(tmp_path / "labels.npy", bare=(LABELS[7:],))
    contents = {"data": IMAGES[:3], "extrapolated_targets": LABELS[:3]}
    (tmp_path / "d.pickle").write_bytes(pickle.dumps(contents))
    inside = [tmp_path / name for name in ("a.npz", "b.npz", "d.pickle")]
    found = open_extra(inside, num_classes=10)
    assert isinstance(found.images, JoinedRows)
    check(
        found,
        np.concatenate([IMAGES, IMAGES[:7], IMAGES[:3]]),
        np.concatenate([LABELS, LABELS[:7], LABELS[:3]]),
    )
    pair = [tmp_path / "b.npz", tmp_path / "c.npy"]
    beside = [tmp_path / "b.npz", tmp_path / "labels.npy"]
    check(open_extra(pair, beside, num_classes=10))


@pytest.mark.core
def test_behind_a_training_set_bytes_become_its_floats(tmp_path):
    extra = open_extra(saved(tmp_path / "a.npz"), num_classes=10)
    floats = data.as_float(IMAGES[:4])
    train = data.Dataset(floats, LABELS[:4].astype(np.int32), 10, "train")
    both = data.joined(train, extra)
    assert both.images.dtype == np.float32 and both.labels.dtype == np.uint8
    expected = np.concatenate([floats, data.as_float(IMAGES)])
    np.testing.assert_array_equal(both.images[:], expected)
    np.testing.assert_array_equal(both.in_memory().images, expected)
    train = data.Dataset(IMAGES[:4], LABELS[:4].astype(np.int32), 10, "train")
    assert data.joined(train, extra).images.dtype == np.uint8


@pytest.mark.parametrize(
    "images", [np.asfortranarray(IMAGES), IMAGES / 255.0, (IMAGES / 255.0).astype(np.float32)]
)
def test_what_cannot_be_read_by_rows_is_read_whole(tmp_path, images, monkeypatch):
    path = saved(tmp_path / "a.npz", image=images, label=LABELS)
    found = open_extra(path, num_classes=10)
    expected = images.astype(np.float32) if images.dtype != np.uint8 else images
    np.testing.assert_array_equal(found.images, expected)
    monkeypatch.setattr(_entries, "MAX_BYTES", 1000)
    refused("image of .*a.npz is .*too much to be read whole: write it again as uint8", path)


def test_a_large_compressed_file_says_how_to_unpack_it(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=IMAGES, label=LABELS)
    monkeypatch.setattr(_entries, "MAX_BYTES", 1000)
    said = refused("is compressed, and unpacked .*, too much to be read whole: unpack it", path)
    command = said.split("'")[1].split()
    subprocess.run([sys.executable, *command[1:]], check=True)
    found = open_extra(said.rsplit(" ", 1)[1].rstrip("."), num_classes=10)
    assert isinstance(found.images, FileRows)
    check(found)


def refused(message, *arguments, num_classes=10):
    with pytest.raises(DataError, match=message) as error:
        open_extra(*arguments, num_classes=num_classes)
    said = str(error.value)
    assert "\n" not in said and said.endswith(".")
    return said


@pytest.mark.core
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": LABELS + 1}, r"a.npz: label 10 is not one of 0\.\.9"),
        ({"label": LABELS.astype(int) - 1}, r"a.npz: label -1 is not one of 0\.\.9"),
        ({"label": LABELS / 1.0}, "labels must be integers, not float64"),
        ({"label": LABELS[1:]}, r"shape \(19,\), but .*a.npz has 20 images"),
        ({"label": None}, "label of .*a.npz holds object, not numbers"),
        ({"image": IMAGES.astype(np.int64)}, "must be uint8 or float32, not int64"),
        ({"image": IMAGES - 128.0}, r"must lie in \[0, 1\]"),
        ({"image": IMAGES[0, 0]}, r"non-empty \[n, height, width, channels\]"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "non-empty"),
    ],
)
def test_wrong_contents(tmp_path, arrays, message):
    arrays = {"image": IMAGES, "label": LABELS} | arrays
    refused(message, saved(tmp_path / "a.npz", **arrays))


@pytest.mark.core
def test_wrong_files(tmp_path):
    path = saved(tmp_path / "a.npz")
    refused("none.npz is not a file", tmp_path / "none.npz")
    refused("has no images; it holds nothing known", saved(tmp_path / "o.npz", other=IMAGES))
    (tmp_path / "folder").mkdir()
    refused("folder has no images; it holds nothing known", tmp_path / "folder")
    alone = saved(tmp_path / "b.npz", image=IMAGES)
    refused("has no labels: make some with 'awp-jax pseudo-label", alone)
    refused("2 files of images have 1 files of labels", [path, alone], path)
    small = saved(tmp_path / "c.npz", image=IMAGES[:, :4], label=LABELS)
    refused(r"images of .*c.npz are \(4, 4, 3\), but those of .*a.npz are \(5,", [path, small])
    refused("No file of images was named", [])
    (tmp_path / "text.npz").write_bytes(b"text")
    refused("text.npz could not be read: File is not a zip file", tmp_path / "text.npz")


@pytest.mark.core
def test_a_file_that_is_cut_off(tmp_path):
    path = saved(tmp_path / "a.npz")
    good = path.read_bytes()
    for size in (100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        refused("a.npz is cut off or damaged", path)
    # The middle is missing: the directory at the end still claims it.
    path.write_bytes(good[:400] + good[900:])
    refused("a.npz", path)
    array = saved(tmp_path / "a.npy", bare=(IMAGES,))
    array.write_bytes(array.read_bytes()[:-1])
    refused(r"declares uint8 of shape \(20, 5, 4, 3\), but holds 1199 bytes", array)


@pytest.mark.core
def test_a_file_that_is_cut_off_while_in_use(tmp_path):
    path = saved(tmp_path / "a.npy", bare=(IMAGES,))
    found = open_images(path)
    with path.open("r+b") as file:
        file.truncate(700)
    np.testing.assert_array_equal(found[2:4], IMAGES[2:4])
    for rows in (SOME, slice(5, 20)):
        with pytest.raises(DataError, match="a.npy was cut off while it was in use"):
            found[rows]


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_refused_or_harmless(tmp_path, compressed):
    path = tmp_path / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, image=IMAGES, label=LABELS)
    good, random, refusals = path.read_bytes(), np.random.RandomState(3), 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(good, random))
        try:
            found = open_extra(path, num_classes=10)
            assert found.in_memory().images.ndim == 4
        except DataError as error:
            refusals += 1
            assert str(error).endswith(".") and "\n" not in str(error), str(error)
    assert refusals > ROUNDS // 10


def test_an_encrypted_file_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        starts = [info.header_offset for info in archive.infolist()]
    for start in starts:
        content[start + 6] |= 1
    place = content.find(b"PK\1\2")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\1\2", place + 1)
    path.write_bytes(bytes(content))
    refused("could not be read: .*encrypted", path)
