"""Checkpoints: damage of every kind is recognised, and the one before is used."""

import asyncio
import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from longer import longer

from awp_jax import training
from awp_jax.training import (
    BEST,
    LAST,
    CheckpointError,
    Checkpoints,
    StorageError,
    TrainState,
    _quiet,
    digest,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def state_at(step, seed=0):
    key = jax.random.key(seed)
    params = {"a": {"kernel": jax.random.normal(key, (64, 32)) + step}, "b": jnp.arange(5.0)}
    return TrainState(jnp.int32(step), params, {}, (jnp.int32(step), params))


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints, of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(LAST, state_at(step), {"step": step, "best": None})
    checkpoints.close()
    return tmp_path


def restore(directory, kind=LAST, **kwargs):
    said = []
    checkpoints = Checkpoints(directory, **kwargs)
    try:
        return *checkpoints.restore(kind, state_at(0), report=said.append), said
    finally:
        checkpoints.close()


def array_files(directory, step):
    files = (directory / LAST / str(step) / "state").rglob("*")
    return sorted((f for f in files if f.is_file()), key=lambda f: f.stat().st_size, reverse=True)


@pytest.mark.core
def test_what_is_saved_is_restored(saved):
    state, info, said = restore(saved)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(2)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert info["step"] == 2 and not said


@pytest.mark.core
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_recognised_and_the_one_before_is_used(saved, place):
    file = array_files(saved, 2)[0]
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 0x10
    file.write_bytes(bytes(content))
    state, info, said = restore(saved)
    assert int(state.step) == info["step"] == 1
    assert len(said) == 1 and "step 2 is damaged" in said[0] and "\n" not in said[0]


def test_truncated_and_missing_files_are_recognised(saved):
    for file in array_files(saved, 2)[:1]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert int(restore(saved)[0].step) == 1
    for file in array_files(saved, 1):
        file.unlink()
    with pytest.raises(CheckpointError, match="step 2 is damaged .* no other last checkpoint"):
        restore(saved)


def test_a_damaged_info_file_is_recognised(saved):
    for file in (saved / LAST / "2" / "info").rglob("metadata"):
        file.write_text("{")
    assert int(restore(saved)[0].step) == 1


def test_what_is_beside_the_arrays_is_checked_too(saved):
    (file,) = (saved / LAST / "2" / "info").rglob("metadata")
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"best": {"step": 1}}))
    _, info, said = restore(saved)
    assert info["step"] == 1 and "what is beside the arrays" in said[0]
    # Of a version that wrote no checksum.
    file.write_text(json.dumps({k: v for k, v in whole.items() if k != "info_crc32"}))
    assert restore(saved)[1] == {k: v for k, v in whole.items() if k != "info_crc32"}


def test_no_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="^No last checkpoint in"):
        restore(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_architecture_is_recognised(saved):
    other = state_at(0)._replace(params={"a": {"kernel": jnp.ones((3, 2))}, "b": jnp.ones(5)})
    checkpoints = Checkpoints(saved, read_only=True)
    with pytest.raises(CheckpointError, match="is of another network: params"):
        checkpoints.restore(LAST, other, report=lambda text: None)
    checkpoints.close()


def test_saving_goes_on_after_a_damaged_checkpoint_was_passed_over(saved):
    file = array_files(saved, 2)[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoints = Checkpoints(saved)
    state, _ = checkpoints.restore(LAST, state_at(0), report=lambda text: None)
    checkpoints.discard_after(int(state.step))
    checkpoints.save(LAST, state_at(2), {"step": 2, "best": None})
    checkpoints.close()
    assert int(restore(saved)[0].step) == 2
    assert (saved / "damaged-last-2").is_dir()


def test_last_keeps_two_and_best_keeps_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 5):
        checkpoints.save(LAST, state_at(step), {})
        checkpoints.save(BEST, state_at(step), {})
    checkpoints.wait()
    assert checkpoints.steps(LAST) == [4, 3] and checkpoints.steps(BEST) == [4]
    checkpoints.close()


def test_saving_the_same_step_twice_is_refused_with_a_sentence(saved):
    checkpoints = Checkpoints(saved)
    with pytest.raises(StorageError, match="step 1"):
        checkpoints.save(LAST, state_at(1), {})
    checkpoints.close()


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="step 1 failed"):
        Checkpoints(blocked).save(LAST, state_at(1), {})


def test_reading_changes_nothing(saved):
    def listing():
        return sorted((str(p), p.stat().st_mtime_ns) for p in pathlib.Path(saved).rglob("*"))

    before = listing()
    restore(saved, read_only=True)
    assert listing() == before


@pytest.mark.core
def test_any_flipped_bit_changes_the_digest():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.int32(3)}
    reference = int(digest(tree))
    seen = {reference}
    for word in range(6):
        for bit in range(32):
            values = np.arange(6, dtype=np.float32)
            values.view(np.uint32)[word] ^= np.uint32(1 << bit)
            seen.add(int(digest({**tree, "a": jnp.asarray(values).reshape(2, 3)})))
    assert len(seen) == 1 + 6 * 32


