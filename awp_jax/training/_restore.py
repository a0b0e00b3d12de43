"""Checkpoints of a run directory, by the names that people use."""

import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from awp_jax.training._checkpoints import AVERAGE, BEST, KEPT, LAST, CheckpointError, Checkpoints
from awp_jax.training._experiment import Experiment
from awp_jax.training._state import TrainState


def restore(
    workdir: pathlib.Path,
    experiment: Experiment,
    which: str,
    report: Callable[[str], None] = print,
) -> tuple[TrainState, dict[str, Any]]:
    """A checkpoint and its information.

    Args:
        workdir: The run directory.
        experiment: What its config stands for.
        which: ``"last"``, ``"best"``, ``"average"``, or ``"epoch-N"`` for a kept one.
        report: Gets one sentence per damaged checkpoint that was passed over.

    Returns:
        ``(state, info)``; info holds ``step``, ``seed`` and ``best``.

    Raises:
        CheckpointError: When there is none, or none is whole.
        ValueError: For another name.
    """
    epoch = _epoch(which)
    step = None if epoch is None else epoch * experiment.steps_per_epoch
    if epoch is not None and epoch not in (kept := kept_epochs(workdir, experiment)):
        raise CheckpointError(f"{workdir} has no checkpoint of epoch {epoch}: {_kept(kept)}")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    try:
        return checkpoints.restore(
            which if epoch is None else KEPT, experiment.abstract_state(), step=step, report=report
        )
    finally:
        checkpoints.close()


def kept_epochs(workdir: pathlib.Path, experiment: Experiment) -> list[int]:
    """Epochs whose checkpoints ``checkpoint.keep_every_epochs`` has kept, in order."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    try:
        return [s // experiment.steps_per_epoch for s in checkpoints.steps(KEPT)[::-1]]
    finally:
        checkpoints.close()


def checkpoint_names(
    workdir: pathlib.Path, experiment: Experiment, names: Iterable[str]
) -> list[str]:
    """The names that ``restore`` takes, of a selection.

    Args:
        workdir: The run directory.
        experiment: What its config stands for.
        names: ``"last"``, ``"best"``, ``"average"``, ``"epoch-N"``, or ``"every"`` for all that
            were kept.

    Returns:
        The selection in its order, each once.

    Raises:
        CheckpointError: For ``"every"`` where none was kept.
        ValueError: For any other name.
    """
    found: dict[str, None] = {}
    for name in names:
        if name != "every":
            _epoch(name)
            found[name] = None
            continue
        kept = kept_epochs(workdir, experiment)
        if not kept:
            raise CheckpointError(f"{workdir}: {_kept(kept)}")
        found |= {f"epoch-{epoch}": None for epoch in kept}
    return list(found)


def _kept(epochs: list[int]) -> str:
    if epochs:
        return f"kept were {', '.join(map(str, epochs))}."
    return "no epochs were kept; train with --config.checkpoint.keep_every_epochs=N to keep some."


def _epoch(which: str) -> int | None:
    match = re.fullmatch(r"epoch-([1-9]\d*)", which)
    if not match and which not in (LAST, BEST, AVERAGE):
        raise ValueError(
            f"checkpoint is {which!r}, but last, best, average or epoch-N was expected."
        )
    return int(match[1]) if match else None
