"""Kills a small training run at random moments, and fills its disk.

``python crash_loop.py FOLDER KILLS SEED`` prints one JSON object: how often it was killed, after
which steps, and the digests of the last states of an undisturbed run and of those that were resumed
until they ended; then what became of a run on a full disk. Every attempt is a fork of one process
that has imported everything and has not touched a device. The full disk is a small file system
where ``AWP_JAX_NAMESPACE`` says that this runs under ``unshare -rm``; elsewhere the size of files
is limited.
"""

import json
import os
import pathlib
import random
import resource
import select
import signal
import subprocess
import sys
import time

import absl.logging
import jax
import sklearn.datasets  # noqa: F401  # so that no attempt has to
from small_run import tiny_config

from awp_jax import training

# An optional copy of metrics.jsonl, whose import loads PyTorch: ten times what an attempt takes.
sys.modules["tensorboardX"] = None  # type: ignore[assignment]

# Seconds; a kill comes at a random moment of so many after a step.
PATIENCE = 0.8


def small_config():
    """AT-AWP of a linear model on digits: 32 steps, with a checkpoint of every step."""
    config = tiny_config("linear", width=None)  # starting takes most of an attempt
    config.epochs = 8
    config.data.train_examples = 128
    config.evaluation.train_examples = 0
    config.evaluation.every_epochs = 8
    config.attack.steps = config.evaluation.steps = 1
    config.evaluation.batch_size = 48
    config.checkpoint.every_steps = 1
    config.logging.every_steps = 1
    return config


def attempt(workdir, after_step=None, said=None):
    """Starts the run in a process of its own.

    ``after_step`` is called after every step; ``said``, a file, gets what goes to standard error.

    Returns:
        Its number, and the end of a pipe that can be read once a step is done, or it has ended.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    calls = []

    def stepped():
        if not calls:
            os.write(writer, b".")
        calls.append(0)
        return after_step is not None and after_step()

    try:
        if said is not None:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        absl.logging.set_verbosity(absl.logging.FATAL)  # as the command line does
        jax.config.update("jax_platforms", "cpu")
        training.train(small_config(), workdir, devices=1, progress=None, should_stop=stepped)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def finished(started, seconds=600.0, after_first_step=False):
    """Whether an attempt ends within so many seconds; it is killed otherwise.

    Args:
        started: From ``attempt``.
        seconds: How long it is left alone.
        after_first_step: Whether they count from its first step on: starting takes as long again.

    Raises:
        RuntimeError: When it ends with an error.
    """
    process, reader = started
    if after_first_step:
        select.select([reader], [], [], 600)
    os.close(reader)
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


def on_a_full_disk(folder, fill, make_room):
    """A run that is out of room after four steps, and goes on once there is some."""
    workdir, said, calls = folder / "run", folder.with_name("said"), []

    def after_step():
        calls.append(0)
        if len(calls) == 4:
            fill(workdir)
        return False

    process, reader = attempt(workdir, after_step, said)
    os.close(reader)
    _, status = os.waitpid(process, 0)
    result = {"status": os.waitstatus_to_exitcode(status), "said": said.read_text()}
    result["kept"] = last_step(workdir)
    lines = (workdir / "metrics.jsonl").read_text()
    result["torn"] = not lines.endswith("\n") or not all(map(json.loads, lines.splitlines()))
    make_room()
    finished(attempt(workdir))
    return result | {"resumed": digest_of(workdir)}


def limit_files(workdir):
    """No file gets longer than half a line more of metrics."""
    size = (workdir / "metrics.jsonl").stat().st_size + 50
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill_up(workdir):
    """Writes until the file system has no room left."""
    try:
        with open(workdir.parent / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


def full_disk(folder):
    """What became of a run on a full disk, a small file system of its own where that may be."""
    small = folder / "small"
    small.mkdir()
    if os.environ.get("AWP_JAX_NAMESPACE"):  # never mounts where others would see it
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
        subprocess.run(mount, check=True)
        found = on_a_full_disk(small, fill_up, lambda: (small / "filler").unlink())
        return found | {"kind": "full file system"}
    return on_a_full_disk(small, limit_files, lambda: None) | {"kind": "limited files"}


def digest_of(workdir):
    """The digest that the last checkpoint has of its state."""
    step = workdir / "checkpoints" / "last" / str(last_step(workdir))
    (info,) = (step / "info").rglob("metadata")
    return json.loads(info.read_text())["digest"]


def main(folder, kills, seed):
    """Prints what was seen."""
    folder, chance = pathlib.Path(folder), random.Random(seed)
    began = time.monotonic()
    if not finished(attempt(folder / "whole")):
        raise RuntimeError("the undisturbed run took too long")
    # An undisturbed attempt takes 1 s to its first step and 2 s more, where nothing is compiled.
    patience = PATIENCE
    steps, digests, runs = [], [], 0
    while len(steps) < kills or len(digests) < runs + 1:
        workdir = folder / f"cut-{runs}"
        if len(steps) < kills:
            early = chance.random() < 0.2  # at the start as well: while a checkpoint is read
            limit = chance.uniform(0.0, 1.0) * patience
        else:
            early, limit = True, 600.0
        before = last_step(workdir)
        if not finished(attempt(workdir), limit, after_first_step=not early):
            steps.append(last_step(workdir))
            if steps[-1] == before and not early:  # killed before it got anywhere
                patience *= 2.0
            continue
        patience = PATIENCE
        digests.append(digest_of(workdir))
        if len(steps) < kills:
            runs += 1
    seconds = round(time.monotonic() - began, 1)
    result = {"kills": len(steps), "steps": steps, "seconds": seconds, "resumed": digests}
    result["undisturbed"] = digest_of(folder / "whole")
    result["full"] = full_disk(folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
