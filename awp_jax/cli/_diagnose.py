"""``awp-jax diagnose``."""

from collections.abc import Sequence

from awp_jax import parallel
from awp_jax.cli import _processes as processes
from awp_jax.cli._command import Command
from awp_jax.cli._flags import (
    declare_data_path,
    declare_dtype,
    declare_json,
    given,
    open_one,
    print_json,
    required,
)
from awp_jax.reporting import save_figure


def main(argv: Sequence[str]) -> int:
    """Diagnoses; returns the exit status."""
    command = Command(
        "diagnose",
        "Tells whether the robust accuracy of a run can be trusted or its gradients mislead\n"
        "attacks; writes diagnosis.json and figures/diagnosis.png and .pdf.",
    )
    command.string("workdir", None, "the run directory")
    command.string("checkpoint", "best", "which: best, last")
    command.string("surrogate", None, "another run directory, to transfer attacks from")
    command.string("surrogate_checkpoint", None, "which: best, last; best where there is one")
    command.integer("examples", 200, "so many test images, classes in proportion")
    command.string("epsilon", None, "radius, such as 8/255; the config's by default")
    command.integer("queries", 1000, "of the Square attack")
    command.integer("eot", None, "for a randomised model: random passes to average over; 20")
    declare_json(command)
    declare_dtype(command)
    declare_data_path(command)
    processes.declare(command)
    values = command.parse(argv)
    run = open_one(values, processes.join(values))
    found = run.diagnose(
        checkpoint=required(values, "checkpoint"),
        **given(
            values, "examples", "epsilon", "queries", "eot", "surrogate", "surrogate_checkpoint"
        ),
    )
    if parallel.is_main():
        files = save_figure(found.figure(), run.workdir / "figures" / "diagnosis")
        if values["json"].value:
            print_json(found.values)
        else:
            print(f"{found.verdict}\n\nWritten: {', '.join(map(str, files))}")
    return 0
