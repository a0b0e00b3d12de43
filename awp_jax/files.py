"""Files that are whole or not there, and reading them back: one sentence where they are damaged."""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np


class StorageError(OSError):
    """What a run has to keep cannot be written (a full disk, say); the message is one sentence."""


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns what the system says of ``path`` into a ``StorageError``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({_said(error)}); what was written before is whole."
        ) from error


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """An open file whose content takes the place of ``path`` at once when the block ends.

    Readers see the old file or the new one, never half, also after a kill or a power cut; when the
    block raises, the old one stays. Folders are made.

    Args:
        path: What to write.

    Raises:
        StorageError: When it cannot be written.
    """
    path = pathlib.Path(path)
    # Named after the process: two of them may write the same file at the same time.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def several(text: str | None) -> list[str]:
    """The paths that a text names, separated by commas; none for ``None``.

    Example:
        >>> several("a.npz, b.npz")
        ['a.npz', 'b.npz']
    """
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def write_bytes(path: str | pathlib.Path, content: bytes) -> None:
    """Writes ``content``; see ``replacing``."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes ``text`` as UTF-8; see ``replacing``."""
    write_bytes(path, text.encode())


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """Writes plain values as JSON so that the file is whole or the old one stays.

    Raises:
        StorageError: When it cannot be written.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_arrays(
    path: str | pathlib.Path, arrays: Mapping[str, Any], *, compressed: bool = False
) -> None:
    """Writes an ``.npz`` so that the file is whole or the old one stays; folders are made.

    Args:
        path: The file.
        arrays: By name.
        compressed: Smaller and slower; read in the same way.

    Raises:
        StorageError: When it cannot be written.
    """
    with replacing(path) as file:
        (np.savez_compressed if compressed else np.savez)(file, **dict(arrays))


def read_json(path: str | pathlib.Path, error: type[Exception] = ValueError) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        error: In one sentence, when it cannot be read, is damaged, or holds anything but an object.
    """
    try:
        found = json.loads(pathlib.Path(path).read_bytes())
    except OSError as problem:
        raise error(f"{path} cannot be read: {_said(problem)}.") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is damaged: {_said(problem)}.") from None
    if not isinstance(found, dict):
        raise error(f"{path} is damaged: an object was expected.")
    return found


def read_arrays(
    path: str | pathlib.Path, error: type[Exception] = ValueError
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, by name.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        error: In one sentence, when it cannot be read or is damaged.
    """
    try:
        # Opened here: numpy leaves the file open when it is damaged.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as problem:  # damage brings out a dozen types of numpy's and zipfile's
        raise error(f"{path} is damaged: {_said(problem)}.") from None


def checksum(value: Any) -> int:
    """CRC-32 of plain values as JSON, whatever the order of their keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _said(error: Exception) -> str:
    """What an exception says, on one line and without its full stop."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
