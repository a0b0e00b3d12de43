"""A finished or unfinished run, read back from its directory."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from jax.tree_util import Partial

from awp_jax import data
from awp_jax.config import from_dict
from awp_jax.training._checkpoints import KINDS, Checkpoints
from awp_jax.training._experiment import Experiment, build
from awp_jax.training._records import read_config
from awp_jax.training._state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run directory, opened for reading.

    Attributes:
        workdir: The directory.
        experiment: What its config stands for: data, classifier, optimiser.
    """

    workdir: pathlib.Path
    experiment: Experiment

    def restore(
        self, which: str, report: Callable[[str], None] = print
    ) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint and its information.

        Args:
            which: ``"last"``, ``"best"`` or ``"average"``.
            report: Gets one sentence per damaged checkpoint that was passed over.

        Returns:
            ``(state, info)``; info holds ``step``, ``seed`` and ``best``.

        Raises:
            CheckpointError: When there is none, or none is whole.
        """
        if which not in KINDS:
            raise ValueError(
                f"checkpoint is {which!r}, but one of {', '.join(KINDS)} was expected."
            )
        checkpoints = Checkpoints(self.workdir / "checkpoints", read_only=True)
        try:
            return checkpoints.restore(which, self.experiment.abstract_state(), report=report)
        finally:
            checkpoints.close()

    def logits_fn(self, state: TrainState) -> Partial:
        """``images -> logits`` of a restored state, on running statistics."""
        return self.experiment.classifier.logits_fn(state.params, state.batch_stats)


def open_run(workdir: str | pathlib.Path, splits: data.Splits | None = None) -> Run:
    """Opens a run directory.

    Args:
        workdir: As given to ``train``.
        splits: Data to use in place of what the config names.

    Returns:
        The run; no checkpoint is read yet.

    Raises:
        WorkdirError: When it is no run directory.
        ValueError: When its config does not fit this version, or its data is missing.
    """
    workdir = pathlib.Path(workdir)
    return Run(workdir, build(from_dict(read_config(workdir)), splits))
