"""APGD in L1, rule by rule; what holds in every ball."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import APGD, APGDTargeted
from awp_jax.attacks._apgd_l1 import SparseMemory, SparseSteps, phases
from awp_jax.attacks._stepped import begin
from awp_jax.balls import InputBall, input_norms
from awp_jax.random import example_keys

KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(jax.random.key(7), (16, 4))


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def batch(count=6, seed=0):
    images = jax.random.uniform(jax.random.key(seed), (count, 4, 4, 1))
    return images, linear(WEIGHTS, images).argmax(1).astype(jnp.int32)


MODEL = Partial(linear, WEIGHTS)


def started(attack, count=2):
    images, labels = batch(count)
    return begin(attack, MODEL, example_keys(KEY, count), images, labels, 0, 0)


@pytest.mark.core
def test_phases_are_the_released_ones():
    assert phases(100, larger_radii=True) == ((3.0, 30), (2.0, 30), (1.0, 40))
    assert phases(100, larger_radii=False) == ((1.0, 100),)
    assert phases(11, larger_radii=True) == ((3.0, 4), (2.0, 4), (1.0, 3))
    assert APGD(1.0, norm="l1").passes == 100
    # Each later phase looks at its start anew.
    assert APGD(1.0, norm="l1", larger_radii=True).passes == 102


@pytest.mark.core
def test_where_a_pass_is():
    rule = APGD(1.0, norm="l1", larger_radii=True)._steps
    place = jax.vmap(rule._place)(jnp.arange(-1, 102))
    factors = [3.0] * 31 + [2.0] * 31 + [1.0] * 41
    np.testing.assert_array_equal(place.factor, factors)
    np.testing.assert_array_equal(np.flatnonzero(place.begins), [0, 31, 62])
    np.testing.assert_array_equal(place.last, np.array(factors) == 1)
    # Of 30 and of 40 steps 4% are 1: a checkpoint after every step.
    np.testing.assert_array_equal(place.checks, ~place.begins)
    plain = jax.vmap(APGD(1.0, norm="l1")._steps._place)(jnp.arange(100))
    np.testing.assert_array_equal(np.flatnonzero(plain.checks) + 1, np.arange(4, 101, 4))
    assert plain.last.all() and not plain.begins.any()


def test_start_is_noise_projected_and_all_count_as_displaced():
    for larger, radius in ((False, 0.8), (True, 2.4)):
        state = started(APGD(0.8, norm="l1", larger_radii=larger))
        np.testing.assert_allclose(input_norms(state.point - state.images, "l1"), radius, rtol=1e-5)
        displaced = (state.point != state.images).sum((1, 2, 3))
        expected = displaced if larger else 16
        np.testing.assert_array_equal(state.memory.displaced, expected)
        np.testing.assert_allclose(state.memory.density, displaced / 24 if larger else 0.2)
        assert not larger or not state.success.any()


def test_a_step_moves_the_largest_entries_without_momentum():
    attack = APGD(0.8, norm="l1")
    state = started(attack)
    gradient = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1) * jnp.ones((2, 1, 1, 1))
    images = jnp.full_like(state.images, 0.5)
    state = state._replace(images=images, point=images, gradient=gradient)
    state = state._replace(share=jnp.array([1.0, 0.5]))
    moved = attack._steps.moved(jnp.int32(3), state).point - images
    # floor(0.8 * 16) = 12: the entries from the 13th on, 4 of 16, share the step.
    expected = np.zeros((2, 16))
    expected[0, 12:], expected[1, 12:] = 0.2, 0.1
    np.testing.assert_allclose(moved.reshape(2, 16), expected, atol=1e-6)


def at_check(before, displaced, share):
    """Two examples at a checkpoint whose best points displace so many of 16 entries."""
    attack = APGD(0.8, norm="l1")
    state = started(attack)
    best = np.array(state.images).reshape(2, 16)
    for row, count in enumerate(displaced):
        best[row, :count] += 0.01
    state = state._replace(
        best=jnp.asarray(best.reshape(2, 4, 4, 1)),
        best_gradient=jnp.full_like(state.gradient, 7.0),
        share=jnp.array(share),
        memory=SparseMemory(jnp.array([0.2, 0.2]), jnp.array(before)),
    )
    return state, attack._steps.checked(jnp.int32(3), state, state.best_loss)


def test_a_sparser_best_point_resets_the_step():
    # 9 of 10 entries are sparser by more than 5%, 10 of 10 are not.
    state, after = at_check([10.0, 10.0], [9, 10], [0.3, 0.3])
    np.testing.assert_allclose(after.share, [1.0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(after.memory.density, [9 / 24, 10 / 24], rtol=1e-6)
    np.testing.assert_array_equal(after.memory.displaced, [9, 10])
    np.testing.assert_array_equal(after.point[0], state.best[0])
    np.testing.assert_array_equal(after.gradient[0], state.best_gradient[0])
    np.testing.assert_array_equal(after.point[1], state.point[1])
    np.testing.assert_array_equal(after.gradient[1], state.gradient[1])


def test_steps_stay_above_a_tenth_and_nothing_displaced_resets_nothing():
    _, after = at_check([0.0, 10.0], [0, 10], [0.12, 0.9])
    np.testing.assert_allclose(after.share, [0.1, 0.6], rtol=1e-6)
    np.testing.assert_allclose(after.memory.density, [0, 10 / 24], rtol=1e-6)
    # The next phase forgets: the first step size, and only what its own start displaces.
    attack = APGD(0.8, 20, norm="l1", larger_radii=True)
    state = started(attack)._replace(share=jnp.array([0.3, 0.4]))
    state = attack.step(MODEL, jnp.int32(6), state)
    assert attack._steps._place(6).begins
    np.testing.assert_allclose(input_norms(state.point - state.images, "l1"), 1.6, rtol=1e-5)
    np.testing.assert_array_equal(state.share, [1, 1])
    displaced = (state.point != state.images).sum((1, 2, 3))
    np.testing.assert_array_equal(state.memory.displaced, displaced)


def test_finds_the_best_point_of_a_linear_model():
    # The margin of two classes: best is the entry that gains most, as far as its room goes.
    images = jnp.full((1, 4, 4, 1), 0.5)
    weights = WEIGHTS[:, :2]
    gain = np.asarray(weights[:, 1] - weights[:, 0], np.float64)
    for larger in (False, True):
        attack = APGD(1.2, norm="l1", loss="margin", larger_radii=larger, targeted=False)
        found = attack(Partial(linear, weights), KEY, images, jnp.array([0])).images
        best = np.sort(np.abs(gain))[::-1][:3] @ np.array([0.5, 0.5, 0.2])
        reached = (np.asarray(found - images, np.float64).ravel() * gain).sum()
        # What it returns is the latest misclassified point, the best one where none is.
        assert 0.97 * best <= reached <= best * (1 + 1e-5)


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("attack", [APGD, APGDTargeted])
def test_inside_ball_and_bounds_whatever_the_radius(attack, larger):
    images, labels = batch(8)
    images = images.at[:3].set(jnp.round(images[:3]))
    radii = jnp.array([0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 5.0, 20.0])
    ball = InputBall("l1", radii)
    found = attack(ball=ball, steps=12, larger_radii=larger)(MODEL, KEY, images, labels)
    distance = np.abs(np.asarray(found.images, np.float64) - np.asarray(images)).sum((1, 2, 3))
    assert (distance <= np.asarray(radii) * (1 + 1e-6)).all()
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
    np.testing.assert_array_equal(found.images[0], images[0])
    wrong = MODEL(found.images).argmax(1) != labels
    np.testing.assert_array_equal(found.success, wrong)
    assert found.success[-1] and not found.success[0]


@pytest.mark.parametrize("larger", [False, True])
def test_a_key_gives_the_same_result_for_any_batch(larger):
    images, labels = batch(6)
    keys = example_keys(jax.random.key(3), 6)
    attack = APGD(0.6, 6, norm="l1", larger_radii=larger, restarts=2)
    whole = attack(MODEL, jax.random.key(3), images, labels)
    half = attack(MODEL, keys[3:], images[3:], labels[3:])
    np.testing.assert_array_equal(whole.success[3:], half.success)
    np.testing.assert_allclose(whole.images[3:], half.images, atol=1e-6)
    np.testing.assert_array_equal(whole.steps[3:], half.steps)


def test_jits_vmaps_over_radii_and_compiles_for_no_new_radius():
    images, labels = batch(3)
    traces = []

    def counted(weights, x):
        traces.append(1)
        return linear(weights, x)

    attack = APGD(0.6, 5, norm="l1", larger_radii=True)
    model = Partial(counted, WEIGHTS)
    eager = attack(model, KEY, images, labels)
    before = len(traces)
    larger = dataclasses.replace(attack, ball=InputBall("l1", 0.9))
    second = larger(model, KEY, images, labels)
    assert len(traces) == before

    def at(radius):
        return dataclasses.replace(attack, ball=InputBall("l1", radius))(MODEL, KEY, images, labels)

    several = jax.jit(jax.vmap(at))(jnp.array([0.6, 0.9]))
    np.testing.assert_allclose(several.images[0], eager.images, atol=1e-5)
    np.testing.assert_allclose(several.images[1], second.images, atol=1e-5)


def test_no_gradient_moves_nothing_after_the_start():
    images, labels = batch(2)

    def flat(x):
        return 0.0 * linear(WEIGHTS, x) + jnp.array([[1.0, 0, 0, 0]])

    attack = APGD(0.8, 9, norm="l1")
    keys = example_keys(KEY, 2)
    first = state = begin(attack, Partial(flat), keys, images, labels, 0, 0)
    for index in range(9):
        state = attack.step(Partial(flat), jnp.int32(index), state)
    np.testing.assert_allclose(state.point, first.point, atol=1e-6)
    lost = state._replace(gradient=state.gradient.at[0, 0].set(jnp.nan))
    moved = attack._steps.moved(jnp.int32(1), lost).point
    np.testing.assert_allclose(moved, state.point, atol=1e-6)


def test_pytrees_masks_and_no_bounds():
    rng = np.random.default_rng(0)
    inputs = {
        "image": jnp.asarray(rng.uniform(size=(5, 3, 3, 1)), jnp.float32),
        "ids": jnp.arange(5)[:, None],
        "table": jnp.asarray(rng.normal(size=(5, 7)), jnp.float32),
    }
    weights = jnp.asarray(rng.normal(size=(16, 3)), jnp.float32)

    def model(x):
        flat = [x[name].reshape(5, -1) for name in ("image", "table")]
        return jnp.concatenate(flat, axis=1) @ weights

    labels = model(inputs).argmax(1)
    mask = {
        "image": jnp.ones((1, 3, 3, 1), bool).at[:, 0].set(False),
        "ids": None,
        "table": jnp.arange(7) < 4,
    }
    one = InputBall("l1", 1.5, None, None, mask)
    # A ball of its own for each of the arrays that can move.
    both = {name: inputs[name] for name in ("image", "table")}
    masks = {name: mask[name] for name in both}
    each = InputBall("l1", {"image": 0.3, "table": 0.9}, None, None, masks)
    for ball, larger in ((one, False), (each, True)):
        attack = APGD(ball=ball, steps=10, larger_radii=larger)
        found = attack(model, KEY, inputs if ball is one else both, labels)
        moved = {n: found.images[n] - inputs[n] for n in both}
        assert not moved["image"][:, 0].any() and not moved["table"][:, 4:].any()
        assert moved["image"].any() and moved["table"].any()
        if ball is one:
            np.testing.assert_array_equal(found.images["ids"], inputs["ids"])
            assert float(input_norms(moved, "l1").max()) <= 1.5 * (1 + 1e-6)
        else:
            assert float(input_norms(moved["image"], "l1").max()) <= 0.3 * (1 + 1e-6)
            assert float(input_norms(moved["table"], "l1").max()) <= 0.9 * (1 + 1e-6)
        assert found.success.any()
    # Shares are of the 6 + 4 entries that may move.
    rule = APGD(ball=one)._steps
    assert isinstance(rule, SparseSteps)
    np.testing.assert_array_equal(rule._entries(inputs), 10)


def test_half_precision():
    images, labels = batch(3)
    found = APGD(1.0, 6, norm="l1")(MODEL, KEY, images.astype(jnp.bfloat16), labels)
    assert found.images.dtype == jnp.float32
    wide = images.astype(jnp.bfloat16).astype(jnp.float32)
    assert float(input_norms(found.images - wide, "l1").max()) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "linf", "larger_radii": True}, "only APGD in an L1 ball"),
        ({"norm": "l2", "released_counts": True}, "only APGD in an L1 ball"),
        ({"norm": "l1", "larger_radii": 3}, "True or False was expected"),
        ({"norm": "l1", "larger_radii": True, "steps": 4}, "steps is 4, but at least 5"),
        ({"norm": "l1", "momentum": 0.9}, "momentum is 0.9, but APGD in an L1 ball has none"),
        ({"norm": "l1", "rho": 0.5}, "rho is 0.5, but APGD in an L1 ball has none"),
        ({"norm": "l1", "epsilon": -1}, "at least 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        APGD(**{"epsilon": 0.5} | settings)


def test_a_radius_for_each_feature_is_refused_before_anything_runs():
    images, labels = batch(2)
    ball = InputBall("l1", jnp.ones((4, 4, 1)))
    with pytest.raises(ValueError, match="radius has shape .* for l1 one number, or one for each"):
        APGD(ball=ball)(MODEL, KEY, images, labels)
