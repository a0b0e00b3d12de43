"""``awp-jax flatness``."""

import pathlib
from collections.abc import Sequence
from typing import Any

from awp_jax import parallel, runs
from awp_jax.cli import _processes as processes
from awp_jax.cli._command import Command
from awp_jax.cli._flags import (
    boolean,
    declare_data_path,
    declare_json,
    given,
    names,
    open_several,
    print_json,
    workdirs_of,
)
from awp_jax.files import write_text
from awp_jax.reporting import flatness_figures, flatness_report, save_figure
from awp_jax.runs import FLATNESS_ALSO as ALSO


def main(argv: Sequence[str]) -> int:
    """Measures flatness; returns the exit status."""
    command = Command(
        "flatness",
        "Measures average-case and worst-case flatness of robust loss (Stutz et al., ICCV 2021)\n"
        "and its reference, prints tables, and writes flatness.json into the run directories and\n"
        "figures there or into --output. The same command goes on where a stopped one was. Over\n"
        "several runs: groups by robustness, correlations and a scatter of robust loss against\n"
        "flatness.",
    )
    command.string("workdir", None, "run directories, separated by commas")
    command.string("checkpoints", "best,last", "which: best, last, epoch-N, every (all kept)")
    command.string("sets", "test,train", "which images: train, validation, test")
    command.integer(
        "examples",
        None,
        "so many of each set, classes in proportion; 1000 by default, or all",
    )
    command.string("also", "", f"more to measure: {', '.join(ALSO)}")
    command.string("epsilon", None, "radius, such as 8/255; the config's by default")
    command.string("step_size", None, "of PGD; the config's by default (0.007 in the paper)")
    command.integer("steps", 20, "of PGD and of the joint ascent")
    command.integer("restarts", 10, "of the reference and of the worst case")
    command.integer("draws", 10, "random perturbations of the average case")
    command.string("xi", "0.5", "relative size of weight perturbations, average case")
    command.string("worst_xi", "0.00075", "relative size of weight perturbations, worst case")
    command.string("weight_step", None, "of the worst case; 0.001, or 0.01 with shared nu")
    command.string("shared_across_batches", "false", "true: one nu for all batches (worst case)")
    command.integer("batch_size", 128, "examples per batch; those of one batch share nu")
    command.string("measure", "true", "false: only draw, from the flatness.json that are there")
    command.string("output", None, "folder for table and figures of all runs together")
    declare_json(command)
    declare_data_path(command)
    processes.declare(command)
    values = command.parse(argv)
    paths = workdirs_of(values)
    devices = processes.join(values)
    if boolean(values, "measure"):
        also = values["also"].value
        settings = runs.FlatnessSettings(
            checkpoints=names(values["checkpoints"].value, "checkpoints"),
            sets=names(values["sets"].value, "sets"),
            also=tuple(names(also, "also")) if also else (),
            shared_across_batches=boolean(values, "shared_across_batches"),
            **given(
                values,
                "examples",
                "epsilon",
                "step_size",
                "steps",
                "restarts",
                "draws",
                "xi",
                "worst_xi",
                "weight_step",
                "batch_size",
            ),
        )
        found = runs.flatness_runs(open_several(values, devices), settings)
    else:
        found = [runs.read_flatness(path) for path in paths]
    if not parallel.is_main():
        return 0
    results = {path.name: one.values for path, one in zip(paths, found, strict=True)}
    report = flatness_report(results)
    if values["json"].value:
        print_json(results)
    else:
        print(report)
    files: list[pathlib.Path] = []
    if values["output"].value:
        output = pathlib.Path(values["output"].value)
        write_text(output / "flatness.md", report + "\n")
        files += [output / "flatness.md", *_draw(results, output)]
    else:
        for path in paths:
            files += _draw({path.name: results[path.name]}, path / "figures")
    if files and not values["json"].value:
        print(f"\nWritten: {', '.join(map(str, files))}")
    return 0


def _draw(results: dict[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    return [
        file
        for name, figure in flatness_figures(results).items()
        for file in save_figure(figure, folder / name)
    ]
