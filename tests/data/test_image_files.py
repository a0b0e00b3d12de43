"""Image files in folders and shards: order, labels and rows, and what is said of bad ones."""

import pickle
import shutil
import tarfile

import numpy as np
import pytest
from image_files import CLASSES, COUNTS, add, files_of, write_folders, write_records, write_shards
from PIL import Image
from torchvision_peer import has_torchvision

from awp_jax import data
from awp_jax.data import DataError, Decoding, load

SMALL = Decoding(16, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("imagenet") / "folders")


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders, tmp_path / "copy")


def test_folders_are_read_as_torchvision_reads_them(folders):
    if not has_torchvision():
        pytest.skip("torchvision is not installed")
    import torchvision

    splits = load("imagenet", path=folders, decoding=SMALL)
    for part, found in (("train", splits.train), ("val", splits.test)):
        peer = torchvision.datasets.ImageFolder(folders / part)
        encoded = found.images.encoded
        assert [encoded.where(i) for i in range(len(found))] == [path for path, _ in peer.samples]
        assert found.labels.tolist() == peer.targets
        assert found.num_classes == len(CLASSES) == len(peer.classes)
        assert found.images.shape == (COUNTS[part] * 3, 16, 16, 3)
        assert found.images.nbytes == COUNTS[part] * 3 * 16 * 16 * 3


def test_images_below_a_class_and_other_formats(folders, copy):
    class_folder = copy / "train" / CLASSES[0]
    (class_folder / "more").mkdir()
    image = Image.open(next(class_folder.glob("*.JPEG"))).convert("RGB")
    image.save(class_folder / "more" / "a.png")
    image.save(class_folder / "more" / "b.webp", lossless=True)
    (class_folder / "notes.txt").write_text("no image")
    (copy / "train" / ".cache").mkdir()
    train = load("images", path=copy, decoding=SMALL).train
    assert len(train) == 3 * COUNTS["train"] + 2
    png, webp = train.images[np.array([COUNTS["train"], COUNTS["train"] + 1])]
    np.testing.assert_array_equal(png, webp)


@pytest.mark.parametrize("write", [write_shards, write_records])
def test_shards_hold_the_same_examples_as_the_folders(folders, tmp_path, write):
    if write is write_records:
        pytest.importorskip("array_record")
        pytest.importorskip("google.protobuf")
    here = load("images", path=folders, decoding=SMALL)
    there = load("images", path=write(folders, tmp_path / "shards"), decoding=SMALL)
    for one, other in ((here.train, there.train), (here.test, there.test)):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images[:], other.images[:])
        crops = [part.images.crops([5, 2], 7, seed=3, least=0.1) for part in (one, other)]
        np.testing.assert_array_equal(*crops)
    assert there.train.num_classes == 3
    # A worker process gets a copy.
    again = pickle.loads(pickle.dumps(there.train.images))
    np.testing.assert_array_equal(again[3:5], here.train.images[3:5])


def test_shards_may_lie_in_folders(folders, tmp_path):
    flat = write_shards(folders, tmp_path / "flat")
    for part in ("train", "val"):
        (tmp_path / "deep" / part).mkdir(parents=True)
        for shard in flat.glob(f"{part}*"):
            shard.rename(tmp_path / "deep" / part / shard.name)
    found = load("images", path=tmp_path / "deep", decoding=SMALL)
    assert [label for _, label in files_of(folders, "val")] == found.test.labels.tolist()


