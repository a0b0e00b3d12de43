"""The flags by which a command uses several devices and several processes."""

from absl import flags

from awp_jax import checks, parallel
from awp_jax.cli._command import Command


def declare(command: Command) -> None:
    """Adds the flags."""
    command.integer("devices", None, "use the first so many; all of the machine by default")
    command.string(
        "distributed",
        "auto",
        "several processes: auto (joins under srun and mpirun), true (also on TPU pods), false",
    )
    command.string("coordinator", None, "host:port of process 0, for processes started by hand")
    command.integer("process_id", None, "number of this process, from 0", minimum=0)
    command.integer("num_processes", None, "how many processes there are")
    command.integer(
        "heartbeat",
        parallel.HEARTBEAT,
        f"seconds of silence after which another process counts as lost (exit status "
        f"{parallel.LOST})",
    )


def join(values: flags.FlagValues, *, preemption: bool = False) -> int | None:
    """Joins the other processes, where there are some.

    Args:
        values: Parsed flags.
        preemption: See ``awp_jax.parallel.initialize``.

    Returns:
        How many devices to use; ``None`` for all.

    Raises:
        DistributedError: When joining fails.
    """
    parallel.initialize(
        checks.choice(values["distributed"].value, ("auto", "true", "false"), "distributed"),
        coordinator=values["coordinator"].value,
        process_id=values["process_id"].value,
        num_processes=values["num_processes"].value,
        heartbeat=values["heartbeat"].value or parallel.HEARTBEAT,
        preemption=preemption,
    )
    return values["devices"].value
