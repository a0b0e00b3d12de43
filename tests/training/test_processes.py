"""Several processes on this machine: the numbers of one, and what becomes of the others."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import processes
import pytest

from awp_jax import parallel, runs, training

ROOT = pathlib.Path(__file__).parents[2]


def run(folder, *what):
    """What ``processes.py`` prints at its end, and everything that was said on the way."""
    script = pathlib.Path(__file__).with_name("processes.py")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ["AWP_JAX_TEST_CACHE"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def nearly_equal(one, other):
    """As far as it goes where more than two numbers are added, in whichever order they come."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if isinstance(a, str):
            assert a == b
        else:
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def last_of(workdir, devices):
    return runs.open(workdir, devices=devices, dtype=None).restore("last")[0]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_processes_train_evaluate_and_go_on_as_one_process_with_as_many_devices(tmp_path, count):
    found, said = run(tmp_path, str(count))
    assert found["statuses"] == [0] * count, said
    alone = training.train(processes.config(), tmp_path / "alone", devices=count, progress=None)
    same = equal if count == 2 else nearly_equal
    same(alone.state, last_of(tmp_path / "run", count))
    lines = [training.read_metrics(tmp_path / name) for name in ("alone", "run")]
    evaluations = [[r for r in part if r["kind"] == "evaluation"] for part in lines]
    assert len(evaluations[0]) == len(evaluations[1]) == 1
    same(evaluations[0], evaluations[1])
    # What several processes have saved, one goes on with.
    rest = training.train(processes.config(), tmp_path / "cut", devices=count, progress=None)
    same(alone.state, rest.state)
    if count == 4:  # measured once is enough
        return
    here = processes.measurements(tmp_path / "run", devices=count)
    for process in range(count):
        there = np.load(tmp_path / f"measured-{process}.npz")
        for name, values in here.items():
            np.testing.assert_array_equal(there[name], values, err_msg=name)


def test_two_processes_share_weights_and_go_on_in_another_mesh(tmp_path):
    found, said = run(tmp_path, "in-parts")
    assert found["statuses"] == [0, 0], said
    config = processes.split_config
    alone = training.train(config("data:-1"), tmp_path / "alone", devices=2, progress=None)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(alone.state))
    held = [int((tmp_path / f"held-{number}").read_text()) for number in range(2)]
    assert max(held) < 0.6 * whole  # a half, and what is small
    nearly_equal(alone.state, last_of(tmp_path / "run", 2))
    # What two processes have saved in parts, one goes on with, whole or in parts.
    for mesh, devices in (("data:-1", 1), ("data:2,fsdp:4", 8)):
        copy = tmp_path / f"cut-{devices}"
        shutil.copytree(tmp_path / "cut", copy)
        rest = training.train(config(mesh), copy, devices=devices, progress=None)
        nearly_equal(alone.state, rest.state)


DEATHS = [
    ["killed 0", "stopped 1"],  # each of both ways and of both processes
    pytest.param(["killed 1", "stopped 0"], marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("deaths", DEATHS, ids=", ".join)
def test_a_stopped_a_killed_and_a_hanging_run_of_two_processes_goes_on(tmp_path, deaths):
    found, said = run(tmp_path, "interrupted", *deaths)
    assert found["terminated"] == [75, 75], said
    assert 0 < found["saved"] < found["reached"] < 120
    # One that hangs holds its connections open: only the heartbeat, here of 5 seconds, tells.
    assert [found[death] for death in deaths] == [parallel.LOST] * 2, said
    assert max(found["seconds"]) < 60
    assert said.count("another process of this run has ended or cannot be reached") == 2
    assert found["finished"] == 0 and "finished at step 120" in found["said"]
    assert f"step {found['reached']} is damaged" in found["said"]
    alone = training.train(processes.long_config(), tmp_path / "alone", devices=2, progress=None)
    equal(alone.state, last_of(tmp_path / "run", 2))


def test_joining_that_fails_is_one_sentence():
    code = (
        "from awp_jax import parallel\n"
        f"parallel.initialize(coordinator='127.0.0.1:{processes.free_port()}', process_id=1,\n"
        "                    num_processes=2, timeout=1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("awp-jax: joining the other processes failed")
