"""Writers of tiny files in every format, independent of the readers they test, and one check."""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from awp_jax.data import DataError, load

CIFAR_FILES = {
    "cifar10": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    "cifar100": ["train", "test"],
}
CLASSES = {"cifar10": 10, "cifar100": 100}


def random_examples(count, shape, classes=10, seed=0):
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (count, *shape)).astype(np.uint8)
    return images, random.randint(0, classes, count).astype(np.uint8)


def idx_bytes(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_mnist(folder, packed=False):
    """Returns {split: (images [n, 28, 28], labels)}."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for seed, (split, prefix, count) in enumerate((("train", "train", 7), ("test", "t10k", 4))):
        images, labels = splits[split] = random_examples(count, (28, 28), seed=seed)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return splits


def cifar_parts(name, count=3):
    """{file: (images [n, 32, 32, 3], labels)} for each file of the data set."""
    return {
        file: random_examples(count, (32, 32, 3), CLASSES[name], seed)
        for seed, file in enumerate(CIFAR_FILES[name])
    }


def cifar_binary(images, labels, name):
    planar = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    coarse = [np.full((len(images), 1), 19, np.uint8)] if name == "cifar100" else []
    return np.concatenate([*coarse, labels[:, None], planar], axis=1).tobytes()


def cifar_python(images, labels, name, protocol=2, text_keys=False):
    planar = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    key = "fine_labels" if name == "cifar100" else "labels"
    batch = {
        "batch_label": "testing batch",
        key: [int(label) for label in labels],
        "data": np.ascontiguousarray(planar),
        "filenames": [b"a.png"] * len(labels),
    }
    if not text_keys:
        batch = {name.encode(): value for name, value in batch.items()}
    return pickle.dumps(batch, protocol=protocol)


def write_cifar(folder, name, version, **options):
    """Returns what `cifar_parts` does."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = cifar_parts(name)
    for file, (images, labels) in parts.items():
        if version == "binary":
            (folder / f"{file}.bin").write_bytes(cifar_binary(images, labels, name))
        else:
            (folder / file).write_bytes(cifar_python(images, labels, name, **options))
    return parts


def pack(folder, archive, inside):
    """A .tar.gz of the files in folder, as `inside/<file>`."""
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=f"{inside}/{path.name}")


def mat_bytes(images, labels, compress=True):
    """SVHN's layout: X [32, 32, 3, n] and y [n, 1], with 10 for the digit 0."""
    from scipy.io import savemat

    stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    buffer = io.BytesIO()
    savemat(buffer, {"X": images.transpose(1, 2, 3, 0), "y": stored}, do_compression=compress)
    return buffer.getvalue()


def write_svhn(folder, compress=True):
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for seed, (split, count) in enumerate((("train", 6), ("test", 4))):
        splits[split] = random_examples(count, (32, 32, 3), seed=seed)
        (folder / f"{split}_32x32.mat").write_bytes(mat_bytes(*splits[split], compress))
    return splits


def write_npz(path: Path, **arrays):
    np.savez(path, **arrays)
    return path


def fails(name, path, message, **options):
    """load raises one sentence that matches message."""
    with pytest.raises(DataError, match=message) as error:
        load(name, path=path, **options)
    text = str(error.value)
    assert "\n" not in text and text[-1] in ".?"
