"""SVHN's cropped digits, http://ufldl.stanford.edu/housenumbers/ (MATLAB 5 files).

scipy reads the arrays; the file's skeleton is checked first, because scipy allocates what the
size fields claim. Format: MATLAB's "MAT-File Format", chapter 1 (level 5).
"""

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from awp_jax.data._dataset import DataError, Dataset
from awp_jax.data._files import MAX_BYTES, read_all, reading

_COMPRESSED, _MATRIX = 15, 14
_NUMERIC_CLASSES = range(6, 16)  # double ... uint64
_INT8, _INT32 = 1, 5
# Bytes of a number, by type of the element: int8 ... uint32, single, double, int64, uint64.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}


def read_svhn(folder: Path, name: str) -> tuple[Dataset, Dataset]:
    """Training and test set, uint8 `[n, 32, 32, 3]`; the digit 0, stored as 10, becomes 0."""
    train, test = (_read_split(folder, name, split) for split in ("train", "test"))
    return train, test


def _read_split(folder: Path, name: str, split: str) -> Dataset:
    path = folder / f"{split}_32x32.mat"
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    with reading(path), path.open("rb") as file:
        data = read_all(file, path)
    variables = _load(_unpacked(data, path), path)
    for key in ("X", "y"):
        if not isinstance(variables.get(key), np.ndarray):
            raise DataError(f"{path} has no array {key}.")
    images, labels = variables["X"], variables["y"]
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise DataError(
            f"{path}: X is {images.dtype} of shape {images.shape}, not uint8 of [32, 32, 3, n]."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: labels must be integers, not {labels.dtype}.")
    labels = labels.ravel()
    outside = labels[(labels < 1) | (labels > 10)]
    if outside.size:
        raise DataError(f"{path}: label {outside[0]} is not one of 1..10.")
    images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return Dataset(images, labels.astype(np.int32) % 10, 10, f"{name} {split}")


def _load(data: bytes, path: Path) -> dict[str, np.ndarray]:
    from scipy import io as scipy_io  # slow to import, and only needed here

    try:
        return scipy_io.loadmat(io.BytesIO(data), variable_names=["X", "y"])
    except Exception as error:  # scipy's reader raises many types on damaged files
        reason = str(error).strip().rstrip(".").replace("\n", " ") or type(error).__name__
        raise DataError(f"{path} could not be read as a MATLAB file: {reason}.") from error


def _unpacked(data: bytes, path: Path) -> bytes:
    """The same file with its compressed elements unpacked and every size field checked."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or 0 in data[:4] or struct.unpack(f"{order}H", data[124:126])[0] != 0x100:
        raise DataError(f"{path} is no MATLAB 5 file.")
    # scipy keeps going after an element that it cannot use: the parts are all checked here.
    parts = [data[:128]]
    size = 0
    position = 128
    while position < len(data):
        kind, start, end = _element(data, position, order, path)
        element = data[position:end]
        position = end
        if kind == _COMPRESSED:
            element = _inflate(data[start:end], path)
            kind, _, end = _element(element, 0, order, path)
            if end != len(element):
                raise DataError(f"{path} holds a compressed element of the wrong size.")
        if kind != _MATRIX:
            raise DataError(f"{path} holds an element of type {kind}, which is no array.")
        _check_matrix(element, order, path)
        size += len(element)
        if size > MAX_BYTES:
            raise DataError(f"{path} unpacks to more than any known data set.")
        parts.append(element)
    return b"".join(parts)


def _element(data: bytes, position: int, order: str, path: Path) -> tuple[int, int, int]:
    """Type of the element at `position`, and where its content starts and ends."""
    if position + 8 > len(data):
        raise DataError(f"{path} ends inside an element.")
    kind, size = struct.unpack_from(f"{order}II", data, position)
    start, end = position + 8, position + 8 + size
    if kind >> 16:  # up to four bytes, in the place of the size
        kind, size = kind & 0xFFFF, kind >> 16
        start, end = position + 4, position + 4 + size
        if size > 4:
            raise DataError(f"{path} holds a small element of {size} bytes.")
    if end > len(data):
        raise DataError(f"{path} declares {size} bytes at {start}, but ends at {len(data)}.")
    return kind, start, end


def _check_matrix(element: bytes, order: str, path: Path) -> None:
    """A plain numeric array: flags, dimensions, name and data, each inside the element."""
    position, count = 8, 0
    for index in range(4):
        kind, start, end = _element(element, position, order, path)
        if index == 1:
            if kind != _INT32 or (end - start) % 4:
                raise DataError(f"{path} holds an array with damaged dimensions.")
            count = math.prod(struct.unpack_from(f"{order}{(end - start) // 4}i", element, start))
        # scipy trusts these and has crashed on numbers that do not fit.
        if index == 2 and kind != _INT8:
            raise DataError(f"{path} holds an array with a damaged name.")
        if index == 3 and (end - start) != count * _BYTES.get(kind, -1):
            raise DataError(f"{path} holds an array of {count} numbers in {end - start} bytes.")
        if index == 0:
            if end - start != 8:
                raise DataError(f"{path} holds an array with damaged flags.")
            flags = struct.unpack_from(f"{order}I", element, start)[0]
            if flags & 0xFF not in _NUMERIC_CLASSES or flags & 0x800:
                raise DataError(f"{path} holds something else than real numbers.")
        # Elements are padded to eight bytes.
        position = end + (-end) % 8


def _inflate(data: bytes, path: Path) -> bytes:
    with reading(path):
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(data, MAX_BYTES)
        if not unpacker.eof:
            raise DataError(f"{path} holds a compressed element that does not end.")
    return unpacked
