"""Images that stay encoded in their files, and are decoded when their rows are asked for."""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from awp_jax.data._dataset import DataError
from awp_jax.data._decoding import Decoding
from awp_jax.data._files import reading
from awp_jax.data._rows import Shaped

# Pillow lets other threads run while it decodes and resizes.
_THREADS = min(16, os.cpu_count() or 1)


class Encoded(Protocol):
    """Files of images by their number; may be sent to another process."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> bytes:
        """The bytes of one, or a DataError."""
        ...

    def where(self, number: int) -> str:
        """Which one it is, in messages."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ByteRanges:
    """Images that each are a file, or a part of one.

    Fixed-width arrays and not lists of objects: 1.3 million of them are some 60 MB.

    Attributes:
        root: folder of the files.
        paths: bytes `[files]`, relative to it.
        file: int32 `[n]`, which of them.
        offset: int64 `[n]`, of the first byte.
        size: int64 `[n]`, in bytes; -1 for all that there is.
        names: bytes `[n]` for messages, or None where the paths say it.
    """

    root: Path
    paths: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    names: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.file)

    def path(self, number: int) -> Path:
        """Of the file that holds it."""
        return self.root / os.fsdecode(bytes(self.paths[self.file[number]]))

    def where(self, number: int) -> str:
        path = str(self.path(number))
        if self.names is None:
            return path
        return f"{path}, {os.fsdecode(bytes(self.names[number]))},"

    def read(self, number: int) -> bytes:
        path, size = self.path(number), int(self.size[number])
        with reading(path), path.open("rb") as file:
            file.seek(int(self.offset[number]))
            content = file.read(size)
        if size >= 0 and len(content) != size:
            raise DataError(f"{path} was cut off while it was in use: get it again.")
        return content


class DecodedRows(Shaped):
    """uint8 images `[n, size, size, 3]` that are decoded row by row; nothing is kept.

    ``rows[indices]`` are centre crops, the same every time; ``crops`` are random ones.

    Args:
        encoded: the files.
        decoding: to what they are decoded.
        numbers: int `[n]`, which of the files; all of them by default.
    """

    def __init__(
        self, encoded: Encoded, decoding: Decoding, numbers: np.ndarray | None = None
    ) -> None:
        self.encoded, self.decoding = encoded, decoding
        self.numbers = np.arange(len(encoded)) if numbers is None else numbers
        self.shape = (len(self.numbers), decoding.size, decoding.size, 3)
        self.dtype = np.dtype(np.uint8)

    def select(self, indices: np.ndarray | slice) -> "DecodedRows":
        """The images at `indices`, of which nothing is read."""
        return DecodedRows(self.encoded, self.decoding, self.numbers[indices])

    def __getitem__(self, indices: Any) -> np.ndarray:
        return self._decoded(self._indices(indices), self._centre, _THREADS)

    def crops(
        self,
        indices: np.ndarray,
        step: int,
        *,
        seed: int,
        least: float,
        threads: int = _THREADS,
    ) -> np.ndarray:
        """Random resized crops of a training step.

        What is cut out of an image is a function of the seed, the step and its row: it does not
        depend on its place in the batch, nor on which process or thread decodes it.

        Args:
            indices: int `[batch]`, rows.
            step: of the training, from 0.
            seed: of the run.
            least: least share of the area, see `random_box`; 0 for centre crops.
            threads: that decode.

        Returns:
            uint8 `[batch, size, size, 3]`.

        Raises:
            DataError: when a file is damaged or gone.
        """

        def crop(row: int) -> np.ndarray:
            draws = np.random.Generator(np.random.PCG64([seed, step, row]))
            return self.decoding.crop(*self._file(row), draws, least)

        return self._decoded(np.asarray(indices), crop if least else self._centre, threads)

    def _file(self, row: int) -> tuple[bytes, str]:
        number = int(self.numbers[row])
        return self.encoded.read(number), self.encoded.where(number)

    def _centre(self, row: int) -> np.ndarray:
        return self.decoding.centre(*self._file(row))

    def _decoded(
        self, rows: np.ndarray, decode: Callable[[int], np.ndarray], threads: int
    ) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            found[place] = decode(int(rows[place]))

        if min(threads, len(rows)) < 2:
            for place in range(len(rows)):
                fill(place)
            return found
        with ThreadPoolExecutor(threads) as pool:
            try:
                for _ in pool.map(fill, range(len(rows))):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found
