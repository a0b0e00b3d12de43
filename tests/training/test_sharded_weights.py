"""Weights in parts on many devices: the same numbers, a part of the memory."""

import copy
import json
import re

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from small_run import tiny_config

from awp_jax import models, objectives, parallel, runs, training

MESHES = ("data:8", "data:4,fsdp:2", "data:2,fsdp:4", "fsdp:8,data:1")


def config_of(mesh="data:-1", **weights):
    config = tiny_config(width=128, **weights)
    config.data.train_examples, config.parallel.mesh = 80, mesh
    config.averaging.name, config.logging.every_steps = "ema", 1
    return config


def state_after(mesh, devices, steps=3, **weights):
    experiment = training.build(config_of(mesh, **weights), devices=devices, sharded=True)
    state, pool, order = experiment.init(), experiment.on_devices(), experiment.order(0)
    for step in range(steps):
        state, metrics = experiment.step(
            state, *pool, order, experiment.key, batch_size=32,
            perturb_weights=experiment.perturbs_weights(step),
        )  # fmt: skip
    return state, metrics


def bytes_of(state):
    leaves = jax.tree.leaves(state)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)


def assert_close(one, other, tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "weights", [{"method": "awp"}, {"method": "rwp", "c_min": 1e9}, {"method": "random"}],
    ids=lambda w: w["method"],
)  # fmt: skip
def test_three_steps_do_not_depend_on_the_mesh(weights):
    whole, told = state_after("data:-1", 1, **weights)
    held = bytes_of(whole)
    for mesh in MESHES if weights["method"] == "awp" else MESHES[2:3]:
        state, metrics = state_after(mesh, 8, **weights)
        assert_close(whole, state, 2e-6)
        assert_close(told, metrics, 1e-5)
        count = parallel.axes_of(mesh).get("fsdp", 1)
        # Biases, the last layer and what is counted stay whole.
        assert bytes_of(state) < held / count + 25_000
        kernel = state.params["hidden_0"]["kernel"] if "hidden_0" in state.params else None
        largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
        assert kernel is None or kernel.shape == largest.shape
        assert largest.sharding.is_fully_replicated == (count == 1)


def test_the_largest_axis_that_divides_is_split():
    mesh = parallel.data_mesh(8, "data:2,fsdp:4")

    def spec(*shape):
        return parallel.state_sharding(mesh, jax.ShapeDtypeStruct(shape, np.float32)).spec

    assert spec(3, 3, 64, 128) == P(None, None, None, "fsdp")
    assert spec(3, 3, 128, 64) == P(None, None, "fsdp")
    assert spec(64, 64) == P(None, "fsdp")  # of two the last
    assert spec(4096, 10) == P("fsdp")
    assert (
        spec(513, 1001)
        == spec(
            64,
        )
        == spec()
        == P()
    )  # nothing divides, or it is small
    plain = parallel.data_mesh(8)
    assert parallel.state_sharding(plain, jax.ShapeDtypeStruct((64, 64), "f4")).spec == P()


def test_rules_split_other_axes():
    """Of weights, moments and averages; the numbers are the same."""
    rules = "hidden*.kernel:0, linear.kernel:none"

    def state_of(rules):
        config = config_of("data:2,fsdp:4")
        config.parallel.rules = rules
        experiment = training.build(config, devices=8, sharded=True)
        pool, order = experiment.on_devices(), experiment.order(0)
        state, _ = experiment.step(
            experiment.init(), *pool, order, experiment.key, batch_size=32, perturb_weights=True
        )
        return state

    by_rules, plain = state_of(rules), state_of("")
    assert_close(by_rules, plain, 2e-6)
    differ = 0
    for held in (by_rules.params, by_rules.average, by_rules.opt_state):
        for path, leaf in jax.tree_util.tree_leaves_with_path(held):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if "hidden" in name and name.endswith("kernel"):
                assert leaf.sharding.spec == P("fsdp"), name
                differ += 1
    assert differ == 3 * len(by_rules.params["hidden"]) == 6
    moved = jax.tree.leaves(plain.params)
    assert any(leaf.sharding.spec == P(None, "fsdp") for leaf in moved)


