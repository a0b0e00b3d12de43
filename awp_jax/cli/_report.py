"""``awp-jax report``."""

import pathlib
from collections.abc import Sequence
from typing import Any

from awp_jax.cli._earlier import OTHERS, read_evaluation
from awp_jax.cli._flags import Command, UsageError, names, required
from awp_jax.files import write_text
from awp_jax.reporting import (
    Measured,
    evaluation_note,
    evaluation_table,
    landscape_comparison,
    learning_curves,
    read_landscape,
    robust_accuracies,
    save_figure,
    seed_table,
)
from awp_jax.training import WorkdirError, read_config, read_metrics


def main(argv: Sequence[str]) -> int:
    """Reports; returns the exit status."""
    command = Command(
        "report",
        "Prints one table of evaluated runs and draws their learning curves, with their\n"
        "landscapes where awp-jax landscape was run, from the files of the run directories alone.",
    )
    command.string("workdir", None, "run directories, separated by commas")
    command.string("workdirs", None, "the same: what --workdir was called")
    command.string("output", None, "folder for report.md, learning_curves.png, landscape.png")
    values = command.parse(argv)
    flag = "workdirs" if values["workdirs"].value else "workdir"
    if values["workdir"].value and values["workdirs"].value:
        raise UsageError("--workdir and --workdirs are both given: give --workdir.")
    workdirs = [pathlib.Path(n) for n in names(required(values, flag), flag)]
    output = pathlib.Path(required(values, "output"))
    results, curves, landscapes = {}, {}, {}
    others: dict[str, Any] = {}
    notes: dict[str, None] = {}
    for workdir in workdirs:
        if workdir.name in results:
            raise UsageError(f"Two run directories are called {workdir.name!r}.")
        config = read_config(workdir)
        result = read_evaluation(workdir)
        if result is None:
            raise WorkdirError(
                f"{workdir} has not been evaluated: run awp-jax evaluate --workdir={workdir} first."
            )
        results[workdir.name] = result
        for one in result.get(OTHERS, []):
            if not one.get("superseded"):  # of weights that the run no longer has
                others[f"{workdir.name} ({len(others) + 1})"] = one
        if (workdir / "landscape.json").exists():
            landscape = read_landscape(workdir)
            if landscape["settings"]["dims"] == 1:
                landscapes[workdir.name] = landscape
        curves[workdir.name] = read_metrics(workdir)
        if curves[workdir.name]:
            notes[evaluation_note(config, curves[workdir.name])] = None
    table = evaluation_table(results)
    over_seeds = seed_table(results)
    if over_seeds:
        table += f"\n\nMean and standard deviation over seeds:\n\n{over_seeds}"
    if others:
        table += "\n\nAlso measured, with other settings or on fewer examples:\n\n"
        table += evaluation_table(others)
    files = []
    if any(curves.values()):  # imported runs have none
        figure = learning_curves(curves, landscapes, "\n".join(notes))
        files += save_figure(figure, output / "learning_curves")
    if landscapes:
        paths = [workdir for workdir in workdirs if workdir.name in landscapes]
        files += save_figure(comparison_of(paths, landscapes), output / "landscape")
    write_text(output / "report.md", table + "\n")
    print(table)
    print(f"\nWritten: {', '.join(map(str, [output / 'report.md', *files]))}")
    return 0


def comparison_of(workdirs: Sequence[pathlib.Path], landscapes: dict[str, Any]) -> Any:
    """The figure that compares landscapes of runs, from the files of their directories alone.

    Args:
        workdirs: The run directories.
        landscapes: By name of the run, from ``awp_jax.reporting.read_landscape``.

    Returns:
        A matplotlib figure.
    """
    runs = {
        workdir.name: Measured(
            read_config(workdir), read_evaluation(workdir), read_metrics(workdir)
        )
        for workdir in workdirs
    }
    steps = {
        name: {which: found["step"] for which, found in landscapes[name]["checkpoints"].items()}
        for name in runs
    }
    accuracies, source = robust_accuracies(runs, steps)
    return landscape_comparison(landscapes, accuracies, source)