def test_the_digest_does_not_depend_on_the_sharding():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    values = jax.random.normal(jax.random.key(0), (16, 8))
    spread = jax.device_put(values, jax.NamedSharding(mesh, jax.P("data")))
    assert len(devices) == 8
    assert int(digest({"a": values})) == int(digest({"a": spread}))
    assert int(digest({"a": values})) != int(digest({"a": values[::-1]}))


def test_every_dtype_has_a_digest():
    leaves = [jnp.ones(3, d) for d in (jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint32, jnp.bool_)]
    for leaf in [*leaves, jax.random.key(0)]:
        assert digest([leaf]).dtype == jnp.uint32
    with jax.enable_x64(True):
        one, other = jnp.ones(2, jnp.float64), jnp.ones(2, jnp.float64).at[0].add(1e-15)
        assert int(digest(one)) != int(digest(other))


def test_a_run_killed_before_its_first_checkpoint_begins_anew_and_says_so(
    tmp_path, tiny_config, capsys
):
    config = tiny_config("linear", width=None)
    config.epochs, config.averaging.name, config.checkpoint.keep_every_epochs = 1, "ema", 1
    whole = training.train(config, tmp_path)
    assert "begins anew" not in capsys.readouterr().err
    # An average and a kept one are saved before the last one: a kill may fall between them.
    for kind in (LAST, BEST):
        shutil.rmtree(tmp_path / "checkpoints" / kind)
    again = training.train(config, tmp_path)
    assert "stopped before its first checkpoint: it begins anew" in capsys.readouterr().err
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_last_checkpoint_of_a_run_costs_only_its_steps(tmp_path, tiny_config, capsys):
    config = tiny_config()
    whole = training.train(config, tmp_path / "whole", progress=None)
    training.train(config, tmp_path / "cut", max_steps=6, progress=None)
    file = array_files(tmp_path / "cut" / "checkpoints", 6)[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = training.train(config, tmp_path / "cut", progress=None)
    assert "step 6 is damaged" in capsys.readouterr().err
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(a, b)


_AS_A_LIBRARY = """
import logging, sys
from awp_jax import config, runs, training
chosen = config.from_dict({values!r})
if {asked}:
    import absl.logging
    absl.logging.set_verbosity(absl.logging.INFO)
before = logging.getLogger("absl").level, logging.getLogger().level
training.train(chosen, sys.argv[1], progress=None)
runs.open(sys.argv[1], dtype=None).restore("best")
logger = logging.getLogger("absl")
assert before == (logger.level, logging.getLogger().level) and not logger.filters
logger.warning("A line of somebody else.")
"""


@pytest.mark.parametrize("asked", [False, *longer(True)])
def test_as_a_library_orbax_is_quiet_unless_asked(tmp_path, tiny_config, asked):
    values = training.plain(tiny_config("linear", width=None))
    done = subprocess.run(
        [sys.executable, "-c", _AS_A_LIBRARY.format(values=values, asked=asked), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert "A line of somebody else." in done.stderr
    assert ("CheckpointManagerOptions" in done.stderr) == asked, done.stderr
    if not asked:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def fails_late(path, gathered):
    """Runs a task of a coroutine of that file; nobody asks for its error."""
    source = "async def failing():\n    raise ValueError('of this task')"
    names = {}
    exec(compile(source, path, "exec"), names)

    async def main():
        future = asyncio.gather(names["failing"]()) if gathered else names["failing"]()
        task = asyncio.ensure_future(future)
        await asyncio.wait([task])

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    gc.collect()


@pytest.mark.parametrize("gathered", [False, True])
def test_failed_tasks_of_orbax_say_nothing_later_and_those_of_others_do(tmp_path, caplog, gathered):
    Checkpoints(tmp_path)
    fails_late("/lib/orbax/checkpoint/_src/serialization.py", gathered)
    assert not caplog.records
    fails_late("/home/orbax.py", gathered)
    (record,) = caplog.records
    assert "exception was never retrieved" in record.getMessage()


class Unraisable(NamedTuple):
    exc_value: Exception
    exc_traceback: object
    exc_type: type = RuntimeError
    err_msg: None = None
    object: None = None


def test_a_closed_loop_is_reported_unless_tensorstore_called_it(tmp_path, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    _quiet.quiet_tasks.__wrapped__()
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError) as caught:
        loop.call_soon_threadsafe(print)
    where = caught.value.__traceback__
    sys.unraisablehook(Unraisable(caught.value, where.tb_next))  # no frame called it
    assert not reported
    sys.unraisablehook(Unraisable(caught.value, where))
    assert len(reported) == 1


@pytest.mark.parametrize(
    ("path", "count"), [("/lib/orbax/checkpoint/_src/handler.py", 0), ("/home/orbax.py", 1)]
)
def test_a_coroutine_that_fails_as_it_is_closed_is_told_of_unless_it_is_orbax(
    monkeypatch, path, count
):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(0))
    _quiet.quiet_tasks.__wrapped__()
    source = """
async def failing(future):
    try:
        await future
    finally:
        raise ValueError("as it is closed")
"""
    names = {}
    exec(compile(source, path, "exec"), names)
    loop = asyncio.new_event_loop()
    coroutine = names["failing"](loop.create_future())
    coroutine.send(None)
    del coroutine
    gc.collect()
    loop.close()
    assert len(reported) == count
