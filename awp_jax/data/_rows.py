"""Images by their row, in memory or in files of which only the rows asked for are read."""

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from awp_jax.data._dataset import DataError, as_float
from awp_jax.data._files import reading

# Rows that `in_memory` copies at once.
_AT_ONCE = 4096
_MOST_BYTES = 1 << 30  # Linux reads no more than 2 GiB at once


class Rows(Protocol):
    """Images `[n, height, width, channels]`: a numpy array, or what reads like one.

    Attributes:
        shape: of all of them.
        dtype: uint8, or float32 in [0, 1].
        nbytes: of all of them, if they were in memory.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> np.ndarray:
        """The rows of a slice, or of an array of integers in `[0, n)`, in memory."""
        ...


class Shaped:
    """What follows from a shape and a dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def _indices(self, indices: Any) -> np.ndarray:
        if isinstance(indices, slice):
            return np.arange(*indices.indices(len(self)))
        return np.asarray(indices)


class FileRows(Shaped):
    """uint8 images that lie one behind the other in a file.

    They are read and not memory-mapped. The pages of a mapping count as memory of the process until
    the system needs them, so that its peak would be the size of the file; and where a file is cut
    off while a run goes on, a mapping kills the process and reading says so in one sentence.

    Args:
        path: the file, which stays open.
        offset: of the first byte of the first image.
        shape: `[n, height, width, channels]`, which the file holds (this is not checked here).

    Raises:
        DataError: when the file cannot be opened, and where rows cannot be read.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, np.dtype(np.uint8)
        self._path, self._offset = path, offset
        with reading(path):
            self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, indices: Any) -> np.ndarray:
        rows = self._indices(indices)
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        # int32 indices times the size of an image exceed int32.
        size = math.prod(self.shape[1:])
        places = (self._offset + rows.astype(np.int64) * size).tolist()
        with reading(self._path):
            if isinstance(indices, slice) and indices.step in (None, 1):
                self._fill(found.reshape(-1), places[0] if places else 0)
                return found
            if hasattr(os, "posix_fadvise"):
                # All are asked for before the first is waited for: a disk serves them together.
                for place in places:
                    os.posix_fadvise(self._file, place, size, os.POSIX_FADV_WILLNEED)
            for row, place in zip(found.reshape(len(rows), size), places, strict=True):
                self._fill(row, place)
        return found

    def _fill(self, target: np.ndarray, place: int) -> None:
        done, whole = 0, target.data
        while done < len(whole):
            part = whole[done : done + _MOST_BYTES]
            count = os.preadv(self._file, [part], place + done)
            if not count:
                raise DataError(f"{self._path} was cut off while it was in use: get it again.")
            done += count


class JoinedRows(Shaped):
    """Rows of several places, one behind the other; float32 where any of them is.

    Args:
        parts: with images of one shape.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        floats = any(part.dtype != np.uint8 for part in parts)
        self.dtype = np.dtype(np.float32 if floats else np.uint8)
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def __getitem__(self, indices: Any) -> np.ndarray:
        rows = self._indices(indices)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        where = np.searchsorted(self._ends, rows, side="right")
        for number, part in enumerate(self._parts):
            mine = np.flatnonzero(where == number)
            if len(mine):
                images = part[rows[mine] - (self._ends[number] - len(part))]
                found[mine] = images if self.dtype == np.uint8 else as_float(images, np.float32)
        return found


class _Selected(Shaped):
    """Some rows of others."""

    def __init__(self, rows: Rows, numbers: np.ndarray) -> None:
        self._rows, self._numbers = rows, numbers
        self.shape, self.dtype = (len(numbers), *rows.shape[1:]), rows.dtype

    def __getitem__(self, indices: Any) -> np.ndarray:
        return self._rows[self._numbers[indices]]


def selected(rows: Rows, indices: np.ndarray | slice) -> Rows:
    """The rows at `indices`; of those in files nothing is read."""
    if isinstance(rows, np.ndarray):
        return rows[indices]
    if hasattr(rows, "select"):  # which know more than to be read
        return rows.select(indices)
    return _Selected(rows, np.arange(len(rows))[indices])


def in_memory(rows: Rows) -> np.ndarray:
    """All rows, with no second copy of them on the way."""
    if isinstance(rows, np.ndarray):
        return rows
    found = np.empty(rows.shape, rows.dtype)
    for start in range(0, len(rows), _AT_ONCE):
        found[start : start + _AT_ONCE] = rows[start : start + _AT_ONCE]
    return found
