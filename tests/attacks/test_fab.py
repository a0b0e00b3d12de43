"""FAB: the projection on a hyperplane in the box, distances on linear models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.optimize import linprog, minimize

from awp_jax.attacks import FAB, FABTargeted
from awp_jax.attacks._fab import boundary_displacement
from awp_jax.balls import input_norms


def linear(weights, bias, images):
    return images.reshape(images.shape[0], -1) @ weights + bias[None, :]


def problem(seed, size=6):
    rng = np.random.default_rng(seed)
    point = rng.uniform(size=size)
    normal = rng.normal(size=size)
    most = np.where(normal > 0, normal * (1 - point), -normal * point).sum()
    return point, normal, rng.uniform(0.05, 0.95) * most


def displacement(point, normal, change, norm):
    args = (jnp.asarray(x, jnp.float32)[None] for x in (point, normal, change))
    return np.asarray(boundary_displacement(*args, norm)[0], np.float64)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), norm=st.sampled_from(["linf", "l2"]), flip=st.booleans())
def test_displacement_lies_on_the_plane_and_in_the_box(seed, norm, flip):
    point, normal, change = problem(seed)
    if flip:
        normal, change = -normal, -change
    moved = displacement(point, normal, change, norm)
    assert moved @ normal == pytest.approx(change, abs=2e-5)
    assert (point + moved).min() >= -1e-6 and (point + moved).max() <= 1 + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_linf_displacement_is_the_shortest(seed):
    point, normal, change = problem(seed)
    # min t with |d| <= t, <normal, d> = change, d in the box: a linear programme.
    n = len(point)
    above = np.concatenate([np.eye(n), -np.ones((n, 1))], axis=1)
    below = np.concatenate([-np.eye(n), -np.ones((n, 1))], axis=1)
    best = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=np.concatenate([above, below]),
        b_ub=np.zeros(2 * n),
        A_eq=np.append(normal, 0.0)[None],
        b_eq=[change],
        bounds=[*zip(-point, 1 - point, strict=True), (0, None)],
    ).fun
    assert np.abs(displacement(point, normal, change, "linf")).max() == pytest.approx(
        best, rel=1e-4
    )


@pytest.mark.parametrize("seed", range(5))
def test_l2_displacement_is_the_shortest(seed):
    point, normal, change = problem(seed)
    best = minimize(
        lambda d: d @ d,
        np.zeros(len(point)),
        jac=lambda d: 2 * d,
        constraints={"type": "eq", "fun": lambda d: d @ normal - change},
        bounds=list(zip(-point, 1 - point, strict=True)),
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    moved = displacement(point, normal, change, "l2")
    assert np.linalg.norm(moved) == pytest.approx(np.sqrt(best.fun), rel=1e-3)


def test_out_of_reach_goes_to_the_corner_and_zero_normals_stay():
    moved = displacement([0.2, 0.9], [1.0, -1.0], 50.0, "linf")
    np.testing.assert_allclose(moved, [0.8, -0.9], rtol=1e-6)
    np.testing.assert_array_equal(displacement([0.2, 0.9], [0.0, 0.0], 1.0, "l2"), 0)


@pytest.mark.core
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [FAB, FABTargeted])
def test_radius_is_the_margin_over_the_dual_norm(norm, attack):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    images = jnp.asarray(rng.uniform(0.45, 0.55, size=(8, 4, 4, 1)), jnp.float32)
    bias = jnp.zeros(4)
    logits = linear(weights, bias, images)
    labels = logits.argmax(1).astype(jnp.int32)
    difference = weights.T[None] - weights.T[labels][:, None]
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    dual = jnp.linalg.norm(difference, ord=order, axis=-1)
    margins = jnp.take_along_axis(logits, labels[:, None], 1) - logits
    expected = jnp.where(dual > 0, margins / jnp.where(dual > 0, dual, 1), jnp.inf).min(1)
    found = attack(0.5, 40, norm).nearest(
        Partial(linear, weights, bias), jax.random.key(0), images, labels
    )
    # Steps overshoot by 5% and come back by 10%: what is found ends just behind the boundary.
    np.testing.assert_allclose(found.radius, expected, rtol=2e-2)
    assert bool((found.radius >= expected * 0.9999).all())


def test_l1_fills_the_best_pixels_of_the_box():
    # The gain of the first pixel is twice that of the second, but it can only fall by 0.2.
    weights, bias = jnp.array([[2.0, 0.0], [1.0, 0.0]]), jnp.array([0.0, 0.4])
    images = jnp.array([[0.2, 0.5]]).reshape(1, 1, 2, 1)
    found = FAB(0.5, 30, "l1").nearest(
        Partial(linear, weights, bias), jax.random.key(0), images, jnp.array([0])
    )
    np.testing.assert_allclose(found.radius, 0.3, rtol=2e-2)  # 0.2 and 0.1
    # Restarts begin at half of epsilon in L1.
    from awp_jax.attacks._stepped import begin
    from awp_jax.random import example_keys

    args = Partial(linear, weights, bias), example_keys(jax.random.key(0), 1), images
    state = begin(FAB(0.1, norm="l1"), *args, jnp.array([0]), 0, 1)
    np.testing.assert_allclose(input_norms(state.point - images, "l1"), 0.05, rtol=1e-5)


def test_radius_respects_the_box():
    # Only the first pixel can fall: the second is at 0 already, so it takes twice the distance.
    weights, bias = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0.0, 0.5])
    images = jnp.array([[0.8, 0.0]]).reshape(1, 1, 2, 1)
    found = FAB(0.5, 30).nearest(
        Partial(linear, weights, bias), jax.random.key(0), images, jnp.array([0])
    )
    np.testing.assert_allclose(found.radius, 0.3, rtol=2e-2)


def test_success_means_inside_epsilon():
    weights, bias = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0.0, 0.5])
    images = jnp.array([[0.35, 0.25], [0.9, 0.9], [0.1, 0.1]]).reshape(3, 1, 2, 1)
    labels = jnp.zeros(3, jnp.int32)
    args = Partial(linear, weights, bias), jax.random.key(0), images, labels
    result = FABTargeted(0.1, 30)(*args)
    np.testing.assert_array_equal(result.success, [True, False, True])
    np.testing.assert_allclose(result.images[1:], images[1:])
    assert float(input_norms(result.images - images, "linf").max()) <= 0.1 + 1e-6
    found = FABTargeted(0.1, 30).nearest(*args)
    assert found.radius[2] == 0 and found.radius[1] > 0.6


def test_a_key_gives_the_same_result_for_any_batch(digits):
    attack = FAB(0.16, steps=6, restarts=2)
    images, labels = digits.images[:8], digits.labels[:8]
    whole = attack.nearest(digits.logits_fn, jax.random.key(0), images, labels)
    from awp_jax.random import example_keys

    keys = example_keys(jax.random.key(0), 8)
    half = attack.nearest(digits.logits_fn, keys[4:], images[4:], labels[4:])
    np.testing.assert_allclose(whole.radius[4:], half.radius, rtol=1e-4)


@pytest.mark.parametrize("bad", [{"alpha_max": 2}, {"beta": -1}, {"eta": 0.5}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        FAB(0.1, **bad)
