"""Finished parts of an evaluation on disk, so that a stopped one goes on where it was."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from awp_jax import files, parallel


def described(value: Any) -> str:
    """Text that tells an attack or a ball from every other.

    ``repr`` leaves out the middle of long arrays, so two masks may share one: a digest of each
    array goes with it.
    """
    digests = [
        hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:16]
        for leaf in jax.tree.leaves(value)
        if getattr(leaf, "ndim", 0)
    ]
    return " ".join([repr(value), *digests])


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
            return files.read_arrays(path)
        except ValueError:
            return None

    def save(self, part: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Keeps a part: its file is whole, or not there."""
        path = self._path(part)
        if path is None or not parallel.is_main():
            return
        files.write_arrays(path, arrays)
