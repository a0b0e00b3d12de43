"""The training loop: a run directory from a config, resumable at any step."""

import contextlib
import copy
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from awp_jax import data, parallel
from awp_jax.files import StorageError
from awp_jax.parts import NONE, Parts
from awp_jax.progress import Progress, Show
from awp_jax.training import _records as records
from awp_jax.training._checkpoints import BEST, KEPT, LAST, Checkpoints
from awp_jax.training._experiment import Experiment, build
from awp_jax.training._feed import Feed
from awp_jax.training._initial import check_start, initial_state
from awp_jax.training._outcome import NonFiniteError, Outcome
from awp_jax.training._own_batches import OwnBatches, go_on
from awp_jax.training._pending import Pending, Told
from awp_jax.training._selection import Selection, StoppedError
from awp_jax.training._settings import check_shares, check_workers
from awp_jax.training._state import TrainState
from awp_jax.training._teacher import check_same, mark_of, with_teacher
from awp_jax.training._trackers import trackers

# With optimizer.non_finite "skip", so many skipped steps one after the other stop the run all the
# same: nothing changes any more but the batch.
MOST_SKIPPED = 100


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    splits: data.Splits | None = None,
    max_steps: int | None = None,
    devices: int | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Show = "auto",
    extend: bool = False,
    given: Parts = NONE,
    batches: Iterable[Any] | None = None,
) -> Outcome:
    """Trains as ``config`` says, in ``workdir``; a started run goes on where it was.

    Writes ``config.json``, ``metrics.jsonl`` and ``checkpoints/``. Everything but the state is a
    function of the seed and the step, so a resumed run ends with the same parameters, bit by bit on
    the same devices and to rounding on others.

    With several processes (``awp_jax.parallel.initialize``) all of them call this with the same
    arguments; process 0 writes config and metrics, all write their part of the checkpoints.

    Args:
        config: In the schema of ``awp_jax.config.default``.
        workdir: The run directory, made when it is not there.
        splits: Data to use in place of what ``config.data`` names.
        max_steps: Stop (and save) after this step; ``None`` for the end.
        devices: Use the first so many; ``None`` for all. The batch must divide by their number.
        should_stop: Asked after every step (or call, with ``training.steps_per_call``), and between
            the batches of an evaluation (which is then made when the run goes on); once it says so,
            the run is saved and returns. With several processes the notice of preemption that JAX's
            service passes on counts instead, and an evaluation is finished first.
        progress: ``None`` for none, ``"text"`` for lines, ``"bar"``, ``"auto"`` for a bar on a
            terminal and lines elsewhere, or a function that gets an ``awp_jax.progress.Moment``.
        extend: Whether a run in ``workdir`` may go on to more epochs than it was begun with, with
            its optimiser's state; the schedule is that of the new number from there on.
        given: Parts to use in place of what the config's names find, see ``awp_jax.parts``.
        batches: Yields ``{"image": ..., "label": ...}`` to train on in place of the training set,
            see ``OwnBatches``; an epoch has as many as fit into that set.

    Returns:
        An ``Outcome``.

    Raises:
        ValueError: One sentence, before anything is written, for bad values, missing data, another
            config in ``workdir``, a second process in it, or damaged checkpoints.
        StorageError: When the disk is full, say; checkpoints and metrics before are whole.
        NonFiniteError: When loss, gradient or new weights are NaN or infinite, with the step, the
            learning rate and the norms; with ``optimizer.non_finite`` "skip" such a step leaves the
            state as it was, and only 100 of them one after the other stop the run.
    """
    workdir = pathlib.Path(workdir)
    config = records.absolute_paths(copy.deepcopy(config))
    experiment = build(
        config, splits, devices=devices, given=given, streamed=batches is not None, sharded=True
    )
    own = None if batches is None else OwnBatches(batches, experiment)
    check_shares(experiment.config, experiment.mesh.size)
    check_workers(experiment)
    experiment = with_teacher(experiment)
    start = experiment.config.init_from
    if start and not (workdir / "config.json").exists():  # a started run needs it no more
        check_start(start)
    main, problem, started = parallel.is_main(), None, False
    with contextlib.ExitStack() as held:
        try:
            if main:
                held.enter_context(records.locked(workdir))
                started = records.claim(workdir, experiment.config, extend)
        except ValueError as error:
            problem = error
        if not parallel.main_says(problem is None):
            raise problem or parallel.DistributedError(
                f"Process 0 of this run cannot use {workdir}, and says why."
            )
        return _Run(experiment, workdir, progress, should_stop, own).go(max_steps, started)


