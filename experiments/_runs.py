"""Run directories: training them, measuring them, and reading back what was measured."""

import functools
import json
import pathlib
import shutil
import time
import warnings
from typing import Any

import jax
from ml_collections import ConfigDict

from awp_jax import config as schema
from awp_jax import data
from awp_jax.training import (
    Run,
    TrainState,
    WorkdirError,
    create_classifier,
    open_run,
    plain,
    read_metrics,
    subset,
    train,
    write_json,
)
from experiments._cells import Experiment, Job, NotAvailable, digest
from experiments._measures import Measure, Unavailable
from experiments._scales import Scale

_RUNS, _MEASURES, _PARTIAL = "runs", "measures", "measures.partial"


class Place:
    """Where an experiment lies in a work directory.

    Runs are shared: cells with the same config, of any experiment, are one run directory.

    Args:
        workdir: The work directory.
        experiment: The experiment.
    """

    def __init__(self, workdir: str | pathlib.Path, experiment: Experiment):
        self.workdir = pathlib.Path(workdir)
        self.experiment = experiment
        self.folder = self.workdir / experiment.full_name / experiment.scale.name

    def config(self, job: Job) -> ConfigDict:
        """The config of a job, at the experiment's scale.

        Raises:
            NotAvailable: When this version lacks what it needs.
        """
        return job.cell.at(self.experiment.scale, job.seed)

    def run(self, config: ConfigDict) -> pathlib.Path:
        """The run directory of a config: named so that a person finds it, and by all its values."""
        weights = "" if config.weights.method == "none" else f"-{config.weights.method}"
        name = f"{config.data.name}-{config.model.name}-{config.attack.norm}"
        name += f"-{config.objective.name}{weights}-seed{config.seed}"
        return self.workdir / _RUNS / f"{name}-{digest(config)}"

    def claim(self, job: Job, config: ConfigDict) -> None:
        """Writes what a cell is, or checks that what is there is the same.

        Raises:
            WorkdirError: When the work directory holds another version of the cell.
        """
        path = self._claim_path(job)
        values = {"cell": job.cell.name, "seed": job.seed, "config": plain(config)}
        if path.exists():
            self._check_claim(path, job, values)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values)

    def check(self, job: Job, config: ConfigDict) -> None:
        """As ``claim``, without writing."""
        path = self._claim_path(job)
        if path.exists():
            values = {"cell": job.cell.name, "seed": job.seed, "config": plain(config)}
            self._check_claim(path, job, values)

    def _claim_path(self, job: Job) -> pathlib.Path:
        safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in job.cell.name)
        return self.folder / "cells" / f"{safe}-seed{job.seed}.json"

    def _check_claim(self, path: pathlib.Path, job: Job, values: dict[str, Any]) -> None:
        try:
            found = json.loads(path.read_text())
            theirs = found["config"]
        except (ValueError, KeyError, TypeError):
            raise WorkdirError(f"{path} is damaged: delete it.") from None
        if found != values:
            keys = sorted(_flat(theirs).items() ^ _flat(values["config"]).items())
            names = ", ".join(dict.fromkeys(key for key, _ in keys)) or "its name"
            raise WorkdirError(
                f"{self.workdir} holds another version of cell {job.label!r} (it differs in "
                f"{names}): choose another --workdir, or delete {path}."
            )

    def result(self, job: Job, measure: Measure) -> Any:
        """The result of a measure, or ``None`` when it has not been measured with these settings.

        Raises:
            NotAvailable: As ``config``.
        """
        path = _result_path(self.run(self.config(job)), measure)
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
        except ValueError:
            return None
        return found if found["settings"] == measure.settings(self.experiment.scale) else None

    def missing(self, job: Job) -> list[Measure]:
        """What is still to be measured on a job."""
        wanted = self.experiment.measures(job.cell.name)
        return [m for m in wanted if self.result(job, m) is None]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat


def _result_path(run: pathlib.Path, measure: Measure) -> pathlib.Path:
    return run / _MEASURES / f"{measure.slug()}.json"


def model_key(config: ConfigDict) -> str:
    """What tells models apart, as text that can be hashed: the config without the rest."""
    values = plain(config)
    loss_only = ("name", "beta", "lambda_", "label_smoothing")  # an objective may add a head
    objective = {k: v for k, v in values["objective"].items() if k not in loss_only}
    kept = {"model": values["model"], "data": {"name": config.data.name}, "objective": objective}
    return json.dumps(kept)


@functools.cache
def classifier_of(model: str, shape: tuple[int, ...], classes: int) -> Any:
    """One classifier object for all runs of an architecture: attacks on it are compiled once.

    Args:
        model: From ``model_key``.
        shape: Of an image.
        classes: Number of logits.
    """
    return create_classifier(schema.from_dict(json.loads(model)), shape, classes)


