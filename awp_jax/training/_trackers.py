"""Where the lines of ``metrics.jsonl`` go as well: TensorBoard, Weights & Biases, Trackio.

``metrics.jsonl`` is the record; these are copies, of the first process alone.
"""

import contextlib
import hashlib
import importlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from awp_jax.extras import needed_by


class Tracker(Protocol):
    """What follows a run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, at a step."""

    def close(self) -> None:
        """The process ends."""


def trackers(chosen: str | None, workdir: pathlib.Path, config: Mapping[str, Any]) -> list[Tracker]:
    """TensorBoard where it is installed, and what ``logging.tracker`` names.

    Args:
        chosen: ``None`` or ``"SERVICE:PROJECT"``, of a service with wandb's init, log and finish.
        workdir: The run directory.
        config: What is trained, as plain values.

    Raises:
        MissingExtraError: For a service that is not installed.
        ValueError: For one that refuses, such as without a login.
    """
    found: list[Tracker] = []
    board = _board(workdir)
    if board is not None:
        found.append(TensorBoard(board))
    if chosen:
        service, _, project = chosen.partition(":")
        found.append(Service(service, project, workdir, config))
    return found


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by name, ``evaluation/test/robust_accuracy``."""
    return dict(_scalars(record, record["kind"]))


def _scalars(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            yield f"{prefix}/{key}", value


class TensorBoard:
    """Files for TensorBoard, by tensorboardX."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def _is_alive(self) -> bool:
        """Whether tensorboardX still writes: its thread ends where the disk is full."""
        writer = getattr(getattr(self._board, "file_writer", None), "event_writer", None)
        thread = getattr(writer, "_worker", None)
        return thread is None or thread.is_alive()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        if self._is_alive():  # it would wait for its thread for ever
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """See ``Tracker``."""
        if self._is_alive():
            with contextlib.suppress(OSError):
                self._board.close()


def _board(workdir: pathlib.Path) -> Any:
    try:
        import tensorboardX
    except ImportError:
        return None
    return tensorboardX.SummaryWriter(str(workdir / "tensorboard"))


class Service:
    """A run at Weights & Biases, or what has its interface; a resumed run goes on there."""

    def __init__(
        self, name: str, project: str, workdir: pathlib.Path, config: Mapping[str, Any]
    ) -> None:
        with needed_by(f"logging.tracker={name}"):
            self._module = importlib.import_module(name)
        where = str(workdir.resolve())
        options: dict[str, Any] = {"project": project, "config": dict(config), "resume": "allow"}
        if name == "wandb":
            # The directory is the run: the same one goes on, without a file that says so.
            options["id"] = hashlib.sha256(where.encode()).hexdigest()[:16]
            options["dir"] = where
        try:
            self._module.init(name=workdir.resolve().name, **options)
        except Exception as error:  # of the service: no login, no network, a wrong project
            words = str(error).strip().partition("\n")[0]
            raise ValueError(f"logging.tracker: {name} says: {words}") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """See ``Tracker``."""
        self._module.finish()