class _Run:
    """One call of ``train``: what the loop needs to remember beside the state."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: pathlib.Path,
        progress: Show,
        should_stop: Callable[[], bool] | None,
        own: OwnBatches | None = None,
    ) -> None:
        self.experiment, self.config, self.own = experiment, experiment.config, own
        self.teacher = mark_of(experiment)
        self.workdir = workdir
        self.show = progress
        self.should_stop = should_stop
        self.preempted = False
        self.unmeasured = False  # stopped while it measured its last epoch
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self.selection = Selection(experiment, workdir, self.checkpoints, should_stop)
        self.clean_accuracy: float | None = None
        self.pending = Pending()
        self.calls = 0  # to the compiled step or steps
        self.skipped = self.in_a_row = 0  # steps that were not finite
        self.seconds = time.perf_counter()  # since when the images of this epoch are counted
        self.images = 0
        self.started: float | None = self.seconds  # None once the first step is done

    def go(self, max_steps: int | None, started: bool) -> Outcome:
        experiment = self.experiment
        total = experiment.total_steps
        self.end = total if max_steps is None else min(total, max_steps)
        state = self._first_state()
        step = self.calls = int(state.step)
        self.feed = Feed(experiment, self.own)
        self.progress = Progress(total, step, show=self.show)
        measured = self.selection.is_measured(step)
        self.metrics = None
        if parallel.is_main():
            config = self.config
            found = trackers(config.logging.tracker, self.workdir, records.plain(config))
            self.metrics = records.Metrics(self.workdir, step, measured, found)
        if step:
            self.progress.line(f"Resuming at step {step} of {total}.")
        elif started:
            self.progress.line("The run was stopped before its first checkpoint: it begins anew.")
        try:
            if not measured:
                self._end_epoch(state, step)
            while step < self.end:
                state, step = self._epoch(state, step)
            self._save_once(state, step)
            self.checkpoints.wait()
        except BaseException:
            with contextlib.suppress(StorageError):  # the first failure is the one to tell
                self._close()
            raise
        self._close()
        finished = step == total and not self.unmeasured
        return Outcome(state, finished, self.selection.best, self.preempted and not finished)

    def _close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
        self.progress.close()
        self.feed.close()
        self.checkpoints.close()

    def _first_state(self) -> TrainState:
        if not self.checkpoints.steps(LAST):
            # Killed before the first one; averages and kept ones are saved before it.
            self.checkpoints.discard_after(0)
            go_on(self.own, 0, {}, self.workdir)
            return initial_state(self.experiment)
        state, info = self.checkpoints.restore(
            LAST, self.experiment.abstract_state(), report=lambda text: print(text, file=sys.stderr)
        )
        check_same(self.teacher, info, self.config.objective.teacher)
        step = int(state.step)
        self.checkpoints.discard_after(step)
        go_on(self.own, step, info, self.workdir)
        self.skipped = info.get("skipped_steps", 0)
        best = info["best"]
        if self.checkpoints.steps(BEST) == [step]:  # found after the last one was saved
            best = (self.checkpoints.info(BEST, step) or info)["best"]
        elif best and best["step"] == step:  # killed between the two
            self.checkpoints.save(BEST, state, info)
        self.selection.best = best
        return state

    def _epoch(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Steps up to the end of the epoch, or to ``self.end``."""
        experiment, config = self.experiment, self.config
        epoch = step // experiment.steps_per_epoch
        order = experiment.order(epoch)
        last_of_epoch = (epoch + 1) * experiment.steps_per_epoch
        self.feed.begin(range(step, last_of_epoch), order)
        self.seconds, self.images = time.perf_counter(), 0
        every = config.checkpoint.every_steps
        while step < min(last_of_epoch, self.end):
            count = experiment.steps_of_call(step, self.end)
            steps = range(step, step + count)
            if count == 1:
                run, fed = experiment.step, self.feed(step)
            else:
                run, fed = experiment.steps, self.feed.several(steps)
            state, metrics = run(
                state,
                *fed,
                order,
                experiment.key,
                batch_size=experiment.rows_of(step),
                perturb_weights=experiment.perturbs_weights(step),
            )
            self.pending.add(steps, metrics)
            step, self.calls = step + count, self.calls + 1
            first = self.started is not None
            if self.started is not None:
                jax.block_until_ready(metrics)
                took = time.perf_counter() - self.started
                what = "First step" if count == 1 else f"First {count} steps"
                self.progress.line(f"{what} done after {took:.1f} s, compilation included.")
                self.started = None
            if len(self.pending) >= config.logging.every_steps:
                self._log(config.logging.every_steps)
            if first and step < min(last_of_epoch, self.end):  # compiling is no rate
                self.seconds = time.perf_counter()
                self.images = -sum(map(experiment.batch_size_of, self.pending.sent))
            if self._stop_requested():
                self.end, self.preempted = step, True
            if every and step % every == 0 and step < min(last_of_epoch, self.end):
                self._save(state, step)
        self._log()
        if step == last_of_epoch:
            done = epoch + 1
            keep = config.checkpoint.keep_every_epochs
            if keep and done % keep == 0:
                # Before the last one: killed in between, the run redoes the epoch and keeps it.
                self.checkpoints.save(KEPT, state, self._info(step))
            # Before it is measured: a run that is killed meanwhile loses the measurement alone.
            if done == config.epochs or done % config.checkpoint.every_epochs == 0:
                self._save(state, step)
            self._end_epoch(state, step)
        return state, step

    def _end_epoch(self, state: TrainState, step: int) -> None:
        """Measures the epoch that ends with this step, if it is one to measure."""
        epoch = step // self.experiment.steps_per_epoch
        if not self.selection.measures_after(epoch):
            return
        try:
            improved = self._evaluate(state, step, epoch)
        except StoppedError:
            self.end, self.preempted, self.unmeasured = step, True, True
            return
        if improved:
            self._save_once(state, step)
            self.checkpoints.save(BEST, state, self._info(step))

    def _stop_requested(self) -> bool:
        if jax.process_count() > 1:  # all of them must stop after the same step
            # Counted in calls, as JAX asks for numbers that follow one another.
            return multihost_utils.reached_preemption_sync_point(self.calls)
        return self.should_stop is not None and self.should_stop()

    def _log(self, every: int = 0) -> None:
        """Fetches what the device has computed, checks it, and writes lines, see ``Pending``."""
        self.images += sum(map(self.experiment.batch_size_of, self.pending.fetch()))
        for told in self.pending.tell(every):
            self._tell(told)

    def _tell(self, found: Told) -> None:
        """One line of these steps."""
        steps, values = [step for step, _ in found], [metrics for _, metrics in found]
        scales = [metrics.pop("loss_scale") for metrics in values if "loss_scale" in metrics]
        done = [
            (self.experiment.batch_size_of(step), metrics)
            for step, metrics in zip(steps, values, strict=True)
            if self._is_finite(step, metrics)
        ]
        seconds = time.perf_counter() - self.seconds
        record: dict[str, Any] = {
            "kind": "train",
            "step": steps[-1] + 1,
            "epoch": (steps[-1] + 1) / self.experiment.steps_per_epoch,
            "learning_rate": self._learning_rate(steps[-1]),
            # Means over the examples of the steps that were not skipped.
            **{
                name: float(np.average([v[name] for _, v in done], weights=[s for s, _ in done]))
                for name in (done[0][1] if done else ())
            },
            **({"loss_scale": float(scales[-1])} if scales else {}),
            # Of the epoch so far: the last batch of an epoch takes as long for fewer images.
            "images_per_second": self.images / max(seconds, 1e-9),
        }
        if self._skips:
            record["skipped_steps"] = self.skipped  # of the whole run
            if len(done) < len(steps):
                self.progress.line(
                    f"Steps {steps[0] + 1} to {steps[-1] + 1}: {len(steps) - len(done)} skipped, "
                    f"loss or gradient not finite; {self.skipped} in all."
                )
        self._write(record)
        shown = {"loss": "loss", "clean_accuracy": "clean", "robust_accuracy": "robust"}
        values_shown = {short: record[name] for name, short in shown.items() if name in record}
        # A step of AT has no clean forward pass: what the last evaluation found is shown.
        if "clean" not in values_shown and self.clean_accuracy is not None:
            values_shown["clean"] = self.clean_accuracy
        if self.skipped:
            values_shown["skipped"] = self.skipped
        values_shown["images/s"] = int(record["images_per_second"])
        where = f"step {steps[-1] + 1} of {self.experiment.total_steps}"
        self.progress.advance(len(steps), where, **values_shown)

    @property
    def _skips(self) -> bool:
        return self.config.optimizer.non_finite == "skip"

    def _learning_rate(self, step: int) -> float:
        # Skipped steps leave the optimiser's count, which the schedule follows, as it was.
        return float(self.experiment.learning_rate(max(step - self.skipped, 0)))

    def _is_finite(self, step: int, metrics: dict[str, Any]) -> bool:
        """Counts a step that is not finite; raises where that stops the run."""
        finite = bool(metrics.pop("finite")) and all(
            math.isfinite(metrics[name]) for name in ("loss", "gradient_norm")
        )
        if finite:
            self.in_a_row = 0
            return True
        rate = self._learning_rate(step)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self._skips and self.in_a_row < MOST_SKIPPED:
            return False
        loss, norm, weights, perturbation = (
            float(metrics[name])
            for name in ("loss", "gradient_norm", "weight_norm", "perturbation_norm")
        )
        after = " and overflows the weights" if math.isfinite(loss + norm) else ""
        before = f", as {self.in_a_row - 1} skipped steps before" if self._skips else ""
        raise NonFiniteError(
            f"Step {step + 1}: the loss is {loss} and the gradient norm {norm}{after} at learning "
            f"rate {rate:g}, weight norm {weights:g} and perturbation norm {perturbation:g}"
            f"{before}; training stops, and the checkpoints before are kept."
        )

    def _evaluate(self, state: TrainState, step: int, epoch: int) -> bool:
        """Measures clean and robust accuracy; says whether selection calls this the best."""
        started = time.perf_counter()
        record, improved = self.selection.evaluate(state, step, epoch)
        self.seconds += time.perf_counter() - started
        self._write(record)
        parts = [
            f"{name} {record[name]['clean_accuracy']:.1%} clean, "
            f"{record[name]['robust_accuracy']:.1%} robust"
            for name in ("train", "validation", "test")
            if name in record
        ]
        chosen = self.config.evaluation.selection
        self.clean_accuracy = record[chosen]["clean_accuracy"]
        star = f"  (best on {chosen})" if improved else ""
        self.progress.line(f"epoch {epoch:>3}  {'; '.join(parts)}{star}")
        return improved

    def _write(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(record)

    def _info(self, step: int) -> dict[str, Any]:
        found = {"step": step, "best": self.selection.best, "seed": self.config.seed}
        own = {} if self.own is None else {"batches": self.own.state(step)}
        return found | own | self.teacher | {"skipped_steps": self.skipped}

    def _save_once(self, state: TrainState, step: int) -> None:
        if self.checkpoints.steps(LAST)[:1] != [step]:
            self._save(state, step)

    def _save(self, state: TrainState, step: int) -> None:
        self._log()  # raises before a state that is not finite could be saved
        self.checkpoints.save(LAST, state, self._info(step))