class Opened:
    """A trained run, opened for measuring; what is read once stays in memory.

    Args:
        place: The experiment's place.
        job: What the run is of.
    """

    def __init__(self, place: Place, job: Job):
        self._place, self._job = place, job
        self.directory = place.run(place.config(job))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "weights.gamma is")
            self._run: Run = open_run(self.directory)
        self.experiment = self._run.experiment
        self.config = self.experiment.config
        train_set = self.experiment.splits.train
        shape, classes = train_set.images.shape[1:], train_set.num_classes
        self.classifier = classifier_of(model_key(self.config), shape, classes)
        self.partial = self.directory / _PARTIAL

    def _name(self, checkpoint: str) -> str:
        averaged = "averaging" in self.config and self.config.averaging.name != "none"
        if checkpoint == "last" and averaged:
            return "average"  # the model that a run with SWA ends with
        if not checkpoint.endswith("%"):
            return checkpoint
        if "keep_every_epochs" not in self.config.checkpoint:
            raise Unavailable("Checkpoints during training are not available in this version.")
        scale: Scale = self._place.experiment.scale
        return f"epoch-{scale.epoch(self.config, int(checkpoint[:-1]))}"

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _restored(self, name: str) -> tuple[TrainState, dict[str, Any]]:
        return self._run.restore(name)

    def state(self, checkpoint: str) -> TrainState:
        """The state of ``"best"``, ``"last"`` or ``"40%"``."""
        return self._restored(self._name(checkpoint))[0]

    def identity(self, checkpoint: str) -> Any:
        """What tells the state from others."""
        return self._restored(self._name(checkpoint))[1].get("digest")

    def logits_fn(self, checkpoint: str) -> Any:
        """``images -> logits`` of a checkpoint."""
        state = self.state(checkpoint)
        return self.classifier.logits_fn(state.params, state.batch_stats)

    def apply_fn(self, checkpoint: str) -> Any:
        """``(params, images) -> logits`` with the statistics of a checkpoint."""
        return self.classifier.apply_fn(self.state(checkpoint).batch_stats)

    def part(self, name: str, examples: int | None) -> data.Dataset:
        """The first ``examples`` of a set."""
        whole = getattr(self.experiment.splits, name)
        return whole if examples is None else subset(whole, examples)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_metrics(self.directory)

    def sibling(self, cell: str) -> "Opened":
        """Another cell of the experiment, by the same number of its seeds, or the first.

        Raises:
            WorkdirError: When it has not been trained.
        """
        jobs = [j for j in self._place.experiment.jobs() if j.cell.name == cell]
        number = self._job.seed - self._job.cell.first_seed
        job = jobs[number if number < len(jobs) else 0]
        directory = self._place.run(self._place.config(job))
        if not directory.is_dir():
            raise WorkdirError(f"Cell {cell!r} must run before {self._job.cell.name!r} can.")
        return Opened(self._place, job)


def run_job(place: Place, job: Job, *, quiet: bool = False) -> list[str]:
    """Trains and measures what is missing of a cell; a stopped one goes on where it was.

    Args:
        place: The experiment's place.
        job: The cell and its seed.
        quiet: Whether to show no progress of the training.

    Returns:
        What this version could not measure, one sentence each.

    Raises:
        NotAvailable: When this version lacks what the cell needs.
        ValueError: One sentence, for missing data and directories that cannot be used.
    """
    config = place.config(job)
    place.claim(job, config)
    if is_done(place, job):
        return []
    missing, problems = place.missing(job), []
    directory = place.run(config)
    if not (directory / _MEASURES).is_dir():  # made when a run is finished
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "weights.gamma is")  # as published, see Cell
            train(config, directory, quiet=quiet)
        (directory / _MEASURES).mkdir()
    opened = Opened(place, job)
    for measure in missing:
        began = time.perf_counter()
        try:
            measure.check()
            value = measure.compute(opened, place.experiment.scale)
        except Unavailable as error:
            problems.append(str(error))
            continue
        path = _result_path(directory, measure)
        write_json(
            path,
            {
                "settings": measure.settings(place.experiment.scale),
                "value": value,
                "seconds": round(time.perf_counter() - began, 2),
                "device": jax.devices()[0].device_kind,
            },
        )
    shutil.rmtree(opened.partial, ignore_errors=True)
    return list(dict.fromkeys(problems))


def is_done(place: Place, job: Job) -> bool:
    """Whether a cell is trained, and all that is asked of it measured."""
    trained = (place.run(place.config(job)) / _MEASURES).is_dir()
    return trained and not place.missing(job)


def availability(place: Place, job: Job) -> list[str]:
    """Why a cell, or something measured on it, is not available; empty when all is."""
    try:
        place.config(job)
    except NotAvailable as error:
        return [str(error)]
    problems = []
    for measure in place.experiment.measures(job.cell.name):
        try:
            measure.check()
        except Unavailable as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))
