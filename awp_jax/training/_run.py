"""A finished or unfinished run, read back from its directory."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from jax.tree_util import Partial

from awp_jax import data
from awp_jax.config import from_dict
from awp_jax.training._checkpoints import AVERAGE, BEST, KEPT, LAST, CheckpointError, Checkpoints
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
            which: ``"last"``, ``"best"``, ``"average"``, or ``"epoch-N"`` for a kept one.
            report: Gets one sentence per damaged checkpoint that was passed over.

        Returns:
            ``(state, info)``; info holds ``step``, ``seed`` and ``best``.

        Raises:
            CheckpointError: When there is none, or none is whole.
        """
        epoch = _epoch(which)
        # Kept ones are saved at the end of an epoch, so the epoch gives the step.
        step = None if epoch is None else epoch * self.experiment.steps_per_epoch
        if epoch is not None and epoch not in self.kept_epochs():
            raise CheckpointError(
                f"{self.workdir} has no checkpoint of epoch {epoch}: {self._kept()}"
            )
        # The run may still be training: nothing of it is moved or deleted.
        checkpoints = Checkpoints(self.workdir / "checkpoints", read_only=True)
        try:
            return checkpoints.restore(
                which if epoch is None else KEPT,
                self.experiment.abstract_state(),
                step=step,
                report=report,
            )
        finally:
            # Orbax's threads would stay otherwise.
            checkpoints.close()

    def kept_epochs(self) -> list[int]:
        """Epochs whose checkpoints ``checkpoint.keep_every_epochs`` has kept, in order."""
        checkpoints = Checkpoints(self.workdir / "checkpoints", read_only=True)
        try:
            return [s // self.experiment.steps_per_epoch for s in checkpoints.steps(KEPT)[::-1]]
        finally:
            checkpoints.close()

    def checkpoint_names(self, names: Iterable[str]) -> list[str]:
        """The names that ``restore`` takes, of a selection.

        Args:
            names: ``"last"``, ``"best"``, ``"average"``, ``"epoch-N"``, or ``"every"`` for all
                that were kept.

        Returns:
            The selection in its order, each once.

        Raises:
            CheckpointError: For ``"every"`` where none was kept.
            ValueError: For any other name.
        """
        # A dict and no set: in the order asked for, each once.
        found: dict[str, None] = {}
        for name in names:
            if name != "every":
                # Called for the error that it raises; the name is kept as it is.
                _epoch(name)
                found[name] = None
                continue
            kept = self.kept_epochs()
            if not kept:
                raise CheckpointError(f"{self.workdir}: {self._kept()}")
            found |= {f"epoch-{epoch}": None for epoch in kept}
        return list(found)

    def _kept(self) -> str:
        kept = self.kept_epochs()
        if kept:
            return f"kept were {', '.join(map(str, kept))}."
        return (
            "no epochs were kept; train with --config.checkpoint.keep_every_epochs=N to keep some."
        )

    def apply_fn(self, state: TrainState) -> Partial:
        """``(params, images) -> logits`` with the running statistics of a restored state."""
        return self.experiment.classifier.apply_fn(state.batch_stats)

    def logits_fn(self, state: TrainState) -> Partial:
        """``images -> logits`` of a restored state, on running statistics.

        A randomised model takes ``(images, key)``.
        """
        return self.experiment.classifier.logits_fn(state.params, state.batch_stats)


def _epoch(which: str) -> int | None:
    match = re.fullmatch(r"epoch-([1-9]\d*)", which)
    if not match and which not in (LAST, BEST, AVERAGE):
        raise ValueError(
            f"checkpoint is {which!r}, but last, best, average or epoch-N was expected."
        )
    return int(match[1]) if match else None


def open_run(
    workdir: str | pathlib.Path,
    splits: data.Splits | None = None,
    *,
    devices: int | None = None,
    dtype: str | None = None,
) -> Run:
    """Opens a run directory.

    Args:
        workdir: As given to ``train``.
        splits: Data to use in place of what the config names.
        devices: Use the first so many; ``None`` for all.
        dtype: What the model computes in, in place of ``model.dtype``; ``None`` for that one. To
            judge a model take ``"float32"``: rounding to bfloat16 hides what attacks would find.

    Returns:
        The run; no checkpoint is read yet.

    Raises:
        WorkdirError: When it is no run directory.
        ValueError: When its config does not fit this version, or its data is missing.
    """
    workdir = pathlib.Path(workdir)
    config = from_dict(read_config(workdir))
    if dtype is not None:
        config.model.dtype = dtype
    return Run(workdir, build(config, splits, devices=devices))
