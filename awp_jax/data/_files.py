"""Bounded reading: nothing is allocated because a header says so, only for bytes that came."""

import contextlib
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from awp_jax.data._dataset import DataError

# More than any supported file holds (the 500,000 unlabelled images of RST are 1.5 GB), and a bound
# on what a small compressed file can grow into.
MAX_BYTES = 1 << 31
_CHUNK = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn every way in which reading `path` fails into one DataError."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} could not be read: {reason.strip().rstrip('.')}.") from error


def read_at_most(stream: _Readable, limit: int) -> bytes:
    """Up to `limit` bytes, in chunks: memory follows what the stream holds, not `limit`."""
    data = bytearray()
    while len(data) < limit:
        chunk = stream.read(min(_CHUNK, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def read_all(stream: _Readable, path: Path) -> bytes:
    """Everything in `stream`, or a DataError when that is more than any data set holds."""
    data = read_at_most(stream, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(f"{path} holds more than {MAX_BYTES} bytes, more than any known data set.")
    return data


@contextlib.contextmanager
def open_maybe_gzip(path: Path) -> Iterator[BinaryIO]:
    """The (unpacked) bytes of a file; gzip is told by its first bytes, not by its name."""
    with reading(path), path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if is_gzip:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield io.BufferedReader(unpacked)  # type: ignore[arg-type]
        else:
            yield file


def read_members(path: Path, names: set[str]) -> dict[str, bytes]:
    """Contents of the regular files in a tar archive (gzip or not) whose last part is in `names`.

    Nothing is written to disk, links are not followed, and the whole archive may not unpack to
    more than twice `MAX_BYTES`.
    """
    found: dict[str, bytes] = {}
    with open_maybe_gzip(path) as file:
        # Reading as a stream ("r|") never seeks to where a header points.
        with tarfile.open(fileobj=_Bounded(file, path, 2 * MAX_BYTES), mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                name = Path(member.name).name
                if name not in names or not member.isreg() or member.issparse():
                    continue
                content = archive.extractfile(member)
                if content is not None:
                    found[name] = read_all(content, path)
                    if len(found[name]) != member.size:
                        raise DataError(f"{path} ends in the middle of {name}.")
                if len(found) == len(names):
                    break
    return found


class _Bounded:
    """A stream that refuses to give more than `limit` bytes."""

    def __init__(self, stream: _Readable, path: Path, limit: int):
        self._stream, self._path, self._left = stream, path, limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path} unpacks to more than any known data set.")
        return data