def test_a_step_by_hand_takes_rules():
    """The gradient of a weight is split as the weight is."""
    mesh, rules = parallel.data_mesh(8, "data:2,fsdp:4"), "hidden.0.kernel:1"
    model = models.create("mlp", image_shape=(8, 8, 3), num_classes=10, width=128)
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = training.init_state(model, optimizer, jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 3))
    labels = np.arange(16) % 10

    def after(rules, mesh):
        step = training.make_train_step(model, objectives.at(), optimizer, mesh=mesh, rules=rules)
        placed = (
            state
            if mesh is None
            else jax.device_put(state, parallel.state_sharding(mesh, state, rules))
        )
        return jax.jit(step)(placed, images, labels, jax.random.key(2))[0]

    found = after(rules, mesh)
    assert_close(after("", None), found, 2e-6)
    assert found.params["hidden"]["0"]["kernel"].sharding.spec == P(None, "fsdp")


def test_weights_of_another_run_lie_as_the_rules_say(tmp_path):
    config = config_of("data:2,fsdp:4")
    config.parallel.rules = "hidden*.kernel:0"
    training.train(config, tmp_path / "first", devices=8, max_steps=2, progress=None)
    tuned = config_of("data:2,fsdp:4")
    tuned.parallel.rules, tuned.init_from = config.parallel.rules, str(tmp_path / "first")
    tuned.init_checkpoint = "last"
    outcome = training.train(tuned, tmp_path / "tuned", devices=8, max_steps=1, progress=None)
    kernels = [leaf for leaf in jax.tree.leaves(outcome.state.params) if leaf.shape == (64, 128)]
    assert kernels and all(leaf.sharding.spec == P("fsdp") for leaf in kernels)


@pytest.mark.core
@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("kernel", "has 'kernel', but a path and an axis"),
        ("linear.kernel:last", "has 'linear.kernel:last', but a path and an axis"),
        ("head.kernel:0", "names 'head.kernel', but no weight of the model is called so; one is"),
        ("linear.kernel:1", r"splits axis 1 of linear.kernel, of shape \(128, 10\), among 4"),
        ("linear.kernel:2", r"splits axis 2 of linear.kernel"),
    ],
)
def test_bad_rules_are_one_sentence(rules, said):
    config = config_of("data:2,fsdp:4")
    config.parallel.rules = rules
    with pytest.raises(ValueError, match=said) as found:
        training.build(config, devices=8, sharded=True)
    assert str(found.value).startswith("parallel.rules") and "\n" not in str(found.value)


@pytest.mark.core
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("data:2,fdsp:4", "names the axis 'fdsp', but data and fsdp"),
        ("data:2,data:4", "names the axis 'data', but data and fsdp, each once"),
        (
            "data:2,fsdp:x",
            "a number of devices, or -1 for what is left, was expected behind 'fsdp'",
        ),
        ("data:0,fsdp:8", "expected behind 'data'"),
        ("data", "expected behind 'data'"),
        ("fsdp:8", "but an axis data"),
        ("data:-1,fsdp:-1", "-1 once at most"),
        ("data:3,fsdp:4", "made of 12 devices, but 8 are there"),
        ("data:-1,fsdp:3", "made of a multiple of 3 devices, but 8 are there"),
        ("data:2,fsdp:2", "made of 4 devices, but 8 are there"),
    ],
)
def test_a_bad_mesh_is_one_sentence(shape, said):
    with pytest.raises(ValueError, match=said) as found:
        training.build(config_of(shape), devices=8, sharded=True)
    assert str(found.value).startswith(f"parallel.mesh is {shape!r}") and "\n" not in str(
        found.value
    )


