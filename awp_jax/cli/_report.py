"""``awp-jax report``."""

import pathlib
from collections.abc import Sequence
from typing import Any

from awp_jax.cli._earlier import read_evaluation
from awp_jax.cli._flags import Command, UsageError, names, required
from awp_jax.files import write_text
from awp_jax.reporting import (
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
    accuracies = {}
    for workdir in workdirs:
        evaluation, records = read_evaluation(workdir), read_metrics(workdir)
        accuracies[workdir.name] = {
            which: robust_accuracies(evaluation, records, measured["step"])
            for which, measured in landscapes[workdir.name]["checkpoints"].items()
        }
    return landscape_comparison(landscapes, accuracies)
