"""APGD, ingredient by ingredient; its losses; PGD's extras."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from awp_jax.attacks import (
    APGD,
    CW,
    PGD,
    APGDTargeted,
    HingedMargin,
    checkpoints,
    dlr,
    targeted_dlr,
)
from awp_jax.attacks._stepped import begin, ranked_targets
from awp_jax.balls import input_norms
from awp_jax.random import example_keys

WEIGHTS = jax.random.normal(jax.random.key(7), (4, 4, 1, 3))


def linear(weights, images):
    return jnp.einsum("bhwc,hwck->bk", images, weights)


def batch(count=6, seed=0):
    images = 0.3 + 0.4 * jax.random.uniform(jax.random.key(seed), (count, 4, 4, 1))
    return images, linear(WEIGHTS, images).argmax(1).astype(jnp.int32)


def started(attack, loss=0.0, count=2):
    """A state in the centre of the ball, so that a checkpoint can be tried by itself."""
    images, labels = batch(count)
    keys = example_keys(jax.random.key(0), count)
    state = begin(attack, Partial(linear, WEIGHTS), keys, images, labels, 0, 0)
    memory = state.memory._replace(checked_loss=jnp.full(count, loss))
    return state._replace(best_loss=jnp.full(count, loss), memory=memory)


@pytest.mark.core
def test_checkpoint_schedule():
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(10) == (2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert checkpoints(1) == (1,)


@pytest.mark.core
def test_dlr_by_hand():
    logits = jnp.array([[3.0, 1.0, 0.0, -1.0], [1.0, 4.0, 2.0, 0.0]])
    labels = jnp.array([0, 0])
    # -(3 - 1) / (3 - 0) and -(1 - 4) / (4 - 1)
    np.testing.assert_allclose(dlr(logits, labels), [-2 / 3, 1.0], rtol=1e-6)
    # -(3 - 0) / (3 - (0 - 1) / 2) and -(1 - 2) / (4 - (1 + 0) / 2)
    targets = jnp.array([2, 2])
    np.testing.assert_allclose(
        targeted_dlr(logits, labels, targets), [-3 / 3.5, 1 / 3.5], rtol=1e-6
    )
    np.testing.assert_allclose(dlr(5 * logits + 2, labels), dlr(logits, labels), rtol=1e-6)


def test_dlr_needs_enough_classes():
    with pytest.raises(ValueError, match="at least 3 classes, not 2"):
        dlr(jnp.zeros((1, 2)), jnp.array([0]))
    with pytest.raises(ValueError, match="at least 4 classes, not 3"):
        targeted_dlr(jnp.zeros((1, 3)), jnp.array([0]), jnp.array([1]))


@pytest.mark.core
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_on_the_sphere_with_step_two_epsilon(norm):
    attack = APGD(0.05, norm=norm)
    state = started(attack)
    np.testing.assert_allclose(input_norms(state.point - state.images, norm), 0.05, rtol=1e-4)
    np.testing.assert_allclose(attack._steps.size(state.share, state.images)[:, 0], 0.1, rtol=1e-6)


def _at_check(attack, memory, **changes):
    """A checkpoint at which the loss did not rise in the last step."""
    state = started(attack)
    low = jnp.full(2, -jnp.inf)
    state = state._replace(memory=state.memory._replace(**memory), **changes)
    return state, attack._steps.checked(jnp.int32(21), state, low)


def test_halves_when_the_loss_rose_too_seldom():
    attack = APGD(0.05)
    # rho * k = 0.75 * 22 = 16.5; the best loss improved, so only the count decides.
    memory = {"rises": jnp.array([16, 17])}
    state, after = _at_check(attack, memory, best_loss=jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(after.memory.halved, [True, False])
    np.testing.assert_allclose(after.share, [0.5, 1.0])
    np.testing.assert_array_equal(after.memory.rises, [0, 0])
    np.testing.assert_allclose(after.memory.checked_loss, after.best_loss)


def test_halves_when_nothing_improved_unless_it_was_just_halved():
    attack = APGD(0.05)
    memory = {"rises": jnp.array([20, 20]), "halved": jnp.array([False, True])}
    _, after = _at_check(attack, memory)
    np.testing.assert_array_equal(after.memory.halved, [True, False])


def test_between_checkpoints_nothing_is_halved():
    attack = APGD(0.05)
    state = started(attack)
    after = attack._steps.checked(jnp.int32(20), state, state.memory.loss)
    np.testing.assert_allclose(after.share, state.share)
    np.testing.assert_array_equal(after.memory.halved, state.memory.halved)


def test_restarts_from_the_best_point_with_its_gradient():
    attack = APGD(0.05)
    best = started(attack).images + 0.01
    changes = {
        "best": best,
        "best_gradient": jnp.full_like(best, 7.0),
        "best_loss": jnp.array([1.0, 1.0]),
    }
    state, after = _at_check(attack, {"rises": jnp.array([0, 20])}, **changes)
    np.testing.assert_allclose(after.point[0], best[0])
    np.testing.assert_allclose(after.gradient[0], 7.0)
    np.testing.assert_allclose(after.point[1], state.point[1])
    np.testing.assert_allclose(after.gradient[1], state.gradient[1])


def test_momentum_from_the_second_step():
    attack = APGD(0.2)
    function = Partial(linear, WEIGHTS)
    state = started(attack)
    state = state._replace(
        point=state.images,
        memory=state.memory._replace(previous=state.images - 0.04),
        gradient=jnp.ones_like(state.images),
        share=jnp.full(2, 0.2),
    )
    first = attack.step(function, jnp.int32(0), state).point - state.images
    np.testing.assert_allclose(first, 0.08, atol=1e-6)
    later = attack.step(function, jnp.int32(1), state).point - state.images
    np.testing.assert_allclose(later, 0.75 * 0.08 + 0.25 * 0.04, atol=1e-6)


def test_returns_the_latest_misclassified_iterate():
    images, labels = batch(2)
    attack = APGD(0.2, steps=5)
    state = started(attack)
    state = state._replace(success=jnp.array([True, False]), found=state.images + 0.1)
    chosen = attack.candidate(state)
    np.testing.assert_allclose(chosen[0], state.found[0])
    np.testing.assert_allclose(chosen[1], state.best[1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_epsilon_times_the_dual_norm_on_a_linear_model(norm):
    weights = WEIGHTS[..., :2]
    images = jnp.full((3, 4, 4, 1), 0.5)
    labels = jnp.zeros(3, jnp.int32)
    attack = APGD(0.1, norm=norm, steps=30, loss="margin")
    result = attack(Partial(linear, weights), jax.random.key(0), images, labels)
    direction = weights[..., 1] - weights[..., 0]
    dual = jnp.abs(direction).sum() if norm == "linf" else jnp.sqrt((direction**2).sum())
    gain = linear(weights, result.images) - linear(weights, images)
    # Misclassified from the start or not, the best margin is the closed form.
    state = begin(
        attack, Partial(linear, weights), example_keys(jax.random.key(0), 3), images, labels, 0, 0
    )
    for index in range(30):
        state = attack.step(Partial(linear, weights), jnp.int32(index), state)
    clean = linear(weights, images)
    expected = clean[:, 1] - clean[:, 0] + 0.1 * dual
    np.testing.assert_allclose(state.best_loss, expected, rtol=1e-4)
    assert bool((gain[:, 1] - gain[:, 0] <= 0.1 * dual * 1.0001).all())


@pytest.mark.core
def test_targets_are_the_most_likely_wrong_classes():
    logits = jnp.array([[5.0, 1.0, 3.0, 2.0], [1.0, 2.0, 0.0, 9.0]])
    labels = jnp.array([0, 1])
    for rank, expected in ((2, [2, 3]), (3, [3, 0]), (4, [1, 2])):
        np.testing.assert_array_equal(ranked_targets(logits, labels, rank), expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_classes_than_targets(classes):
    images, _ = batch()
    function = Partial(linear, 3 * WEIGHTS[..., :classes])
    labels = function(images).argmax(1).astype(jnp.int32)
    attack = APGDTargeted(0.3, steps=10)
    assert attack.runs(classes) == [(rank, 0) for rank in range(2, classes + 1)]
    assert attack(function, jax.random.key(0), images, labels).success.any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), norm=st.sampled_from(["linf", "l2"]), corner=st.booleans())
def test_never_leaves_the_ball_nor_the_pixel_range(seed, norm, corner):
    images = jax.random.uniform(jax.random.key(seed), (3, 4, 4, 1))
    images = jnp.round(images) if corner else images
    labels = linear(WEIGHTS, images).argmax(1).astype(jnp.int32)
    attack = APGD(0.1, norm=norm, steps=8)
    result = attack(Partial(linear, WEIGHTS), jax.random.key(seed), images, labels)
    assert float(input_norms(result.images - images, norm).max()) <= 0.1 + 1e-6
    assert float(result.images.min()) >= 0 and float(result.images.max()) <= 1


def test_a_key_gives_the_same_result_for_any_batch(digits):
    attack = APGD(0.16, steps=10, loss="dlr")
    images, labels = digits.images[:24], digits.labels[:24]
    keys = example_keys(jax.random.key(3), 24)
    whole = attack(digits.logits_fn, jax.random.key(3), images, labels)
    parts = [
        attack(digits.logits_fn, keys[i : i + 8], images[i : i + 8], labels[i : i + 8])
        for i in range(0, 24, 8)
    ]
    np.testing.assert_array_equal(whole.success, jnp.concatenate([p.success for p in parts]))
    np.testing.assert_allclose(whole.images, jnp.concatenate([p.images for p in parts]), atol=1e-5)


def test_jits_and_gives_the_same_result(digits):
    attack = APGD(0.16, steps=5)
    args = digits.logits_fn, jax.random.key(0), digits.images[:8], digits.labels[:8]
    inside, outside = jax.jit(attack.__call__)(*args), attack(*args)
    np.testing.assert_array_equal(inside.success, outside.success)
    np.testing.assert_allclose(inside.images, outside.images, atol=1e-5)


def test_compiles_once_for_all_parameters_and_targets():
    traces = []

    def counted(weights, images):
        traces.append(1)
        return linear(weights, images)

    images, labels = batch()
    attack = APGDTargeted(0.01, steps=3)
    attack(Partial(counted, WEIGHTS), jax.random.key(0), images, labels)
    before = len(traces)
    attack(Partial(counted, 2 * WEIGHTS), jax.random.key(1), images, labels)
    assert len(traces) == before


def noisy(weights, images, key):
    return linear(weights, images) + 0.1 * jax.random.normal(key, (1, weights.shape[-1]))


@pytest.mark.parametrize("attack", [APGD(0.3, steps=5, eot=3), PGD(0.3, steps=5, eot=3)])
def test_randomised_models_take_a_key(attack):
    images, labels = batch()
    result = attack(Partial(noisy, 3 * WEIGHTS), jax.random.key(0), images, labels)
    again = attack(Partial(noisy, 3 * WEIGHTS), jax.random.key(0), images, labels)
    assert result.success.any()
    np.testing.assert_array_equal(result.images, again.images)


def test_eot_averages_the_gradient():
    from awp_jax.attacks._gradient import loss_and_gradient

    def scaled(images, key):
        return images.reshape(2, -1) * jax.random.uniform(key)

    point, key = jnp.full((2, 1, 1, 1), 0.5), jax.random.key(0)
    _, losses, gradient = loss_and_gradient(scaled, lambda z: z[:, 0], point, key, 4)
    draws = jnp.stack([jax.random.uniform(jax.random.fold_in(key, i)) for i in range(4)])
    np.testing.assert_allclose(gradient.ravel(), draws.mean(), rtol=1e-5)
    np.testing.assert_allclose(losses, 0.5 * draws.mean(), rtol=1e-5)


def test_momentum_accumulates_normalised_gradients():
    images = jnp.full((1, 1, 2, 1), 0.5)

    def loss(logits, labels):
        del labels
        # The gradient of the first pixel changes sign at 0.55, that of the second never does.
        return -10 * (logits[:, 0] - 0.55) ** 2 + logits[:, 1]

    logits_fn = Partial(lambda x: x.reshape(1, 2))
    args = logits_fn, jax.random.key(0), images, jnp.array([0])
    plain = PGD(0.4, 2, step_size=0.1, start="none", loss=loss).perturb(*args)
    heavy = PGD(0.4, 2, step_size=0.1, start="none", loss=loss, momentum=2.0).perturb(*args)
    np.testing.assert_allclose(plain.ravel(), [0.5, 0.7], atol=1e-6)
    np.testing.assert_allclose(heavy.ravel(), [0.7, 0.7], atol=1e-6)


def test_cw_stops_at_kappa():
    logits = jnp.array([[0.0, 3.0], [5.0, 0.0]])
    np.testing.assert_allclose(HingedMargin(1.0)(logits, jnp.array([0, 0])), [1.0, -5.0])
    assert CW("8/255", kappa=50).loss == HingedMargin(50.0)
    assert CW("8/255").steps == 100
    images, labels = batch()
    result = CW(0.4, steps=20)(Partial(linear, WEIGHTS), jax.random.key(0), images, labels)
    assert result.success.all()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"norm": "l3"}, "Unknown norm 'l3'"),
        ({"steps": 0}, "steps is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"loss": "dlrr"}, "Did you mean 'dlr'"),
        ({"epsilon": -1}, "at least 0"),
        ({"eot": -1}, "eot is -1"),
    ],
)
def test_bad_settings(settings_, message):
    with pytest.raises(ValueError, match=message):
        APGD(**settings_)


def test_bad_input():
    images, labels = batch()
    function, key = Partial(linear, WEIGHTS), jax.random.key(0)
    with pytest.raises(ValueError, match="below 3"):
        APGD(0.1)(function, key, images, labels + 3)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        APGD(0.1)(function, key, 255 * images, labels)
    with pytest.raises(ValueError, match="returns NaN"):
        APGD(0.1)(Partial(linear, jnp.nan * WEIGHTS), key, images, labels)
    with pytest.raises(ValueError, match="logits"):
        APGD(0.1)(lambda x: x.sum(), key, images, labels)


def test_epsilon_zero_gives_the_clean_image():
    images, labels = batch()
    result = APGD(0, steps=3)(Partial(linear, WEIGHTS), jax.random.key(0), images, labels)
    np.testing.assert_allclose(result.images, images, atol=1e-7)
    assert not result.success.any()
