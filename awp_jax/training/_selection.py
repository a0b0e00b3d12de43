"""Clean and robust accuracy after epochs, and which checkpoint they choose."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from awp_jax import data, parallel, streams
from awp_jax.evaluation import measure_each
from awp_jax.training import _records as records
from awp_jax.training._checkpoints import AVERAGE, Checkpoints
from awp_jax.training._configured import evaluation_attack
from awp_jax.training._experiment import Experiment
from awp_jax.training._state import TrainState

_Sets = dict[str, data.Dataset | data.StoredImages]


class StoppedError(Exception):
    """The run was told to stop while it measured."""


class Selection:
    """Measures a run, and remembers its best epoch.

    Args:
        experiment: What the config stands for.
        workdir: The run directory.
        checkpoints: Those of the run; averages are saved there.
        should_stop: Asked between batches; see ``train``.

    Attributes:
        best: ``{"step", "epoch", "selection", "robust_accuracy"}``; ``None`` before the first.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.best: dict[str, Any] | None = None
        self._experiment = experiment
        self._config = experiment.config
        self._workdir = workdir
        self._checkpoints = checkpoints
        self._should_stop = should_stop

    def measures_after(self, epoch: int) -> bool:
        """Whether an evaluation follows so many epochs."""
        return epoch % self._config.evaluation.every_epochs == 0 or epoch == self._config.epochs

    def is_measured(self, step: int) -> bool:
        """Whether what follows the checkpoint of this step, the evaluation of its epoch, is done.

        Of several processes all must call this.
        """
        epoch, left = divmod(step, self._experiment.steps_per_epoch)
        if not step or left or not self.measures_after(epoch):
            return True
        averages = self._config.averaging.name != "none"
        if averages and self._checkpoints.steps(AVERAGE)[:1] != [step]:
            return False
        return parallel.main_says(parallel.is_main() and self._is_recorded(step))

    def _is_recorded(self, step: int) -> bool:
        found = [
            record
            for record in records.read_metrics(self._workdir)
            if (record["kind"], record["step"]) == ("evaluation", step)
        ]
        # One that improves, but whose best checkpoint was not written, is measured again.
        return bool(found) and (self._is_best(step) or not self._improves(found[-1]))

    def _is_best(self, step: int) -> bool:
        return self.best is not None and self.best["step"] == step

    def _improves(self, record: dict[str, Any]) -> bool:
        chosen = record[self._config.evaluation.selection]["robust_accuracy"]
        return self.best is None or chosen > self.best["robust_accuracy"]

    def evaluate(self, state: TrainState, step: int, epoch: int) -> tuple[dict[str, Any], bool]:
        """The record of clean and robust accuracy, and whether it is the best.

        Raises:
            StoppedError: When the run was told to stop meanwhile; nothing has changed then.
        """
        settings, splits = self._config.evaluation, self._experiment.splits
        sets: _Sets = {"test": data.subset(splits.test, settings.test_examples)}
        if splits.validation is not None:
            sets["validation"] = splits.validation
        if settings.train_examples:
            sets["train"] = data.subset(splits.train, settings.train_examples)
        record: dict[str, Any] = {"kind": "evaluation", "step": step, "epoch": epoch}
        record.update(self._measure(state, sets))
        if self._config.averaging.name != "none":
            averaged = self._experiment.averaged(state)
            record["average"] = self._measure(averaged, sets)
            info = {"step": step, "best": None, "seed": self._config.seed}
            self._checkpoints.save(AVERAGE, averaged, info | {"average": record["average"]})
        # Measured again after a kill, it is still the best.
        improved = self._improves(record) or self._is_best(step)
        if improved:
            self.best = {
                "step": step,
                "epoch": epoch,
                "selection": settings.selection,
                "robust_accuracy": record[settings.selection]["robust_accuracy"],
            }
        return record, improved

    def _measure(self, state: TrainState, sets: _Sets) -> dict[str, Any]:
        """Clean and robust accuracy and loss of a state on each set."""
        # Whole weights, where they lie in parts: what judges holds nothing else.
        whole = parallel.gathered(self._experiment.mesh, (state.params, state.batch_stats))
        logits_fn = self._experiment.classifier.logits_fn(*whole)
        # One random pass is enough for a curve; `awp-jax evaluate` averages over many.
        eot = int(self._experiment.classifier.is_random)
        attack = evaluation_attack(self._config, eot=eot)
        options = {
            "key": jax.random.fold_in(self._experiment.key, streams.RUN_VALIDATION),
            "batch_size": self._config.evaluation.batch_size,
            "eot": eot,
            "on_batch": self._look_for_a_stop,
        }
        found = {}
        for name, stored in sets.items():
            part = stored.in_memory()
            attacks = {"clean": None, "robust": attack}
            both = measure_each(logits_fn, part.images, part.labels, attacks, **options)
            clean, robust = both["clean"], both["robust"]
            found[name] = {
                "clean_accuracy": clean.accuracy,
                "clean_loss": clean.loss,
                "robust_accuracy": robust.accuracy,
                "robust_loss": robust.loss,
                "examples": clean.examples,
            }
        return found

    def _look_for_a_stop(self, done: int) -> None:
        del done
        # Several processes would have to stop after the same batch, so they go on.
        if jax.process_count() == 1 and self._should_stop is not None and self._should_stop():
            raise StoppedError
