"""Run directories: training them, measuring them, and reading back what was measured."""

import contextlib
import functools
import hashlib
import json
import pathlib
import shutil
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from awp_jax import config as schema
from awp_jax import data, runs
from awp_jax.files import read_json, write_json
from awp_jax.landscape import rescaled
from awp_jax.training import (
    TrainState,
    WorkdirError,
    create_classifier,
    plain,
    read_metrics,
    train,
)
from experiments._cells import Experiment, Job, NotAvailable, digest, flat, missing_file
from experiments._measures import Measure, Unavailable
from experiments._scales import Scale

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None  # type: ignore[assignment]

_RUNS, _IMPORTED, _MEASURES, _PARTIAL = "runs", "imported", "measures", "measures.partial"


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
        self._configs: dict[Job, ConfigDict] = {}
        self._directories: dict[Job, pathlib.Path] = {}

    def config(self, job: Job) -> ConfigDict:
        """The config of a job, at the experiment's scale.

        Raises:
            NotAvailable: When this version lacks what it needs.
        """
        if job not in self._configs:
            self._configs[job] = job.cell.at(self.experiment.scale, job.seed)
        return self._configs[job]

    def run(self, config: ConfigDict) -> pathlib.Path:
        """The run directory of a config: named so that a person finds it, and by all its values."""
        weights = "" if config.weights.method == "none" else f"-{config.weights.method}"
        name = f"{config.data.name}-{config.model.name}-{config.attack.norm}"
        name += f"-{config.objective.name}{weights}-seed{config.seed}"
        return self.workdir / _RUNS / f"{name}-{digest(config)}"

    def directory(self, job: Job) -> pathlib.Path:
        """Where the measures of a job lie: its run, or for an imported one a place of its own.

        Raises:
            NotAvailable: As ``config``.
        """
        if job not in self._directories:
            self._directories[job] = self._directory(job)
        return self._directories[job]

    def _directory(self, job: Job) -> pathlib.Path:
        config = self.config(job)
        if not job.cell.imported:
            return self.run(config)
        source = str(pathlib.Path(job.cell.imported).resolve())
        tag = hashlib.sha256(source.encode()).hexdigest()[:8]
        name = job.cell.name.rpartition(",")[2]
        return self.workdir / _IMPORTED / f"{name}-{digest(config)}-{tag}"

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
            found = read_json(path)
            # Keys that have come since then have had their defaults.
            theirs = flat(plain(schema.default())) | flat(found["config"])
            cell = found["cell"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WorkdirError(f"{path} is damaged: delete it.") from None
        ours = flat(values["config"])
        if (cell, theirs) != (values["cell"], ours):
            keys = sorted(theirs.items() ^ ours.items())
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
        path = _result_path(self.directory(job), measure)
        if not path.is_file():
            return None
        try:
            found = read_json(path)
        except ValueError:
            return None
        return found if found["settings"] == measure.settings(self.experiment.scale) else None

    def missing(self, job: Job) -> list[Measure]:
        """What is still to be measured on a job."""
        wanted = self.experiment.measures(job.cell.name)
        return [m for m in wanted if self.result(job, m) is None]


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
        self.directory = place.directory(job)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "weights.gamma is")
            self._run = runs.open(job.cell.imported or self.directory)
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

    def network(self, checkpoint: str, factor: float | None = None) -> tuple[Any, Any]:
        """``(apply_fn, params)``, of weights ``factor`` times as large for the same function.

        Raises:
            Unavailable: Where the architecture cannot be rescaled.
        """
        state = self.state(checkpoint)
        if factor is None:
            return self.classifier.apply_fn(state.batch_stats), state.params
        try:
            params, stats = rescaled(self.classifier, state.params, state.batch_stats, factor)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        return self.classifier.apply_fn(stats), params

    def part(self, name: str, examples: int | None) -> data.Dataset:
        """So many examples of a set, see ``awp_jax.data.subset``."""
        whole = getattr(self.experiment.splits, name)
        return whole if examples is None else data.subset(whole, examples)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_metrics(self.directory)

    def sibling(self, cell: str) -> "Opened":
        """Another cell of the experiment, by the same number of its seeds, or the first.

        Where it has not been trained to its end it is now, or waited for: with cells spread over
        machines it may be another one's.
        """
        jobs = [j for j in self._place.experiment.jobs() if j.cell.name == cell]
        number = self._job.seed - self._job.cell.first_seed
        job = jobs[number if number < len(jobs) else 0]
        if not is_trained(self._place, job):
            self._place.claim(job, self._place.config(job))
            with _only_one(self._place.directory(job)):
                _train(self._place, job, quiet=True)
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
        DataError: One sentence, for missing data.
        ValueError: One sentence, for directories that cannot be used.
    """
    place.claim(job, place.config(job))
    if is_done(place, job):
        return []
    with _only_one(place.directory(job)):
        return _run(place, job, quiet)


@contextlib.contextmanager
def _only_one(directory: pathlib.Path) -> Iterator[None]:
    """Processes that share a work directory wait here for the one that is at the same run."""
    locks = directory.parent.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / directory.name, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


def _train(place: Place, job: Job, quiet: bool) -> None:
    """Trains a run to its end; an imported one is there already."""
    measures = place.directory(job) / _MEASURES
    if not is_trained(place, job) and not job.cell.imported:
        if missing := missing_file(place.config(job)):
            raise data.DataError(f"Cell {job.cell.name!r} {missing}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "weights.gamma is")  # as published, see Cell
            train(place.config(job), place.directory(job), progress=None if quiet else "auto")
    measures.mkdir(parents=True, exist_ok=True)


def _run(place: Place, job: Job, quiet: bool) -> list[str]:
    directory, missing, problems = place.directory(job), place.missing(job), []
    _train(place, job, quiet)
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


def is_trained(place: Place, job: Job) -> bool:
    """Whether a cell is trained to its end: only then is there a folder of its measures."""
    return (place.directory(job) / _MEASURES).is_dir()


def is_done(place: Place, job: Job) -> bool:
    """Whether a cell is trained, and all that is asked of it measured."""
    return is_trained(place, job) and not place.missing(job)


def availability(place: Place, job: Job) -> list[str]:
    """Why a cell, or something measured on it, is not available; empty when all is."""
    try:
        place.config(job)
    except NotAvailable as error:
        return [str(error)]
    problems = []
    untrained = not job.cell.imported and not is_trained(place, job)
    if untrained and (missing := missing_file(place.config(job))):
        problems.append(f"Cell {job.cell.name!r} {missing}")
    for measure in place.experiment.measures(job.cell.name):
        try:
            measure.check()
        except Unavailable as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))
