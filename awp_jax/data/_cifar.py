"""CIFAR-10 and CIFAR-100 in their original formats.

Format: https://www.cs.toronto.edu/~kriz/cifar.html. Binary: records of one label byte (CIFAR-100:
coarse, then fine label) and 3 x 32 x 32 pixels, channels first. Python: pickled dictionaries with
`data`, uint8 `[n, 3072]` in the same order, and the labels.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from awp_jax.data import _pickle
from awp_jax.data._dataset import DataError, Dataset
from awp_jax.data._files import read_all, read_members, reading

_PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class _Layout:
    train: tuple[str, ...]
    test: str
    label_key: str
    label_bytes: int  # the fine label is the last of them
    num_classes: int
    stem: str  # of folders and archives: "<stem>-binary.tar.gz"
    folders: tuple[str, str]  # binary, python

    def files(self, suffix: str) -> set[str]:
        return {name + suffix for name in (*self.train, self.test)}


_LAYOUTS = {
    "cifar10": _Layout(
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        label_key="labels",
        label_bytes=1,
        num_classes=10,
        stem="cifar-10",
        folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    ),
    "cifar100": _Layout(
        train=("train",),
        test="test",
        label_key="fine_labels",
        label_bytes=2,
        num_classes=100,
        stem="cifar-100",
        folders=("cifar-100-binary", "cifar-100-python"),
    ),
}


def read_cifar(path: Path, name: str) -> tuple[Dataset, Dataset]:
    """Training and test set, uint8 `[n, 32, 32, 3]`, with the fine labels of CIFAR-100.

    Args:
        path: a folder that holds the batch files, their usual sub-folder or the original archive,
            or the archive itself. Where several are there the binary version and then folders win.
        name: "cifar10" or "cifar100".
    """
    layout = _LAYOUTS[name]
    read, suffix, where = _find(path, layout)
    decode = _decode_binary if suffix == ".bin" else _decode_python

    def split(names: tuple[str, ...], title: str) -> Dataset:
        parts = []
        for file in names:
            images, labels = decode(read(file + suffix), where / (file + suffix), layout)
            # Checked file by file, so that a message names the file.
            Dataset(images, labels, layout.num_classes, str(where / (file + suffix)))
            parts.append((images, labels))
        images = np.concatenate([part[0] for part in parts])
        labels = np.concatenate([part[1] for part in parts])
        return Dataset(images, labels, layout.num_classes, f"{name} {title}")

    return split(layout.train, "train"), split((layout.test,), "test")


def _find(path: Path, layout: _Layout) -> tuple[Callable[[str], bytes], str, Path]:
    """A function from file name to content, the suffix of the names, and where they are."""
    if path.is_file():
        # One pass over the archive for either version: its name may have been changed.
        members = read_members(path, layout.files(".bin") | layout.files(""))
        suffix = ".bin" if members.keys() & layout.files(".bin") else ""

        def read_member(name: str) -> bytes:
            if name not in members:
                raise DataError(f"{path} does not contain {name}.")
            return members[name]

        return read_member, suffix, path
    for version, suffix in zip(layout.folders, (".bin", ""), strict=True):
        for folder in (path, path / version):
            if any((folder / name).is_file() for name in layout.files(suffix)):
                return _folder_reader(folder), suffix, folder
    for version in ("binary", "python"):
        archive = path / f"{layout.stem}-{version}.tar.gz"
        if archive.is_file():
            return _find(archive, layout)
    raise DataError(
        f"{path} holds no {layout.test}.bin or {layout.test}, no folder {layout.folders[0]} or "
        f"{layout.folders[1]}, and no {layout.stem}-binary.tar.gz or {layout.stem}-python.tar.gz."
    )


def _folder_reader(folder: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        path = folder / name
        with reading(path), path.open("rb") as file:
            return read_all(file, path)

    return read


def _decode_binary(data: bytes, path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    record = layout.label_bytes + _PIXELS
    if not data or len(data) % record:
        raise DataError(f"{path} holds {len(data)} bytes, not a multiple of {record}.")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    return _to_images(records[:, layout.label_bytes :]), records[:, layout.label_bytes - 1]


def _decode_python(data: bytes, path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    batch = _pickle.read_pickle(data, path)
    if not isinstance(batch, dict):
        raise DataError(f"{path} holds a {type(batch).__name__}, not a dictionary.")
    pixels, labels = (_entry(batch, key, path) for key in ("data", layout.label_key))
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DataError(
            f"{path}: data is {pixels.dtype} of shape {pixels.shape}, not uint8 of [n, {_PIXELS}]."
        )
    return _to_images(pixels), labels


def _entry(batch: dict[Any, Any], key: str, path: Path) -> np.ndarray:
    # Python 2 wrote the original keys, which arrive as bytes; Python 3 writes text.
    value = batch.get(key.encode(), batch.get(key))
    if value is None:
        raise DataError(f"{path} has no entry {key!r}.")
    try:
        return _pickle.to_array(value)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: {key} cannot be used, {error}.") from error


def _to_images(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
