"""``awp-jax flatness``."""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from awp_jax import parallel
from awp_jax.cli import _processes as processes
from awp_jax.cli._flags import Command, UsageError, boolean, names, required
from awp_jax.cli._flatness_run import (
    ALSO,
    PARTIAL,
    Settings,
    chosen_sets,
    measure_run,
)
from awp_jax.files import read_json, write_json, write_text
from awp_jax.progress import PartsProgress
from awp_jax.reporting import flatness_figures, flatness_report, save_figure
from awp_jax.training import WorkdirError, open_run

FLATNESS = "flatness.json"


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
    processes.declare(command)
    values = command.parse(argv)
    workdirs = names(required(values, "workdir"), "workdir")
    paths = [pathlib.Path(workdir) for workdir in workdirs]
    for name in {path.name for path in paths}:
        if sum(path.name == name for path in paths) > 1:
            raise UsageError(f"Two run directories are called {name!r}.")
    devices = processes.join(values)
    if boolean(values, "measure"):
        also = values["also"].value
        given: dict[str, Any] = {
            field.name: values[field.name].value
            for field in dataclasses.fields(Settings)
            if field.name not in ("also", "shared_across_batches")
        }
        settings = Settings(
            **given,
            shared_across_batches=boolean(values, "shared_across_batches"),
            also=tuple(names(also, "also")) if also else (),
        )
        results = _measure_all(
            workdirs,
            settings,
            names(values["checkpoints"].value, "checkpoints"),
            names(values["sets"].value, "sets"),
            values["examples"].value,
            devices,
        )
    else:
        results = {path.name: _read(path) for path in paths}
    if not parallel.is_main():
        return 0
    report = flatness_report(results)
    print(report)
    files: list[pathlib.Path] = []
    if values["output"].value:
        output = pathlib.Path(values["output"].value)
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "flatness.md", report + "\n")
        files += [output / "flatness.md", *_draw(results, output)]
    else:
        for path in paths:
            files += _draw({path.name: results[path.name]}, path / "figures")
    if files:
        print(f"\nWritten: {', '.join(map(str, files))}")
    return 0


def _measure_all(
    workdirs: Sequence[str],
    settings: Settings,
    checkpoints: Sequence[str],
    sets: Sequence[str],
    examples: int | None,
    devices: int | None,
) -> dict[str, Any]:
    # Everything that can be wrong is looked at before anything is measured.
    # bfloat16 would round perturbations away.
    runs = [open_run(workdir, devices=devices, dtype="float32") for workdir in workdirs]
    plans = [
        (run, run.checkpoint_names(checkpoints), chosen_sets(run, sets, examples)) for run in runs
    ]
    total = sum(len(which) * len(images) for _, which, images in plans) * settings.parts()
    progress = PartsProgress(total)
    results = {}
    for run, which, images in plans:
        results[run.workdir.name] = measure_run(run, settings, which, images, progress)
        if parallel.is_main():
            write_json(run.workdir / FLATNESS, results[run.workdir.name])
    progress.close()
    if parallel.is_main():
        for run in runs:  # only now: the whole command can be given again until then
            shutil.rmtree(run.workdir / PARTIAL, ignore_errors=True)
    return results


def _read(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / FLATNESS
    if not path.is_file():
        raise WorkdirError(
            f"{workdir} holds no {FLATNESS}: run awp-jax flatness --workdir={workdir} first."
        )
    return read_json(path, WorkdirError)


def _draw(results: dict[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    return [
        file
        for name, figure in flatness_figures(results).items()
        for file in save_figure(figure, folder / name)
    ]