def test_splits_are_cut_as_those_in_memory_and_nothing_is_read(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(Decoding, "centre", None)  # would fail
    splits = load(
        "images", path=folders, train_examples=9, validation_examples=5, test_examples=6, seed=4
    )
    order = np.random.RandomState(4).permutation(21)
    expected = np.arange(21) // COUNTS["train"]
    np.testing.assert_array_equal(splits.validation.labels, expected[np.sort(order[:5])])
    np.testing.assert_array_equal(splits.train.images.numbers, np.sort(order[5:14]))
    assert np.bincount(splits.test.labels).tolist() == [2, 2, 2]
    assert splits.train.images.shape == (9, 224, 224, 3)


def test_rows_are_read_by_slices_and_arrays_and_one_by_one(folders):
    train = load("images", path=folders, decoding=SMALL).train
    whole = train.in_memory()
    assert isinstance(whole, data.Dataset) and whole.in_memory() is whole
    np.testing.assert_array_equal(train.images[2:9:3], whole.images[2:9:3])
    np.testing.assert_array_equal(train.images[np.array([9, 0])], whole.images[[9, 0]])
    np.testing.assert_array_equal(train[4]["image"], whole.images[4])
    assert train[-1]["label"] == 2 and len(train) == 21
    with pytest.raises(IndexError):
        train[21]


def test_crops_depend_on_seed_step_and_row_alone(folders):
    images = load("images", path=folders, decoding=SMALL).train.images
    common = {"seed": 1, "least": 0.08}
    whole = images.crops(np.arange(8), 5, **common)
    np.testing.assert_array_equal(whole[[6, 1]], images.crops([6, 1], 5, threads=1, **common))
    for change in ({"seed": 2}, {"least": 0.5}):
        assert (whole != images.crops(np.arange(8), 5, **(common | change))).any((1, 2, 3)).all()
    assert (whole != images.crops(np.arange(8), 6, **common)).any((1, 2, 3)).all()
    centres = images.crops(np.arange(8), 5, seed=1, least=0)
    np.testing.assert_array_equal(centres, images[:8])


def refused(match, **arguments):
    with pytest.raises(DataError, match=match) as found:
        load("images", decoding=SMALL, **arguments)
    assert str(found.value).count("\n") == 0 and str(found.value).endswith(".")


def test_other_layouts_are_one_sentence(copy, tmp_path):
    empty = copy / "val" / "n00000001"
    empty.mkdir()
    refused("n00000001 is no class: the training images have no folder", path=copy)
    (copy / "train" / "n00000001").mkdir()
    refused("train/n00000001 holds no image: a file that ends in .jpg", path=copy)
    shutil.rmtree(copy / "val")
    shutil.rmtree(copy / "train" / "n00000001")
    refused("holds no val or validation or test images: a folder train", path=copy)
    (copy / "val").mkdir()
    (copy / "val" / "a.JPEG").write_bytes(b"")  # as ImageNet's archive unpacks
    shutil.rmtree(copy / "train")
    refused("holds no train images", path=copy)
    (copy / "train").mkdir()
    refused("train holds no folders: one for each class", path=copy)
    refused("does not exist", path=tmp_path / "nowhere")
    with pytest.raises(DataError, match="train has 3 class folders, not 4"):
        load("images", path=write_folders(tmp_path / "three"), num_classes=4)
    with pytest.raises(ValueError, match="resize is 200, but at least the size .* 224"):
        Decoding(resize=200)
    with pytest.raises(DataError, match="downsample is 2, but the images of images stay"):
        load("images", path=tmp_path / "three", downsample=2)


def test_damaged_images_are_one_sentence_with_their_file(copy):
    paths = [path for path, _ in files_of(copy, "train")]
    paths[0].write_bytes(paths[0].read_bytes()[:-200])
    paths[1].write_bytes(b"no image")
    paths[2].unlink()
    rows = load("images", path=copy, decoding=SMALL).train.images
    rows_gone = rows.select(slice(0, 3))
    paths[3].unlink()
    for row, reason in ((0, "truncated"), (1, "no image that Pillow knows")):
        with pytest.raises(DataError, match=f"{paths[row].name} could not be decoded: .*{reason}"):
            rows_gone[np.array([row])]
    with pytest.raises(DataError, match=f"{paths[3].name} could not be read: No such file"):
        rows[np.arange(2, 5)]


def test_damaged_shards_are_one_sentence(folders, tmp_path):
    root = write_shards(folders, tmp_path / "shards")
    shard = root / "train-000001.tar"
    content = shard.read_bytes()
    end = content.rstrip(b"\0")
    for length in (len(end) // 512 * 512 + 512, len(end) - 700):
        shard.write_bytes(content[:length])
        refused("train-000001.tar (is cut off|could not be read: unexpected end)", path=root)
    shard.write_bytes(b"\x1f\x8b" + content)
    refused("train-000001.tar is no tar archive that is not compressed", path=root)

    def of(*members):
        with tarfile.open(shard, "w") as archive:
            for name, text in members:
                add(archive, name, text)

    of()
    refused("train-000001.tar holds no image", path=root)
    of(("a/1.jpg", b""))
    refused("train-000001.tar: a/1 has no label", path=root)
    of(("1.cls", b"2"), ("1.txt", b"of something else"))
    refused("train-000001.tar: 1 has no image", path=root)
    of(("1.cls", b"dog"), ("1.jpg", b""))
    refused("the label in 1.cls is 'dog', but an integer from 0 was expected", path=root)
    of(("1.cls", b"1"), ("1.jpg", b""), ("1.png", b""))
    refused("1 has two images, 1.jpg and 1.png", path=root)
    of(("1.cls", b"7"), ("1.jpg", b""))
    refused("000001.tar, 1.jpg has label 7, but no training image has label 3", path=root)
    refused("000001.tar, 1.jpg has label 7, which is not one of 0..2", path=root, num_classes=3)
    # Read whole, and cut off afterwards.
    shard.write_bytes(content)
    rows = load("images", path=root, decoding=SMALL).train.images
    shard.write_bytes(content[:2000])
    with pytest.raises(DataError, match="train-000001.tar was cut off while it was in use"):
        rows[8:16]


def test_damaged_records_are_one_sentence(folders, tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    pytest.importorskip("google.protobuf")
    root = write_records(folders, tmp_path / "records")
    shard = root / "fake-train.array_record-00001-of-00003"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    refused("fake-train.array_record-00001-of-00003 is cut off", path=root)
    for record in (b"no example", b"\x0a\xff", b""):
        writer = module.ArrayRecordWriter(str(shard), "group_size:1")
        writer.write(record)
        writer.close()
        refused("00001-of-00003, record 0, is no tf.train.Example", path=root)
