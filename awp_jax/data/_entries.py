"""Where the arrays of .npz and .npy files lie, found without reading them.

Formats: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, and for the offset
of what a zip file stores https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7.
"""

import contextlib
import dataclasses
import io
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from awp_jax.data._dataset import DataError
from awp_jax.data._files import MAX_BYTES, read_all, reading
from awp_jax.data._npz import check_size, decode_npy, npy_header, opened_zip

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 16


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array in a file.

    Attributes:
        path: the file.
        member: its name in a zip file; empty for an .npy file.
        shape: as the header says; it fits the size of the entry.
        dtype: numbers of any kind.
        fortran: whether the first index runs fastest.
        offset: of its first byte in the file; None where it is compressed.
        header: bytes before the first number.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int | None
    header: int

    @property
    def what(self) -> str:
        """What it is called in messages."""
        return (
            f"{self.member.removesuffix('.npy')} of {self.path}" if self.member else f"{self.path}"
        )

    @property
    def nbytes(self) -> int:
        """Of its numbers, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """All of it, in memory.

        Raises:
            DataError: when it is damaged, or too large to be read whole.
        """
        if self.nbytes > MAX_BYTES:
            raise DataError(self._too_large())
        with _stream(self.path, self.member) as stream:
            return decode_npy(read_all(stream, self.path), self.what)

    def _too_large(self) -> str:
        size = f"{self.nbytes / 2**30:.1f} GiB"
        if self.offset is None:
            folder = self.path.with_suffix("")
            return (
                f"{self.path} is compressed, and unpacked {size}, too much to be read whole: "
                f"unpack it once with 'python -m zipfile -e {self.path} {folder}', and name the "
                f"folder {folder}."
            )
        order = " in Fortran's order" if self.fortran else ""
        return (
            f"{self.what} is {size} of {self.dtype}{order}, too much to be read whole: write it "
            "again as uint8 in C's order, which is read row by row."
        )

    def pieces(self) -> Iterator[np.ndarray]:
        """Its numbers in order, a flat piece after the other.

        Raises:
            DataError: when it is damaged.
        """
        with _stream(self.path, self.member) as stream:
            stream.read(self.header)
            left = self.nbytes
            while left:
                data = stream.read(min(left, _CHUNK))
                if not data or len(data) % self.dtype.itemsize:
                    raise DataError(f"{self.what} ends in the middle.")
                left -= len(data)
                yield np.frombuffer(data, self.dtype)


def find_entries(path: Path, names: tuple[str, ...], bare: str) -> dict[str, Entry]:
    """The arrays of these names in a file.

    Args:
        path: an .npz file, a folder into which one was unpacked, or a .npy file.
        names: which to look for.
        bare: what the array of a .npy file is called.

    Raises:
        DataError: in one sentence, when the file cannot be read, is cut off or damaged.
    """
    if path.is_dir():
        paths = {name: path / f"{name}.npy" for name in names}
        return {name: _of_npy(file) for name, file in paths.items() if file.is_file()}
    if not path.is_file():
        raise DataError(f"{path} is not a file.")
    if path.suffix == ".npy":
        return {bare: _of_npy(path)}
    with _archive(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    known = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
    return {name: _of_zip(path, info) for name, info in known.items()}


def _of_npy(path: Path) -> Entry:
    with reading(path):
        return _entry(path, "", path.stat().st_size, 0)


def _of_zip(path: Path, info: zipfile.ZipInfo) -> Entry:
    start = None
    if info.compress_type == zipfile.ZIP_STORED:
        with reading(path), path.open("rb") as file:
            # The directory does not say how long the header before the data is.
            file.seek(info.header_offset + 26)
            name, more = struct.unpack("<2H", file.read(4).ljust(4, b"\0"))
            start = info.header_offset + 30 + name + more
            if start + info.file_size > path.stat().st_size:
                raise DataError(f"{path} is cut off inside {info.filename}: get it again.")
    return _entry(path, info.filename, info.file_size, start)


def _entry(path: Path, member: str, size: int, start: int | None) -> Entry:
    what = f"{member.removesuffix('.npy')} of {path}" if member else str(path)
    with _stream(path, member) as stream:
        # A damaged header may claim to be of any length.
        head = io.BytesIO(stream.read(_LONGEST_HEADER))
    shape, fortran, dtype = npy_header(head, what)
    check_size(shape, dtype, size - head.tell(), what)
    offset = None if start is None else start + head.tell()
    return Entry(path, member, shape, dtype, fortran, offset, head.tell())


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """As ``opened_zip``, with a word on how a file that is cut off is mended."""
    try:
        with opened_zip(path) as archive:
            yield archive
    except DataError as error:
        if isinstance(error.__cause__, zipfile.BadZipFile) and _begins_as_zip(path):
            # The directory stands at the end: what a download that stopped has not.
            said = str(error.__cause__).rstrip(".")
            raise DataError(f"{path} is cut off or damaged ({said}): get it again.") from error
        raise


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


@contextlib.contextmanager
def _stream(path: Path, member: str) -> Iterator[IO[bytes]]:
    if not member:
        with reading(path), path.open("rb") as file:
            yield file
        return
    with _archive(path) as archive, archive.open(member) as stream:
        yield stream
