"""Starts several processes on this machine, and what each of them does in the tests.

Every process is a fork of one that has imported everything and has not touched a device.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import sklearn.datasets  # noqa: F401  # so that no process has to
from small_run import image_config, tiny_config

from awp_jax import attacks, cli, data, evaluation, landscape, parallel, runs, training

# An optional copy of metrics.jsonl, whose import loads PyTorch: most of what a start would take.
sys.modules["tensorboardX"] = None  # type: ignore[assignment]


def config():
    """AT-AWP of a linear model on digits: 3 steps, then an evaluation of 45 examples."""
    found = tiny_config("linear", width=None)
    found.epochs = 1
    found.data.train_examples = 96  # one batch shape: half the compilations
    found.evaluation.train_examples = 0
    found.evaluation.test_examples = 45
    found.evaluation.batch_size = 40
    found.data.device_megabytes = 0  # each process feeds what its devices compute on
    return found


def long_config():
    """The same with 120 steps, and a checkpoint after every 9."""
    found = config()
    found.epochs, found.evaluation.every_epochs = 40, 40
    found.checkpoint.every_epochs = 3
    return found


def measurements(workdir, devices=None):
    """What evaluation, AutoAttack, landscapes and flatness say of the last state of a run."""
    run = runs.open(workdir, devices=devices, dtype=None)
    state, _ = run.restore("last")
    test, key, attack = run.experiment.splits.test, run.experiment.key, attacks.PGD("0.1", steps=2)
    images, labels = test.images[:45], test.labels[:45]
    plan = {"pgd-2": attack, "cascade": [("apgd-ce", attacks.APGD("0.1", steps=2))]}
    partial = evaluation.PartialResults(pathlib.Path(workdir) / f"partial-{devices}", {})
    found = evaluation.evaluate(
        run.logits_fn(state), key, images, labels, plan, batch_size=24, partial=partial
    )
    given = (run.apply_fn(state), state.params, images, labels)
    ways, axes = landscape.directions(key, state.params), [landscape.axis(3)]
    common = {"attack": attack, "batch_size": 23}
    curve = landscape.surface(given[0], given[1], ways, *given[2:], axes=axes, key=key, **common)
    reference = landscape.robust_loss(*given, key, restarts=1, **common)
    worst = landscape.worst_case_flatness(
        *given, key, steps=1, restarts=1, xi=0.1, weight_step=0.05, reference=reference, **common
    )
    return {
        "images": found.outcomes["pgd-2"].images,
        "losses": found.outcomes["pgd-2"].loss,
        "cascade": found.outcomes["cascade"].success,
        "curve": curve.loss,
        "reference": reference.losses,
        "worst": worst.losses,
    }


def train_and_measure(folder, measures):
    """One process of a run that is stopped, kept as it is then, and goes on."""
    training.train(config(), folder / "run", max_steps=2, progress=None)
    if parallel.is_main():
        shutil.copytree(folder / "run", folder / "cut")
    training.train(config(), folder / "run", progress=None)
    if measures:
        found = measurements(folder / "run")
        np.savez(folder / f"measured-{jax.process_index()}.npz", **found)


def split_config(mesh):
    """5 steps of a model whose weights two processes share, one evaluation."""
    found = config()
    found.model.name, found.model.width, found.parallel.mesh = "mlp", 128, mesh
    found.averaging.name, found.data.train_examples = "ema", 160
    return found


def in_parts(folder):
    """Two processes train with weights in parts, are stopped, and go on in another mesh."""

    def work(number, address):
        parallel.initialize(coordinator=address, process_id=number, num_processes=2)
        workdir = folder / "run"
        first = training.train(split_config("fsdp:2,data:1"), workdir, max_steps=3, progress=None)
        leaves = jax.tree.leaves(first.state)
        held = sum(leaf.addressable_data(0).nbytes for leaf in leaves)
        (folder / f"held-{number}").write_text(str(held))
        if parallel.is_main():
            shutil.copytree(workdir, folder / "cut")
        training.train(split_config("data:-1"), workdir, progress=None)
        return 0

    return {"statuses": statuses(start(2, work), 400)}


def free_port():
    """A port of this machine that nobody listens on."""
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(count, work):
    """Forks so many processes; ``work(process_id, coordinator)`` returns the exit status."""
    address, found = f"127.0.0.1:{free_port()}", []
    sys.stdout.flush()
    for number in range(count):
        process = os.fork()
        if not process:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", 1)
            sys.exit(work(number, address))
        found.append(process)
    return found


def statuses(processes, seconds):
    """Exit statuses, negative for signals; all are killed after so many seconds."""
    found, end = {}, time.monotonic() + seconds
    while len(found) < len(processes):
        for process in set(processes) - set(found):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                found[process] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    return [found[process] for process in processes]


def together(folder, count):
    """So many processes train and measure."""

    def work(number, address):
        parallel.initialize(coordinator=address, process_id=number, num_processes=count)
        train_and_measure(folder, measures=count == 2)
        return 0

    return {"statuses": statuses(start(count, work), 600)}


def on_images(folder, path):
    """Two processes train on image files, and keep which rows each has decoded."""

    def work(number, address):
        parallel.initialize(coordinator=address, process_id=number, num_processes=2)
        ordinary, decoded = data.DecodedRows.crops, []

        def kept(images, rows, step, **options):
            decoded.extend(rows.tolist())
            return ordinary(images, rows, step, **options)

        data.DecodedRows.crops = kept
        training.train(image_config(path), folder / "run", progress=None)
        np.save(folder / f"decoded-{number}.npy", decoded)
        return 0

    return {"statuses": statuses(start(2, work), 400)}


def recipe():
    """The two local processes of docs/clusters.md, as shell."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    (found,) = [block for block in blocks if "127.0.0.1" in block]
    return found


