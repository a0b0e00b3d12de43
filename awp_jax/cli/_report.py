"""``awp-jax report``."""

from collections.abc import Sequence

from awp_jax import runs
from awp_jax.cli._command import Command
from awp_jax.cli._errors import UsageError
from awp_jax.cli._flags import declare_json, names, print_json, required


def main(argv: Sequence[str]) -> int:
    """Reports; returns the exit status."""
    command = Command(
        "report",
        "Prints one table of evaluated runs, from the files of the run directories alone; with\n"
        "--output it writes that, and draws learning curves and what awp-jax landscape computed.",
    )
    command.string("workdir", None, "run directories, separated by commas")
    command.string("workdirs", None, "the same: what --workdir was called")
    command.string("output", None, "folder for report.md, learning_curves.png, landscape.png")
    declare_json(command)
    values = command.parse(argv)
    flag = "workdirs" if values["workdirs"].value else "workdir"
    if values["workdir"].value and values["workdirs"].value:
        raise UsageError("--workdir and --workdirs are both given: give --workdir.")
    found = runs.compare(names(required(values, flag), flag))
    output = values["output"].value
    files = found.save(output) if output else []
    if values["json"].value:
        print_json({name: one._asdict() for name, one in found.measured.items()})
    else:
        print(found.table + (f"\n\nWritten: {', '.join(map(str, files))}" if files else ""))
    return 0
