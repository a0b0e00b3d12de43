"""The run directory: its config, its metrics, and the lock that keeps a second run out."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from awp_jax import files
from awp_jax.config import from_dict
from awp_jax.training._trackers import Tracker, scalars

CONFIG, METRICS = "config.json", "metrics.jsonl"
# Groups of keys that may be other ones each time that a run goes on.
_HOW = ("parallel", "training")


class WorkdirError(ValueError):
    """A run directory cannot be used; the message is one sentence that says why."""


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON would give it back (tuples as lists)."""
    return json.loads(config.to_json())


def read_config(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The config that a run directory was made with.

    Raises:
        WorkdirError: When there is none, or it is damaged.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.is_file():
        raise WorkdirError(f"{workdir} holds no {CONFIG}: it is not a run directory.")
    return files.read_json(path, WorkdirError)


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            text
            for key in keys
            for text in _differences(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    return [] if old == new else [f"{prefix[:-1]} is {old!r} there and {new!r} here"]


def absolute_paths(config: ConfigDict) -> ConfigDict:
    """``config`` with absolute paths: a run is opened again from other directories."""
    for key in ("init_from", "data.path", "data.extra", "data.extra_labels", "objective.teacher"):
        group, _, name = key.rpartition(".")
        held = config[group] if group else config
        if held[name]:
            several = name in ("extra", "extra_labels")
            paths = files.several(held[name]) if several else [held[name]]
            held[name] = ",".join(str(pathlib.Path(p).expanduser().absolute()) for p in paths)
    return config


def claim(workdir: pathlib.Path, config: ConfigDict, extend: bool = False) -> bool:
    """Writes ``config.json``, or checks that the one that is there says the same.

    Args:
        workdir: The run directory.
        config: A validated config.
        extend: Whether it may have more epochs than the one that is there, which it replaces.

    Returns:
        Whether one was there: the run has been started before.

    Raises:
        WorkdirError: When the directory holds another config, or files but no config.
    """
    values = plain(config)
    if (workdir / CONFIG).exists():
        # A key that a later version has added counts with its default.
        old = plain(absolute_paths(from_dict(read_config(workdir))))
        before, old = old, old | {name: values[name] for name in _HOW}
        found = _differences(old, values)
        grown = old | {"epochs": values["epochs"]} == values and values["epochs"] > old["epochs"]
        if grown and extend:
            files.write_json(workdir / CONFIG, values)
            return True
        if grown:
            raise WorkdirError(
                f"{workdir} holds a run of {old['epochs']} epochs, not {values['epochs']}: "
                "--extend goes on with its optimiser's state, another --workdir with "
                f"--config.init_from={workdir} begins anew from its weights."
            )
        if found:
            more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
            raise WorkdirError(
                f"{workdir} holds a run with another config: {'; '.join(found[:3])}{more}; "
                "choose another --workdir."
            )
        if before != values:
            files.write_json(workdir / CONFIG, values)
        return True
    if (workdir / METRICS).exists() or (workdir / "checkpoints").exists():
        raise WorkdirError(
            f"{workdir} holds metrics or checkpoints but no {CONFIG}; choose another --workdir."
        )
    files.write_json(workdir / CONFIG, values)
    return False


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the run directory for this process.

    Raises:
        WorkdirError: When another process holds it, or it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise WorkdirError(f"{workdir} cannot be used as a run directory: {error}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkdirError(f"Another process is using {workdir}.") from None
        yield


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line torn by a kill is left out.

    Raises:
        WorkdirError: When a line in the middle is damaged.
    """
    path = pathlib.Path(workdir) / METRICS
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise WorkdirError(f"{path} is damaged in line {number}.") from None
    return records


class Metrics:
    """Appends to ``metrics.jsonl``: one whole line per record, which trackers get as well.

    Args:
        workdir: The run directory.
        after_step: Lines of later steps are dropped first (they will be written again by the
            resumed run).
        measured: Whether the evaluation at this step stays; else it is dropped as well.
        followers: What else gets each record's numbers; they are closed with it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        after_step: int,
        measured: bool = True,
        followers: Sequence[Tracker] = (),
    ) -> None:
        again = [] if measured else [("evaluation", after_step)]
        kept = [
            r
            for r in read_metrics(workdir)
            if r["step"] <= after_step and (r["kind"], r["step"]) not in again
        ]
        path = pathlib.Path(workdir) / METRICS
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._followers = followers

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record, which must hold ``step`` and ``kind``, whole or not at all.

        Raises:
            StorageError: When it cannot be written.
        """
        rest = (json.dumps(record) + "\n").encode()
        before = os.fstat(self._file).st_size
        with files.writing(self._path):
            try:
                while rest:  # a part of it may be taken, as when the disk is nearly full
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                os.ftruncate(self._file, before)
                raise
        for follower in self._followers:
            follower.log(scalars(record), record["step"])

    def close(self) -> None:
        """Closes the files."""
        os.close(self._file)
        for follower in self._followers:
            follower.close()
