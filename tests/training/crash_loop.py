"""Kills a small training run at random moments until it has been killed so many times.

``python crash_loop.py FOLDER KILLS SEED`` prints one JSON object: how often it was killed, after
which steps, and the digests of the last states of an undisturbed run and of those that were resumed
until they ended. Every attempt is a fork of one process that has imported everything and has not
touched a device.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import jax
import sklearn.datasets  # noqa: F401  # so that no attempt has to
from small_run import tiny_config

from awp_jax import training


def small_config():
    """AT-AWP of a linear model on digits: 32 steps, with a checkpoint of every step."""
    config = tiny_config("linear", width=None)  # starting takes most of an attempt
    config.epochs = 8
    config.data.train_examples = 128
    config.evaluation.train_examples = 0
    config.evaluation.every_epochs = 4
    config.evaluation.batch_size = 48
    config.checkpoint.every_steps = 1
    config.logging.every_steps = 1
    return config


def attempt(workdir):
    """Starts the run in a process of its own; returns its number."""
    process = os.fork()
    if process:
        return process
    try:
        jax.config.update("jax_platforms", "cpu")
        training.train(small_config(), workdir, devices=1, quiet=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def finished(process, seconds):
    """Whether the process ends within so many seconds; it is killed otherwise.

    Raises:
        RuntimeError: When it ends with an error.
    """
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return False
        time.sleep(0.01)
    if status:
        raise RuntimeError(f"an attempt ended with status {os.waitstatus_to_exitcode(status)}")
    return True


def last_step(workdir):
    """The newest step of which there is a checkpoint; 0 for none."""
    names = (path.name for path in (workdir / "checkpoints" / "last").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def digest_of(workdir):
    """The digest of the last state, in a process that ends before the next fork."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        jax.config.update("jax_platforms", "cpu")
        state, _ = training.open_run(workdir).restore("last")
        os.write(write, str(int(training.digest(state))).encode())
        os._exit(0)
    os.waitpid(process, 0)
    return int(os.read(read, 100))


def main(folder, kills, seed):
    """Prints what was seen."""
    folder, chance = pathlib.Path(folder), random.Random(seed)
    began = time.monotonic()
    if not finished(attempt(folder / "whole"), 600):
        raise RuntimeError("the undisturbed run took too long")
    patience = 0.3 * (time.monotonic() - began)  # later attempts find the compiled step
    steps, digests, runs = [], [], 0
    while len(steps) < kills or len(digests) < runs + 1:
        workdir = folder / f"cut-{runs}"
        limit = chance.uniform(0.5, 1.0) * patience if len(steps) < kills else 600
        before = last_step(workdir)
        if not finished(attempt(workdir), limit):
            steps.append(last_step(workdir))
            if steps[-1] == before:  # killed before it got anywhere: allow more time
                patience *= 1.2
            continue
        patience *= 0.8
        digests.append(digest_of(workdir))
        if len(steps) < kills:
            runs += 1
    seconds = round(time.monotonic() - began, 1)
    result = {"kills": len(steps), "steps": steps, "seconds": seconds, "resumed": digests}
    result["undisturbed"] = digest_of(folder / "whole")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
