"""``awp-jax landscape``."""

import pathlib
import shutil
import sys
import time
from collections.abc import Sequence
from fractions import Fraction

from awp_jax import parallel
from awp_jax.cli import _processes as processes
from awp_jax.cli._flags import Command, UsageError, chosen_dtype, declare_dtype, names, required
from awp_jax.cli._landscape_run import Settings, compute
from awp_jax.cli._report import comparison_of
from awp_jax.files import write_arrays, write_json
from awp_jax.progress import Progress
from awp_jax.reporting import (
    landscape_figure,
    landscape_table,
    landscape_training_figure,
    read_landscape,
    save_figure,
)
from awp_jax.training import open_run, read_metrics

# Seconds between two reports where there is no terminal.
_QUIET = 30.0


def main(argv: Sequence[str]) -> int:
    """Computes and draws; returns the exit status."""
    command = Command(
        "landscape",
        "Measures the adversarial loss along directions in weight space around checkpoints of one\n"
        "or more runs, writes NAME.json and NAME.npz to each run directory and figures to its\n"
        "figures/, and says at its start how long it will take. The same command goes on where a\n"
        "stopped one was; points that are done are kept.",
    )
    command.string("workdir", None, "run directories, separated by commas")
    command.string("checkpoints", "last", "which: best, last, epoch-N, every (all that were kept)")
    command.integer("dims", 1, "1 for curves, 2 for surfaces |g(a,b) - g(0,0)|")
    command.string("directions", "random", "random, or adversarial (the ascent direction of AWP)")
    command.string("normalisation", None, "filter (for random, by default) or layer (adversarial)")
    command.integer("points", None, "of each direction, odd; by default 41, with --dims=2 21")
    command.string("range", None, "largest coordinate; by default 1 (random) or 0.02 (adversarial)")
    command.integer("examples", None, "so many, classes in proportion; 1000 by default, or all")
    command.string("set", "train", "which images: train, validation, test")
    command.integer("draws", None, "directions to average over; by default 3, with --dims=2 1")
    command.integer("seed", 0, "of directions and attack starts", minimum=0)
    command.string(
        "adversarial",
        "anew",
        "adversarial examples: anew at every point, centre (made once), both, or none (clean loss)",
    )
    command.string("epsilon", None, "radius, such as 8/255; that of the training attack by default")
    command.integer("steps", None, "of PGD; those of the training attack by default")
    command.string("step_size", None, "of PGD; that of the training attack by default")
    command.integer("restarts", 1, "of PGD")
    command.string("name", None, "of the files; by default landscape[-2d][-adversarial]")
    command.string(
        "output", None, "folder for the figure that compares runs (awp-jax report draws it too)"
    )
    declare_dtype(command)
    processes.declare(command)
    values = command.parse(argv)
    workdirs = [pathlib.Path(n) for n in names(required(values, "workdir"), "workdir")]
    labels = [workdir.name for workdir in workdirs]
    output = values["output"].value
    if len(set(labels)) < len(labels):
        raise UsageError(f"Two run directories are called {_twice(labels)!r}.")
    extent = values["range"].value
    settings = Settings(
        dims=values["dims"].value or 1,
        directions=required(values, "directions"),
        normalisation=values["normalisation"].value,
        points=values["points"].value,
        extent=None if extent is None else _number(extent, "range"),
        examples=values["examples"].value,
        set=required(values, "set"),
        draws=values["draws"].value,
        seed=values["seed"].value or 0,
        adversarial=required(values, "adversarial"),
        epsilon=values["epsilon"].value,
        steps=values["steps"].value,
        step_size=values["step_size"].value,
        restarts=values["restarts"].value or 1,
    ).completed()
    name = values["name"].value or settings.name
    if pathlib.Path(name).name != name:
        raise UsageError(f"--name is {name!r}, but a file name without folders was expected.")
    chosen = names(values["checkpoints"].value, "checkpoints")
    # Everything that can be wrong is found before anything is computed.
    devices = processes.join(values)
    dtype = chosen_dtype(values)
    runs = [open_run(workdir, devices=devices, dtype=dtype) for workdir in workdirs]
    jobs = [(run, run.checkpoint_names(chosen)) for run in runs]
    for run, which in jobs:
        settings.images(run)
        settings.attack(run)
        kept = {f"epoch-{epoch}" for epoch in run.kept_epochs()}
        for missing in [w for w in which if w.startswith("epoch-") and w not in kept]:
            run.restore(missing)  # says what is there
    clock = _Clock(sum(len(which) for _, which in jobs) * settings.weight)
    for run, which in jobs:
        result, arrays = compute(run, which, settings, run.workdir / f"{name}.partial", clock)
        if parallel.is_main():
            write_arrays(run.workdir / f"{name}.npz", arrays)
            write_json(run.workdir / f"{name}.json", {"name": run.workdir.name, **result})
    clock.close()
    if not parallel.is_main():
        return 0
    for run, _ in jobs:
        shutil.rmtree(run.workdir / f"{name}.partial", ignore_errors=True)
    found = {run.workdir.name: read_landscape(run.workdir, name) for run, _ in jobs}
    files = []
    for run, _ in jobs:
        one = found[run.workdir.name]
        files += save_figure(landscape_figure(one), run.workdir / "figures" / name)
        training = landscape_training_figure(one, read_metrics(run.workdir))
        if training is not None:
            files += save_figure(training, run.workdir / "figures" / f"{name}-training")
    if output:
        files += save_figure(comparison_of(workdirs, found), pathlib.Path(output) / name)
    print(landscape_table(found))
    print(f"\nWritten: {', '.join(map(str, files))}")
    return 0


def _twice(labels: Sequence[str]) -> str:
    return next(label for label in labels if labels.count(label) > 1)


def _number(text: str, flag: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(f"--{flag} is {text!r}, but a number was expected.") from None


class _Clock:
    """How much is done, and how long the rest will take: a bar in a terminal, else plain lines.

    Args:
        total: Work of all points, in passes through the model.
    """

    def __init__(self, total: float):
        self._bar = Progress(round(total), unit="pass")
        self._total, self._done, self._worked = total, 0.0, 0.0
        self._what = ""
        self._first: tuple[float, float] | None = None
        self._told: float | None = None

    def begin(self, what: str, known: float) -> None:
        """A surface begins, of which the work ``known`` was done before."""
        self._what, self._done = what, self._done + known
        self._bar.advance(round(self._done), at=what)

    def advance(self, work: float) -> None:
        """So much more is done."""
        self._done, self._worked = self._done + work, self._worked + work
        now = time.monotonic()
        self._bar.advance(round(self._done), at=self._what)
        if self._first is None:  # the first point compiles: it says nothing about the others
            self._first = (now, self._worked)
            return
        began, before = self._first
        left = (now - began) / (self._worked - before) * (self._total - self._done)
        if self._told is None or (now - self._told > _QUIET and not sys.stderr.isatty()):
            share = self._done / self._total
            self._bar.line(f"{self._what}: {share:.0%} done, about {_duration(left)} left")
            self._told = now

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
