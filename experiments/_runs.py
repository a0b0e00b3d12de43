"""Run directories: training them, measuring them, and reading back what was measured."""

import contextlib
import fcntl
import functools
import hashlib
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
from awp_jax.training import WorkdirError, plain, train
from experiments._cells import Cell, Experiment, Job, digest, flat, missing_file
from experiments._measures import Bench, Measure, NotAvailable

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
        """The config of a job, at the experiment's scale."""
        if job not in self._configs:
            self._configs[job] = job.cell.at(self.experiment.scale, job.seed)
        return self._configs[job]

    def directory(self, job: Job) -> pathlib.Path:
        """Where the measures of a job lie: its run, or for an imported one a place of its own.

        A run is named so that a person finds it, and by all values of its config.
        """
        if job not in self._directories:
            c = self.config(job)
            if job.cell.imported:
                source = str(pathlib.Path(job.cell.imported).resolve())
                tag = hashlib.sha256(source.encode()).hexdigest()[:8]
                name = f"{_IMPORTED}/{job.cell.last_part}-{digest(c)}-{tag}"
            else:
                weights = "" if c.weights.method == "none" else f"-{c.weights.method}"
                name = f"{_RUNS}/{c.data.name}-{c.model.name}-{c.attack.norm}"
                name += f"-{c.objective.name}{weights}-seed{c.seed}-{digest(c)}"
            self._directories[job] = self.workdir / name
        return self._directories[job]

    def claim(self, job: Job, *, write: bool = True) -> None:
        """Writes what a cell is, or checks that what is there is the same.

        Raises:
            WorkdirError: When the work directory holds another version of the cell.
        """
        safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in job.cell.name)
        path = self.folder / "cells" / f"{safe}-seed{job.seed}.json"
        config = plain(self.config(job))
        if not path.exists():
            if write:
                write_json(path, {"cell": job.cell.name, "seed": job.seed, "config": config})
            return
        try:
            found = read_json(path)
            # Keys that have come since then have had their defaults.
            theirs = flat(plain(schema.default())) | flat(found["config"])
            cell = found["cell"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WorkdirError(f"{path} is damaged: delete it.") from None
        ours = flat(config)
        if (cell, theirs) != (job.cell.name, ours):
            keys = sorted(theirs.items() ^ ours.items())
            names = ", ".join(dict.fromkeys(key for key, _ in keys)) or "its name"
            raise WorkdirError(
                f"{self.workdir} holds another version of cell {job.label!r} (it differs in "
                f"{names}): choose another --workdir, or delete {path}."
            )

    def result(self, job: Job, measure: Measure) -> Any:
        """The result of a measure, or ``None`` when it has not been measured at this scale."""
        path = self.result_path(job, measure)
        if not path.is_file():
            return None
        try:
            found = read_json(path)
        except ValueError:
            return None
        return found if found["settings"] == measure.settings(self.experiment.scale) else None

    def result_path(self, job: Job, measure: Measure) -> pathlib.Path:
        """The file of a result."""
        return self.directory(job) / _MEASURES / f"{measure.slug()}.json"

    def value(self, job: Job, measure: Measure) -> Any:
        """What a measure says, or ``None`` when something that it reads is not there."""
        results = {part: self.result(job, part) for part in measure.parts()}
        if any(found is None for found in results.values()):
            return None
        return measure.read(lambda part: results[part]["value"])

    def values(self, cell: Cell, measure: Measure) -> dict[Job, Any]:
        """The values that are there, by seed."""
        found = {job: self.value(job, measure) for job in self.experiment.jobs(cell)}
        return {job: value for job, value in found.items() if value is not None}

    def missing(self, job: Job) -> list[Measure]:
        """What is still to be measured on a job."""
        return [m for m in self.experiment.measures(job.cell) if self.result(job, m) is None]

    def is_trained(self, job: Job) -> bool:
        """Whether a cell is trained to its end: only then is there a folder of its measures."""
        return (self.directory(job) / _MEASURES).is_dir()

    def is_done(self, job: Job) -> bool:
        """Whether a cell is trained, and all that is asked of it measured."""
        return self.is_trained(job) and not self.missing(job)

    def lacks(self, job: Job) -> str:
        """What a cell that is to be trained needs of its user, in a sentence; empty for nothing."""
        if job.cell.imported or self.is_trained(job):
            return ""
        missing = missing_file(self.config(job))
        return missing and f"Cell {job.cell.name!r} {missing}"


def run_job(place: Place, job: Job, *, quiet: bool = False) -> list[str]:
    """Trains and measures what is missing of a cell; a stopped one goes on where it was.

    Returns:
        What its run cannot give, one sentence each.

    Raises:
        DataError: One sentence, for missing data.
        ValueError: One sentence, for directories that cannot be used.
    """
    place.claim(job)
    if place.is_done(job):
        return []
    with _only_one(place.directory(job)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weights.gamma is")  # as published
        _train(place, job, quiet)
        return _measure(place, job)


@contextlib.contextmanager
def _only_one(directory: pathlib.Path) -> Iterator[None]:
    """Processes that share a work directory wait here for the one that is at the same run."""
    locks = directory.parent.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / directory.name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


def _train(place: Place, job: Job, quiet: bool) -> None:
    """Trains a run to its end; an imported one is there already."""
    if not place.is_trained(job) and not job.cell.imported:
        if problem := place.lacks(job):
            raise data.DataError(problem)
        train(place.config(job), place.directory(job), progress=None if quiet else "auto")
    (place.directory(job) / _MEASURES).mkdir(parents=True, exist_ok=True)


def _measure(place: Place, job: Job) -> list[str]:
    directory, problems = place.directory(job), []
    run = runs.open(job.cell.imported or directory)
    # Many measures are of one checkpoint.
    run.restore = functools.lru_cache(maxsize=2)(run.restore)  # type: ignore[method-assign]
    trained = functools.partial(_trained, place, job)
    bench = Bench(run, place.experiment.scale, directory / _PARTIAL, trained)
    for measure in place.missing(job):
        began = time.perf_counter()
        try:
            value = measure.compute(bench)
        except NotAvailable as error:
            problems.append(str(error))
            continue
        result = {
            "settings": measure.settings(place.experiment.scale),
            "value": value,
            "seconds": round(time.perf_counter() - began, 2),
            "device": jax.devices()[0].device_kind,
        }
        write_json(place.result_path(job, measure), result)
    shutil.rmtree(directory / _PARTIAL, ignore_errors=True)
    return list(dict.fromkeys(problems))


def _trained(place: Place, job: Job, cell: str) -> pathlib.Path:
    """The run of another cell, by the same number of its seeds, or the first.

    Where it has not been trained to its end it is now, or waited for: with cells spread over
    machines it may be another one's.
    """
    jobs = place.experiment.jobs(place.experiment.cell(cell))
    number = job.seed - job.cell.first_seed
    other = jobs[number if number < len(jobs) else 0]
    if not place.is_trained(other):
        place.claim(other)
        with _only_one(place.directory(other)):
            _train(place, other, quiet=True)
    return place.directory(other)
