"""Numpy archives with images and labels, read without pickle and without trusting their headers.

Format: a zip file of .npy files, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from awp_jax.data._dataset import DataError, Dataset
from awp_jax.data._files import read_all, reading

# As Gowal et al. 2021 and Wang et al. 2023 publish them, this project's own, and Keras'.
IMAGE_KEYS = ("image", "images", "x")
LABEL_KEYS = ("label", "labels", "y")
_SPLIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
_KEYS = (*IMAGE_KEYS, *LABEL_KEYS, *_SPLIT_KEYS, "num_classes")


def read_npz(path: str | Path, *, num_classes: int | None = None) -> Dataset:
    """One split: the images and labels of an .npz file.

    Args:
        path: the file, with `images` and `labels`, `image` and `label`, or `x` and `y`. Images:
            uint8 `[n, height, width, channels]` or, for one channel, `[n, height, width]`; or
            floats of the same shape in [0, 1], converted to float32. Labels: integers `[n]` or
            `[n, 1]`.
        num_classes: by default the entry `num_classes` of the file, else the largest label plus 1.

    Raises:
        DataError: when the file cannot be read or does not hold the above.
    """
    path = Path(path)
    return _single(read_npz_arrays(path), path, num_classes)


def read_npz_splits(path: Path, num_classes: int | None) -> tuple[Dataset, Dataset | None]:
    """Training and test set; the test set is None for a file that holds only one split."""
    if path.is_dir():
        train, test = (
            read_npz(path / f"{split}.npz", num_classes=num_classes) for split in ("train", "test")
        )
        return _same_classes(train, test, num_classes)
    arrays = read_npz_arrays(path)
    if any(key in arrays for key in IMAGE_KEYS):
        return _single(arrays, path, num_classes), None
    train, test = (
        _dataset(arrays, f"x_{split}", f"y_{split}", path, f"{path.stem} {split}", num_classes)
        for split in ("train", "test")
    )
    return _same_classes(train, test, num_classes)


def _single(arrays: dict[str, np.ndarray], path: Path, num_classes: int | None) -> Dataset:
    """The one split of a file, whichever way its keys are spelt."""
    images = next((key for key in IMAGE_KEYS if key in arrays), "images")
    labels = next((key for key in LABEL_KEYS if key in arrays), "labels")
    return _dataset(arrays, images, labels, path, path.stem, num_classes)


def _same_classes(
    train: Dataset, test: Dataset, num_classes: int | None
) -> tuple[Dataset, Dataset]:
    if num_classes is None:
        num_classes = max(train.num_classes, test.num_classes)
    return (
        Dataset(train.images, train.labels, num_classes, train.name),
        Dataset(test.images, test.labels, num_classes, test.name),
    )


def _dataset(
    arrays: dict[str, np.ndarray],
    images_key: str,
    labels_key: str,
    path: Path,
    name: str,
    num_classes: int | None,
) -> Dataset:
    for key in (images_key, labels_key):
        if key not in arrays:
            held = ", ".join(arrays) or "none of the known ones"
            raise DataError(
                f"{path} has no {key}; it needs images and labels (or image and label, or x and "
                f"y), or x_train, y_train, x_test and y_test, and holds {held}."
            )
    images, labels = arrays[images_key], arrays[labels_key]
    if images.ndim == 3:
        images = images[..., None]
    if np.issubdtype(images.dtype, np.floating) and images.dtype != np.float32:
        with np.errstate(over="ignore"):  # the range is checked below
            images = images.astype(np.float32)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if num_classes is None:
        num_classes = _number_of_classes(arrays, labels, path)
    return Dataset(images, labels, num_classes, name)


def _number_of_classes(arrays: dict[str, np.ndarray], labels: np.ndarray, path: Path) -> int:
    if "num_classes" in arrays:
        value = arrays["num_classes"]
        if value.size != 1 or not np.issubdtype(value.dtype, np.integer):
            raise DataError(f"{path}: num_classes must be one integer.")
        return int(value.reshape(()))
    if labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        return 1  # the checks of Dataset say what is wrong
    return max(1, int(labels.max()) + 1)


def read_npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """The entries of an .npz file that this module knows.

    Raises:
        DataError: when the file cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file.")
    with opened_zip(path) as archive:
        names = [key for key in _KEYS if f"{key}.npy" in archive.namelist()]
        contents = {}
        for key in names:
            with archive.open(f"{key}.npy") as file:
                contents[key] = read_all(file, path)
    return {key: decode_npy(data, f"{key} of {path}") for key, data in contents.items()}


@contextlib.contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file, and every way in which opening and reading it fails as one ``DataError``."""
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            yield archive
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        # Encrypted, or packed in an unknown way.
        raise DataError(f"{path} could not be read: {error}.") from error


def npy_header(stream: io.BytesIO, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype; ``stream`` stands behind the header.

    Raises:
        DataError: when it is none, or of anything but numbers.
    """
    try:
        version = npy.read_magic(stream)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](stream)
    except Exception as error:  # the header is a Python literal: damage can raise nearly anything
        raise DataError(f"{what} is no .npy array ({type(error).__name__}).") from error
    if dtype.kind not in "biuf":
        raise DataError(f"{what} holds {dtype}, not numbers.")
    return shape, fortran, dtype


def check_size(shape: tuple[int, ...], dtype: np.dtype[Any], size: int, what: str) -> None:
    """Raises ``DataError`` where an array of this kind does not have ``size`` bytes."""
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise DataError(f"{what} declares {dtype} of shape {shape}, but holds {size} bytes.")


def decode_npy(data: bytes, what: str) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        DataError: when it is damaged.
    """
    # np.load allocates what the header claims before it reads.
    stream = io.BytesIO(data)
    shape, fortran, dtype = npy_header(stream, what)
    start = stream.tell()
    check_size(shape, dtype, len(data) - start, what)
    array = np.frombuffer(data, dtype, offset=start)
    array = array.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("="))
