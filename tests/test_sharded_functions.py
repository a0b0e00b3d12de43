"""Weights and images split among devices: Auto and Explicit meshes, shard_map and pmap."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from longer import longer

from awp_jax.attacks import PGD
from awp_jax.balls import AdaptiveWeightBall, WeightBall, everything
from awp_jax.explicit import explicit_mesh
from awp_jax.weights import awp, perturbed

SCRIPT = pathlib.Path(__file__).with_name("sharded_functions.py")
# SPSA divides differences of losses by a small number.
ALLOWED = {"spsa": 2e-5}
FUNCTIONS = 26
# Each kind of what moves: gradients, searches, boxes, weights by scope, cascades.
EXPLICIT = (
    "pgd l2,apgd l1,apgd-t,fab-t,square,spsa,ddn,awp filter,asam,rwp,value_and_grad,measured,"
    "autoattack"
)


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("explicit 2x4",), EXPLICIT),
        (("auto 4x2",), "apgd,awp leaf,landscapes"),
        *longer(
            (("auto 4x2", "explicit 2x4"), ""),
            (("auto 8x1", "auto 2x4", "auto 1x8"), ""),
            (("explicit 8x1", "explicit 4x2", "explicit 1x8"), ""),
        ),
    ],
)
def test_every_function_finds_what_it_finds_on_one_device(places, names):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"--names={names}", *places],
        env=os.environ | {"NPROC": "32", "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    count = len(names.split(",")) if names else FUNCTIONS
    assert len(rows) == count * len(places)
    for row in rows:
        assert "error" not in row and not row["misplaced"], row
        assert row["difference"] <= ALLOWED.get(row["name"], 2e-6), row


@pytest.mark.core
def test_images_of_an_explicit_mesh_come_back_as_they_lay():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    plain = jnp.full((8, 2, 2, 1), 0.52)
    images, labels = jax.device_put(plain, NamedSharding(mesh, P("data"))), np.zeros(8, np.int32)
    kernel = np.array([[1.0, 0.0]], np.float32)

    def explicit(x):  # in Explicit mode, which says how its arrays lie
        assert explicit_mesh(x) is not None
        return (x.mean((1, 2)) - 0.5) * kernel

    attack, key = PGD("8/255", norm="l2", steps=2), jax.random.key(0)  # vmaps over keys and images
    one = attack(lambda x: (x.mean((1, 2)) - 0.5) * kernel, key, plain, labels)
    for call in (attack, jax.jit(attack, static_argnums=0)):
        found = call(explicit, key, images, labels)
        assert jax.typeof(found.images).sharding.spec[0] == "data"
        assert jax.typeof(found.success).sharding.spec == P("data")
        np.testing.assert_allclose(found.images, one.images, atol=1e-7)


# Loss 0.5 (w0^2 + 10 w1^2) at (3, 4), gamma 1: v = |w| g / |g|, and the step is -g(w + v).
WEIGHTS, SCALE = np.array([[3.0, 4.0]], np.float32), np.array([[1.0, 10.0]], np.float32)
STEP = -SCALE * (WEIGHTS + 5 * SCALE * WEIGHTS / np.linalg.norm(SCALE * WEIGHTS))
PARTS = P(None, "fsdp")


def step_of(ball):
    optimizer = perturbed(optax.sgd(1.0), ball)

    def step(weights, scale):
        params = {"kernel": weights}
        grad_fn = jax.grad(lambda p: 0.5 * (scale * p["kernel"] ** 2).sum())
        state = optimizer.init(params)
        updates, after = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return updates["kernel"], after.finite

    return step


def two(name="fsdp"):
    return jax.make_mesh((2,), (name,), axis_types=(AxisType.Auto,))


def split(ball, check_vma=True):
    step = step_of(ball)
    mapped = jax.shard_map(
        lambda *given: step(*given)[0],
        mesh=two(),
        in_specs=(PARTS, PARTS),
        out_specs=PARTS,
        check_vma=check_vma,
    )
    return jax.jit(mapped)(WEIGHTS, SCALE)


def on_two(ball, weights=WEIGHTS):
    mapped = jax.pmap(step_of(ball), axis_name="fsdp", devices=jax.devices()[:2])
    return mapped(weights.T[:, None], SCALE.T[:, None])


@pytest.mark.core
@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("check_vma", [True, False])
def test_split_weights_have_the_norm_of_the_whole(scope, check_vma):
    found = split(WeightBall(1.0, scope=scope, axis_name="fsdp"), check_vma)
    np.testing.assert_allclose(found, STEP, rtol=1e-6)
    np.testing.assert_allclose(step_of(WeightBall(1.0))(WEIGHTS, SCALE)[0], STEP, rtol=1e-6)


def test_under_pmap_too():
    ball = WeightBall(1.0, axis_name="fsdp")
    np.testing.assert_allclose(on_two(ball)[0].reshape(1, 2), STEP, rtol=1e-6)
    # What one device finds not finite keeps all from a step.
    found, finite = on_two(ball, WEIGHTS * np.array([[1.0, np.inf]], np.float32))
    assert not finite.any() and not found.any()


def test_asam_on_split_weights():
    settings = {"radius": 0.5, "eta": 0.0, "mask": everything}
    whole = step_of(AdaptiveWeightBall(**settings))(WEIGHTS, SCALE)[0]
    found = on_two(AdaptiveWeightBall(**settings, axis_name="fsdp"))[0]
    np.testing.assert_allclose(found.reshape(1, 2), whole, rtol=1e-6)


@pytest.mark.core
def test_parts_that_would_be_taken_for_the_whole_are_refused():
    with pytest.raises(ValueError, match=r"differ between the devices of axis 'fsdp'.*axis_name"):
        split(WeightBall(1.0))
    with pytest.raises(ValueError, match="axis_name is 'fsdp', but scope 'filter'"):
        WeightBall(1.0, scope="filter", axis_name="fsdp")


def test_weights_that_are_whole_on_each_device_count_once():
    # shard_map knows which leaf is which.
    ball = WeightBall(1.0, scope="global", axis_name="fsdp")
    params = {"kernel": WEIGHTS, "whole": {"kernel": np.array([[12.0]], np.float32)}}

    def norm(params):
        return ball.norms(params, params)["kernel"]

    specs = {"kernel": PARTS, "whole": {"kernel": P()}}
    mapped = jax.shard_map(norm, mesh=two(), in_specs=(specs,), out_specs=P())
    np.testing.assert_allclose(jax.jit(mapped)(params), 13.0, rtol=1e-6)


def test_each_device_may_have_weights_of_its_own():
    optimizer = awp(optax.sgd(1.0), ball=WeightBall(1.0, axis_name=()))

    def step(w):
        params = {"kernel": w}
        grad_fn = jax.grad(lambda p: 0.5 * (p["kernel"] ** 2).sum())
        return optimizer.update(grad_fn(params), optimizer.init(params), params, grad_fn=grad_fn)[0]

    mapped = jax.shard_map(step, mesh=two("seed"), in_specs=P("seed"), out_specs=P("seed"))
    found = jax.jit(mapped)(np.array([[3.0, 4.0], [1.0, 0.0]], np.float32))["kernel"]
    np.testing.assert_allclose(found, [[-6.0, -8.0], [-2.0, 0.0]], rtol=1e-6)
