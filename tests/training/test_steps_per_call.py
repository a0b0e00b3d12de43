"""Several optimiser steps in one call: the same run, to rounding."""

import json

import jax
import numpy as np
import pytest
from longer import longer
from small_run import goes_on_bit_by_bit, poison, tiny_config

from awp_jax import training


def config_of(steps_per_call, **changes):
    """3 epochs of 10 steps, the last with fewer examples."""
    config = tiny_config()
    config.data.train_examples = 310
    config.training.steps_per_call = steps_per_call
    config.logging.every_steps = 3
    for path, value in changes.items():
        group, _, name = path.rpartition(".")
        (config[group] if group else config)[name] = value
    return config


def trained(config, workdir, **options):
    return training.train(config, workdir, progress=None, **options)


def lines(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("images_per_second", None)
    return found


def assert_same_run(one, many, tmp_path):
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(many.state), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            continue
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    singly, at_once = lines(tmp_path / "1"), lines(tmp_path / "4")
    assert [(x["kind"], x["step"]) for x in singly] == [(x["kind"], x["step"]) for x in at_once]
    for a, b in zip(singly, at_once, strict=True):
        assert a.keys() == b.keys()
        if a.pop("kind") == b.pop("kind") == "train":
            assert a == pytest.approx(b, rel=1e-4), a["step"]


@pytest.mark.parametrize(
    "changes",
    [
        *longer({}),
        {"data.device_megabytes": 0},  # batches come from the host
        {"weights.start_epoch": 1},
        {"data.mixup": 1.0},  # the smaller last batch is not filled up
        *longer({"checkpoint.every_steps": 5}),
        {"averaging.name": "ema", "optimizer.non_finite": "skip"},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_a_run_is_the_same(tmp_path, changes):
    one = trained(config_of(1, **changes), tmp_path / "1")
    many = trained(config_of(4, **changes), tmp_path / "4")
    assert_same_run(one, many, tmp_path)


def test_which_steps_are_made_at_once():
    def calls(**changes):
        experiment, step, found = training.build(config_of(4, **changes)), 0, []
        while step < 20:
            found.append(experiment.steps_of_call(step, 20))
            step += found[-1]
        return found

    assert calls() == [4, 4, 1, 1] * 2
    assert calls(**{"data.mixup": 1.0, "data.train_examples": 240}) == [4, 1, 1, 1, 1] * 2 + [4]
    assert calls(**{"checkpoint.every_steps": 5}) == [4, 1] * 4
    assert training.build(config_of(4)).steps_of_call(4, 7) == 1  # a run that ends there
    assert training.build(config_of(1)).steps_of_call(0, 20) == 1


def test_two_programs_serve_all_steps_and_metrics_keep_their_axis():
    experiment = training.build(config_of(4))
    state, pool = experiment.init(), experiment.on_devices()
    order, step = experiment.order(0), 0
    while step < 10:
        count = experiment.steps_of_call(step, 10)
        program = experiment.steps if count > 1 else experiment.step
        settings = {"batch_size": 32, "perturb_weights": True}
        before = state.params
        state, metrics = program(state, *pool, order, experiment.key, **settings)
        assert metrics["loss"].shape == ((count,) if count > 1 else ())
        step += count
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))  # donated
    assert (experiment.step._cache_size(), experiment.steps._cache_size()) == (1, 1)


@pytest.mark.parametrize(
    "changes", [{"checkpoint.every_steps": 5}, *longer({}, {"data.device_megabytes": 0})]
)
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path, changes):
    goes_on_bit_by_bit(config_of(4, **changes), tmp_path, stopped_after=14)  # the end of a call


def test_it_stops_after_a_call(tmp_path):
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) == 2

    outcome = trained(config_of(4), tmp_path / "run", should_stop=should_stop)
    assert outcome.preempted and int(outcome.state.step) == 8
    assert lines(tmp_path / "run")[-1]["step"] == 8  # nothing that was computed is untold


def test_given_batches_are_read_ahead_and_their_position_is_kept(tmp_path):
    grain = pytest.importorskip("grain")
    splits = training.build(config_of(4)).splits
    dataset = grain.MapDataset.source(range(310)).seed(1).shuffle().repeat()
    dataset = dataset.map(
        lambda i: {"image": splits.train.images[i], "label": splits.train.labels[i]}
    ).batch(32)

    def run(workdir, count, **options):
        batches = iter(dataset.to_iter_dataset())
        return trained(
            config_of(count, **{"data.train_examples": 320}),
            tmp_path / workdir,
            batches=batches,
            **options,
        )

    one, many = run("1", 1), run("4", 4)
    assert_same_run(one, many, tmp_path)
    run("cut", 4, max_steps=14)
    again = run("cut", 4)
    for a, b in zip(jax.tree.leaves(many.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_that_is_not_finite_is_named(tmp_path, monkeypatch):
    poison(monkeypatch, after=8, change=lambda m: m | {"loss": m["loss"] * np.nan})
    with pytest.raises(training.NonFiniteError, match="Step 9: the loss is nan"):
        trained(config_of(4), tmp_path / "run")


def test_checkpoints_in_the_middle_of_a_call_are_refused():
    with pytest.raises(ValueError, match=r"every_steps is 3, but training.steps_per_call 4"):
        training.build(config_of(4, **{"checkpoint.every_steps": 3}))


def test_rwp_on_a_cpu_makes_steps_one_by_one(tmp_path):
    config = config_of(4, **{"weights.method": "rwp", "epochs": 1, "data.train_examples": 96})
    experiment = training.build(config)
    assert experiment.steps_per_call == (1 if jax.default_backend() == "cpu" else 4)
