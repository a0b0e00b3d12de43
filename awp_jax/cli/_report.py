"""``awp-jax report``."""

import pathlib
from collections.abc import Sequence

from awp_jax.cli._evaluate import read_evaluation
from awp_jax.cli._flags import Command, UsageError, names, required
from awp_jax.reporting import evaluation_table, learning_curves, read_landscape, save_figure
from awp_jax.training import WorkdirError, read_config, read_metrics


def main(argv: Sequence[str]) -> int:
    """Reports; returns the exit status."""
    command = Command(
        "report",
        "Prints one table of evaluated runs and draws their learning curves, with their\n"
        "landscapes where awp-jax landscape was run, from the files of the run directories alone.",
    )
    command.string("workdirs", None, "run directories, separated by commas")
    command.string("output", None, "folder for report.md, learning_curves.png and .pdf")
    values = command.parse(argv)
    workdirs = [pathlib.Path(n) for n in names(required(values, "workdirs"), "workdirs")]
    output = pathlib.Path(required(values, "output"))
    results, curves, landscapes = {}, {}, {}
    for workdir in workdirs:
        if workdir.name in results:
            raise UsageError(f"Two run directories are called {workdir.name!r}.")
        read_config(workdir)
        result = read_evaluation(workdir)
        if result is None:
            raise WorkdirError(
                f"{workdir} has not been evaluated: run awp-jax evaluate --workdir={workdir} first."
            )
        results[workdir.name] = result
        if (workdir / "landscape.json").exists():
            landscapes[workdir.name] = read_landscape(workdir)
        curves[workdir.name] = read_metrics(workdir)
    table = evaluation_table(results)
    files = []
    if any(curves.values()):  # imported runs have none
        figure = learning_curves(curves, landscapes)
        files = save_figure(figure, output / "learning_curves")
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text(table + "\n")
    print(table)
    print(f"\nWritten: {', '.join(map(str, [output / 'report.md', *files]))}")
    return 0
