"""``awp-jax report``."""

from collections.abc import Sequence

from awp_jax import runs
from awp_jax.cli._command import Command
from awp_jax.cli._errors import UsageError
from awp_jax.cli._flags import names, required


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
    output = required(values, "output")
    found = runs.compare(names(required(values, flag), flag))
    files = found.save(output)
    print(f"{found.table}\n\nWritten: {', '.join(map(str, files))}")
    return 0
