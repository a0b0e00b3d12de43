"""idx and CIFAR from tiny files, and the messages for files that are wrong."""

import gzip
import io
import pickle
import struct
import tarfile

import data_writers as writers
import numpy as np
import pytest
from data_writers import fails

from awp_jax.data import DataError, load
from awp_jax.data._pickle import read_pickle, to_array

# --- idx


@pytest.mark.core
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", ["", "raw"])
def test_mnist(tmp_path, packed, inside):
    written = writers.write_mnist(tmp_path / inside, packed)
    splits = load("fashion-mnist", path=tmp_path)
    for split in ("train", "test"):
        dataset = getattr(splits, split)
        np.testing.assert_array_equal(dataset.images[..., 0], written[split][0])
        np.testing.assert_array_equal(dataset.labels, written[split][1])
        assert dataset.images.dtype == np.uint8 and dataset.name == f"fashion-mnist {split}"
    assert splits.validation is None


def damage_idx(data, kind):
    if kind == "magic":
        return b"\0\0\x0d" + data[3:]
    if kind == "dimensions":
        return b"\0\0\x08\x01" + data[4:]
    if kind == "short":
        return data[:-1]
    if kind == "long":
        return data + b"\0"
    if kind == "header":
        return data[:9]
    if kind == "huge":
        return data[:4] + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + data[16:]
    if kind == "claim":
        return data[:4] + struct.pack(">3I", 10**6, 28, 28) + data[16:]
    if kind == "pixels":
        return data[:8] + struct.pack(">2I", 14, 56) + data[16:]
    if kind == "none":
        return data[:4] + struct.pack(">3I", 0, 28, 28)
    assert kind == "empty"
    return b""


@pytest.mark.core
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "kind, message",
    [
        ("magic", "starts with 00000d03"),
        ("dimensions", "starts with 00000801"),
        ("short", "holds only 5487"),
        ("long", "holds more"),
        ("header", "ends inside its header"),
        ("huge", "more than any known data set"),
        ("claim", "holds only 5488"),
        ("pixels", r"\(14, 56\)"),
        ("none", "non-empty"),
        ("empty", "starts with nothing"),
    ],
)
def test_damaged_idx(tmp_path, packed, kind, message):
    writers.write_mnist(tmp_path, packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    data = path.read_bytes()
    data = damage_idx(gzip.decompress(data) if packed else data, kind)
    path.write_bytes(gzip.compress(data) if packed else data)
    fails("mnist", tmp_path, message)


def test_damaged_gzip(tmp_path):
    writers.write_mnist(tmp_path, packed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    fails("mnist", tmp_path, "could not be read")
    path.write_bytes(data[:-8] + b"\xff" * 4 + data[-4:])
    fails("mnist", tmp_path, "CRC")
    path.write_bytes(data[:100] + bytes(50) + data[150:])
    fails("mnist", tmp_path, "t10k-images")


def test_mnist_files_that_do_not_fit(tmp_path):
    writers.write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(writers.idx_bytes(np.arange(6, dtype=np.uint8)))
    fails("mnist", tmp_path, "7 images have 6 labels")
    labels.write_bytes(writers.idx_bytes(np.arange(4, 11, dtype=np.uint8)))
    fails("mnist", tmp_path, r"label 10 is not one of 0\.\.9")
    labels.unlink()
    fails("mnist", tmp_path, "neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte.gz")


# --- CIFAR


def check_cifar(splits, parts, name):
    files = list(parts)
    for dataset, names in ((splits.train, files[:-1]), (splits.test, files[-1:])):
        np.testing.assert_array_equal(dataset.images, np.concatenate([parts[n][0] for n in names]))
        np.testing.assert_array_equal(dataset.labels, np.concatenate([parts[n][1] for n in names]))
        assert dataset.images.dtype == np.uint8 and dataset.num_classes == writers.CLASSES[name]


FOLDERS = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}


@pytest.mark.core
@pytest.mark.parametrize("name, version", FOLDERS)
def test_cifar_folders_and_archives(tmp_path, name, version):
    inside = FOLDERS[name, version]
    folder = tmp_path / "files" / inside
    parts = writers.write_cifar(folder, name, version)
    check_cifar(load(name, path=folder), parts, name)
    check_cifar(load(name, path=tmp_path / "files"), parts, name)
    stem = {"cifar10": "cifar-10", "cifar100": "cifar-100"}[name]
    archive = tmp_path / f"{stem}-{version}.tar.gz"
    writers.pack(folder, archive, inside)
    check_cifar(load(name, path=archive), parts, name)
    check_cifar(load(name, path=tmp_path), parts, name)
    renamed = archive.rename(tmp_path / "renamed.tgz")
    check_cifar(load(name, path=renamed), parts, name)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("text_keys", [False, True])
def test_cifar_pickles_of_every_protocol(tmp_path, protocol, text_keys):
    parts = writers.write_cifar(
        tmp_path, "cifar10", "python", protocol=protocol, text_keys=text_keys
    )
    check_cifar(load("cifar10", path=tmp_path), parts, "cifar10")


def test_pickled_arrays_keep_order_and_type(tmp_path):
    for dtype in ("u1", "<i4", ">i4", "<u8", ">i2"):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        for value in (array, np.asfortranarray(array), array[:, ::2], array[:0]):
            for protocol in range(6):
                loaded = read_pickle(pickle.dumps(value, protocol=protocol), tmp_path)
                np.testing.assert_array_equal(to_array(loaded), value)


def test_cifar_errors(tmp_path):
    writers.write_cifar(tmp_path / "b", "cifar10", "binary")
    path = tmp_path / "b" / "data_batch_3.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    fails("cifar10", tmp_path / "b", "9218 bytes, not a multiple of 3073")
    path.write_bytes(b"")
    fails("cifar10", tmp_path / "b", "holds 0 bytes")
    path.write_bytes(b"\x0a" + data[1:])
    fails("cifar10", tmp_path / "b", r"data_batch_3.bin: label 10 is not one of 0\.\.9")
    path.unlink()
    fails("cifar10", tmp_path / "b", "data_batch_3.bin could not be read: No such file")
    fails("cifar100", tmp_path / "b", "cifar-100-binary.tar.gz")
    writers.pack(tmp_path / "b", tmp_path / "cifar-10-binary.tar.gz", "x")
    fails("cifar10", tmp_path, "does not contain data_batch_3.bin")


def good_batch():
    return {b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, 2]}