def interrupted(folder, deaths):
    """``awp-jax train`` in two processes: told to stop, one killed or stopped, then left alone.

    ``deaths`` are pairs as ``"killed 0"`` of what happens and to which. The newest checkpoint is
    damaged before the last start.
    """
    config_file = folder / "config.py"
    config_file.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
        "import processes\n"
        "get_config = processes.long_config\n"
    )
    workdir = folder / "run"
    last = workdir / "checkpoints" / "last"
    ordinary = training.Feed.__call__

    def slow(feed, step):  # so that there is something to interrupt
        time.sleep(0.05)
        return ordinary(feed, step)

    def work(number, address):
        training.Feed.__call__ = slow
        given = f"--coordinator={address} --process-id={number} --num-processes=2 --heartbeat=5"
        where = [f"--config={config_file}", f"--workdir={workdir}"]
        return cli.main(["train", *where, *given.split()])

    def newest():
        return max((int(p.name) for p in last.glob("*") if p.name.isdigit()), default=0)

    def wait_for(step):
        end = time.monotonic() + 200
        while newest() < step:
            if time.monotonic() > end:
                raise RuntimeError(f"no checkpoint of step {step}")
            time.sleep(0.01)

    processes = start(2, work)
    wait_for(1)
    for process in processes:
        os.kill(process, signal.SIGTERM)
    found = {"terminated": statuses(processes, 200), "saved": newest()}
    found["seconds"] = []
    signals = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
    for death in deaths:
        how, victim = death.split()[0], int(death.split()[1])
        processes = start(2, work)
        wait_for(newest() + 1)
        os.kill(processes[victim], signals[how])
        began = time.monotonic()
        (other,) = statuses([processes[1 - victim]], 200)
        found["seconds"].append(time.monotonic() - began)
        os.kill(processes[victim], signal.SIGKILL)  # of a stopped one nothing else comes
        os.waitpid(processes[victim], 0)
        found[death] = other
    found["reached"] = newest()
    files = (path for path in (last / str(newest())).rglob("*") if path.is_file())
    damaged = max(files, key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:100])
    shell = recipe()
    for text, ours in (
        ("awp-jax", f"{sys.executable} -m awp_jax"),
        ("configs/digits_resnet.py:at-awp", str(config_file)),
        ("runs/two", str(workdir)),
        ("12345", str(free_port())),
    ):
        assert text in shell, text
        shell = shell.replace(text, ours)
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=200)
    found["finished"], found["said"] = done.returncode, done.stdout + done.stderr
    return found


if __name__ == "__main__":
    place, what, *deaths = pathlib.Path(sys.argv[1]), *sys.argv[2:]
    if what == "images":
        result = on_images(place, deaths[0])
    elif what == "in-parts":
        result = in_parts(place)
    elif what == "interrupted":
        result = interrupted(place, deaths)
    else:
        result = together(place, int(what))
    print(json.dumps(result))
