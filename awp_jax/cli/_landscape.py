"""``awp-jax landscape``."""

import pathlib
from collections.abc import Sequence
from fractions import Fraction

from awp_jax import parallel, runs
from awp_jax.cli import _processes as processes
from awp_jax.cli._command import Command
from awp_jax.cli._errors import UsageError
from awp_jax.cli._flags import (
    declare_data_path,
    declare_dtype,
    given,
    names,
    open_several,
    required,
)
from awp_jax.reporting import landscape_table, landscape_training_figure, save_figure
from awp_jax.runs import landscapes_together, measured_of
from awp_jax.training import read_metrics


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
    declare_data_path(command)
    processes.declare(command)
    values = command.parse(argv)
    extent = values["range"].value
    settings = runs.LandscapeSettings(
        checkpoints=names(values["checkpoints"].value, "checkpoints"),
        directions=required(values, "directions"),
        set=required(values, "set"),
        adversarial=required(values, "adversarial"),
        extent=None if extent is None else _number(extent, "range"),
        **given(
            values,
            "dims",
            "normalisation",
            "points",
            "examples",
            "draws",
            "seed",
            "epsilon",
            "steps",
            "step_size",
            "restarts",
            "name",
        ),
    )
    opened = open_several(values, processes.join(values))
    found = runs.landscape_runs(opened, settings)
    if not parallel.is_main():
        return 0
    files = []
    name = str(settings.name)
    for run, one in zip(opened, found, strict=True):
        figures = run.workdir / "figures"
        files += save_figure(one.figure(), figures / name)
        training = landscape_training_figure(one.values, read_metrics(run.workdir))
        if training is not None:
            files += save_figure(training, figures / f"{name}-training")
    values_of = {run.workdir.name: one.values for run, one in zip(opened, found, strict=True)}
    if values["output"].value:
        measured = {run.workdir.name: measured_of(run.workdir) for run in opened}
        figure = landscapes_together(values_of, measured)
        files += save_figure(figure, pathlib.Path(values["output"].value) / name)
    print(f"{landscape_table(values_of)}\n\nWritten: {', '.join(map(str, files))}")
    return 0


def _number(text: str, flag: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(f"--{flag} is {text!r}, but a number was expected.") from None
