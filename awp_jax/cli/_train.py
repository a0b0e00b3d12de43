"""``awp-jax train``."""

from collections.abc import Sequence

from awp_jax.cli._flags import Command, read_config, required
from awp_jax.training import train


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit status."""
    command = Command(
        "train",
        "Trains as the config says and writes the run directory: config.json, metrics.jsonl,\n"
        "checkpoints/. The same command goes on where a stopped run was.",
        with_config=True,
    )
    command.string("workdir", None, "the run directory, made when it is not there")
    command.integer("max_steps", None, "stop and save after this many optimiser steps")
    values = command.parse(argv)
    workdir = required(values, "workdir")
    outcome = train(read_config(values), workdir, max_steps=values["max_steps"].value)
    state = "finished" if outcome.finished else "stopped"
    best = ""
    if outcome.best is not None:
        best = (
            f"; best {outcome.best['selection']} robust accuracy "
            f"{outcome.best['robust_accuracy']:.1%} after epoch {outcome.best['epoch']}"
        )
    print(f"{state} at step {int(outcome.state.step)}{best}: {workdir}")
    return 0
