"""Finished parts of an evaluation on disk, so that a stopped one goes on where it was."""

import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from awp_jax import parallel


class PartialResults:
    """One file per finished part, named by a digest of everything that it depends on.

    A changed setting has another digest, so it never meets an old result.

    Args:
        directory: Where they lie; made at the first ``save``. ``None``: nothing is kept.
        identity: What every part depends on, plain values for JSON: the model's digest, the images'
            digest, radius, seed, ...
    """

    def __init__(self, directory: pathlib.Path | None, identity: Mapping[str, Any]):
        self._directory = directory
        self._identity = dict(identity)

    def _path(self, part: Mapping[str, Any]) -> pathlib.Path | None:
        if self._directory is None:
            return None
        text = json.dumps([self._identity, dict(part)], sort_keys=True)
        return self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

    def load(self, part: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The arrays of a part, or ``None`` when it was not finished, or its file is damaged."""
        path = self._path(part)
        # Whatever process 0 finds, all others find: they go on with the same work.
        if path is None or not parallel.main_says(path.is_file()):
            return None
        try:
            # Opened here: numpy leaves the file open when it is damaged.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, part: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Keeps a part: its file is whole, or not there."""
        path = self._path(part)
        if path is None or not parallel.is_main():
            return
        write_arrays(path, arrays)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes an ``.npz`` so that the file is whole or the old one stays; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **dict(arrays))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