def test_a_run_goes_on_in_another_mesh(tmp_path):
    def run(mesh, devices, **options):
        return training.train(
            config_of(mesh), tmp_path / "run", devices=devices, progress=None, **options
        )

    whole = training.train(config_of(), tmp_path / "whole", devices=1, progress=None)
    run("data:2,fsdp:4", 8, max_steps=2)
    checkpoints = training.Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    in_parts = training.build(config_of("data:2,fsdp:4"), devices=8, sharded=True)
    kept, info = checkpoints.restore("last", in_parts.abstract_state())
    for mesh, devices in (("data:-1", 1), ("data:2", 2), ("data:1,fsdp:4", 4), ("data:8", 8)):
        other = training.build(config_of(mesh), devices=devices, sharded=True)
        again, told = checkpoints.restore("last", other.abstract_state())
        assert told["digest"] == info["digest"]
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
    run("data:4,fsdp:2", 8, max_steps=5)  # in the middle of an epoch, after a measured one
    last = run("data:-1", 1)
    assert last.finished
    assert_close(whole.state, last.state, 1e-5)
    held = json.loads((tmp_path / "run" / "config.json").read_text())
    assert held["parallel"]["mesh"] == "data:-1"
    assert last.best["epoch"] == whole.best["epoch"]


def test_it_is_judged_on_whatever_devices_there_are(tmp_path):
    config = config_of("data:2,fsdp:4")
    config.epochs = 1
    training.train(config, tmp_path / "run", devices=8, progress=None)
    found = [
        runs.open(tmp_path / "run", devices=devices).evaluate(
            attacks=("pgd-2",), sets=("test",), checkpoints=("last", "average"), progress=None
        )
        for devices in (1, 8)
    ]
    for which in ("last", "average"):
        one, eight = (f.values["checkpoints"][which]["test"]["pgd-2"] for f in found)
        assert one["accuracy"] == eight["accuracy"]
        assert one["loss"] == pytest.approx(eight["loss"], rel=1e-5)


def test_mapped_steps_and_split_weights_are_refused_together():
    classifier = models.create("mlp", image_shape=(8, 8, 1), num_classes=10, axis_name="data")
    mesh = parallel.data_mesh(8, "data:2,fsdp:4")
    with pytest.raises(ValueError, match="axis_name is 'data', but mesh has an axis 'fsdp'"):
        training.make_train_step(
            classifier, objectives.at(), optax.sgd(0.1), axis_name="data", mesh=mesh
        )


def test_weights_are_gathered_once_for_the_whole_attack():
    mesh = parallel.data_mesh(8, "data:2,fsdp:4")
    classifier = models.create("mlp", image_shape=(8, 8, 1), num_classes=10, width=128)
    optimizer = optax.sgd(0.1)
    state = jax.eval_shape(
        lambda key: training.init_state(classifier, optimizer, key), jax.random.key(0)
    )
    places, rows = parallel.state_sharding(mesh, state), parallel.batch_sharding(mesh, 16)

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    batch = (place(np.zeros((16, 8, 8, 1), "f4"), rows), place(np.zeros(16, "i4"), rows))
    arguments = jax.tree.map(place, state, places), *batch, jax.random.key(0)

    def gathers(steps):
        step = training.make_train_step(
            classifier,
            objectives.at(),
            optimizer,
            attack=training.TrainingAttack(steps=steps),
            mesh=mesh,
            unroll=True,
        )
        step = jax.jit(step, out_shardings=(places, parallel.replicated(mesh)))
        return len(
            re.findall(r" all-gather(?:-start)?\(", step.lower(*arguments).compile().as_text())
        )

    assert gathers(1) == gathers(3) > 0


def test_several_steps_in_one_call(tmp_path):
    config = config_of("data:2,fsdp:4")
    config.data.train_examples = 96
    many = copy.deepcopy(config)
    many.training.steps_per_call = 3
    one = training.train(config, tmp_path / "one", devices=8, progress=None)
    three = training.train(many, tmp_path / "three", devices=8, progress=None)
    assert_close(one.state, three.state, 1e-5)
