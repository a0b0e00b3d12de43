"""``awp-jax train``."""

import contextlib
import pathlib
import signal
from collections.abc import Callable, Iterator, Sequence

import jax

from awp_jax import parallel
from awp_jax.cli import _processes as processes
from awp_jax.cli._command import Command
from awp_jax.cli._flags import read_config, required
from awp_jax.training import LAST, Checkpoints, train

# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on. Schedulers can requeue it.
PREEMPTED = 75


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit status."""
    command = Command(
        "train",
        "Trains as the config says and writes the run directory: config.json, metrics.jsonl,\n"
        "checkpoints/. The same command goes on where a stopped run was. After SIGTERM the run is\n"
        f"saved and the exit status is {PREEMPTED}. A run that is there needs no --config.",
        with_config=True,
        resumes=True,
    )
    command.string("workdir", None, "the run directory, made when it is not there")
    command.integer("max_steps", None, "stop and save after this many optimiser steps")
    command.switch("extend", "go on with a finished run whose config has fewer epochs")
    processes.declare(command)
    values = command.parse(argv)
    workdir = required(values, "workdir")
    config = read_config(command)
    devices = processes.join(values, preemption=True)
    with _termination() as terminated:
        try:
            outcome = train(
                config,
                workdir,
                max_steps=values["max_steps"].value,
                devices=devices,
                should_stop=terminated,
                extend=bool(values["extend"].value),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_what_is_saved(workdir)) from None
    step = int(outcome.state.step)
    if outcome.preempted:
        if parallel.is_main():
            print(f"terminated; saved at step {step}, the same command goes on: {workdir}")
        return PREEMPTED
    state = "finished" if outcome.finished else "stopped"
    best = ""
    if outcome.best is not None:
        best = (
            f"; best {outcome.best['selection']} robust accuracy "
            f"{outcome.best['robust_accuracy']:.1%} after epoch {outcome.best['epoch']}"
        )
    if parallel.is_main():
        print(f"{state} at step {step}{best}: {workdir}")
    return 0


def _what_is_saved(workdir: str) -> str:
    """What becomes of an interrupted run, for who wonders whether to type the command again."""
    saved = Checkpoints(pathlib.Path(workdir) / "checkpoints", read_only=True).steps(LAST)
    if saved:
        return f"saved is step {saved[0]}, from which the same command goes on: {workdir}"
    return f"no checkpoint was saved yet, the same command begins anew: {workdir}"


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come; it does nothing else while this lasts.

    With several processes the signal is left to JAX, which tells all of them after which step to
    stop: a handler of ours would take it away.
    """
    if jax.process_count() > 1:
        yield lambda: False
        return
    came: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    except ValueError:  # not in the main thread, as when called from Python
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