@pytest.mark.parametrize(
    "batch, message",
    [
        ([1, 2], "holds a list, not a dictionary"),
        ({b"labels": [0]}, "no entry 'data'"),
        (good_batch() | {b"labels": [0, 1.5, 2]}, "labels cannot be used"),
        (good_batch() | {b"labels": [0, True, 2]}, "labels cannot be used"),
        (good_batch() | {b"labels": [0, 1, 2**70]}, "labels cannot be used"),
        (good_batch() | {b"labels": b"abc"}, "not bytes"),
        (good_batch() | {b"labels": np.zeros(3)}, "integer array was expected"),
        (good_batch() | {b"labels": [0, 1]}, "3 images have 2 labels"),
        (good_batch() | {b"labels": [0, 1, -1]}, "label -1"),
        (good_batch() | {b"labels": []}, "3 images have 0 labels"),
        (good_batch() | {b"data": np.zeros((3, 3071), np.uint8)}, r"\(3, 3071\)"),
        (good_batch() | {b"data": np.zeros((3, 3072), np.int64)}, "int64"),
        (good_batch() | {b"data": np.array([None])}, "integer array was expected"),
    ],
)
def test_cifar_pickle_contents(tmp_path, batch, message):
    writers.write_cifar(tmp_path, "cifar10", "python")
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(batch))
    fails("cifar10", tmp_path, message)


class Payload:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.core
@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    marker = tmp_path / "executed"
    folder = tmp_path / "files"
    writers.write_cifar(folder, "cifar10", "python")
    for payload in (
        Payload(exec, f"open({str(marker)!r}, 'w').close()"),
        Payload(io.open, str(marker), "w"),
        Payload(np.load, str(marker)),
        Payload(np.ndarray.tofile, np.zeros(3), str(marker)),
    ):
        batch = good_batch() | {b"labels": payload}
        (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
        fails("cifar10", folder, "not allowed")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x80\x02r\xff\xff\xff\x7f.", "memo index"),  # would allocate 16 GiB of memo
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "damaged"),  # 1 TiB of bytes
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"Pname\n.", "PERSID"),
        (b"", "damaged"),
        (b"\x80\x02]", "damaged"),
        # A state on the class that stands for arrays, instead of on an array.
        (b"\x80\x02cnumpy\nndarray\n}b.", "damaged"),
    ],
)
def test_pickles_that_attack_the_reader(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        read_pickle(data, tmp_path)


def test_pickled_array_that_claims_too_much(tmp_path):
    data = pickle.dumps(np.zeros(3, np.uint8), protocol=2)
    assert data.count(b"K\x03\x85") == 1
    claim = data.replace(b"K\x03\x85", b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85")
    with pytest.raises(ValueError, match="does not fit 3 bytes"):
        to_array(read_pickle(claim, tmp_path))


def test_archives_that_attack_the_reader(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    fails("cifar10", path, "does not contain data_batch_1")
    header = tarfile.TarInfo("data_batch_1")
    header.size = 2**40
    path.write_bytes(gzip.compress(header.tobuf() + b"x" * 512))
    fails("cifar10", path, "cifar-10-python.tar.gz")
    path.write_bytes(b"not an archive")
    fails("cifar10", path, "could not be read")
