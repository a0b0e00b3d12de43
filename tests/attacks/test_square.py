"""Square attack: schedule, patterns, windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from awp_jax.attacks import Square
from awp_jax.attacks._square import pattern, window_sizes
from awp_jax.attacks._stepped import begin
from awp_jax.balls import input_norms
from awp_jax.random import example_keys

WEIGHTS = jax.random.normal(jax.random.key(7), (6, 5, 2, 3))


def linear(weights, images):
    return jnp.einsum("bhwc,hwck->bk", images, weights)


def batch(count=4, seed=0):
    images = 0.3 + 0.4 * jax.random.uniform(jax.random.key(seed), (count, 6, 5, 2))
    return images, linear(WEIGHTS, images).argmax(1).astype(jnp.int32)


@pytest.mark.core
def test_window_sizes_follow_the_schedule():
    sides = window_sizes(10_000, 0.8, 32, 32)
    after = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6001, 8001]
    halvings = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9]
    expected = [max(round(np.sqrt(0.8 / 2**n * 1024)), 1) for n in halvings]
    np.testing.assert_array_equal(sides[after], expected)
    odd = window_sizes(10_000, 0.8, 32, 32, "l2")
    assert set(odd % 2) == {1} and odd.min() == 3
    assert window_sizes(10, 1.0, 2, 2, "l2").max() <= 2


def test_l2_pattern_by_hand():
    # Rings of 1 + 1/4 in the middle and 1/4 around; a bump above a dip.
    bump, dip = np.array([[0.25, 1.25, 0.25]]), np.array([[0.25] * 3, [0.25, 1.25, 0.25]])
    expected = np.concatenate([bump / np.linalg.norm(bump), -dip / np.linalg.norm(dip)])
    np.testing.assert_allclose(pattern(3, "l2"), expected / np.linalg.norm(expected))
    assert np.linalg.norm(pattern(1, "l2")) == 1


def test_l1_pattern_by_hand():
    # Rings of 1 + 1/16 in the middle and 1/16 around; each half sums to 1 before both do.
    bump = np.array([[1, 17, 1]]) / 19
    dip = np.concatenate([np.ones((1, 3)), [[1, 17, 1]]]) / 22
    np.testing.assert_allclose(pattern(3, "l1"), np.concatenate([bump, -dip]) / 2)
    assert np.abs(pattern(1, "l1")).sum() == 1


def test_l1_moves_the_mass_of_a_window_and_what_is_free():
    # One window is the whole image: all of epsilon is in it afterwards, within the bounds.
    attack = Square(0.6, 10, "l1", p=1.0)
    images = jnp.full((3, 5, 5, 1), 0.5)
    keys = example_keys(jax.random.key(1), 3)
    moved = attack._moved(keys, jnp.int32(0), images, images + 0.01) - images
    np.testing.assert_allclose(input_norms(moved, "l1"), 0.6, rtol=1e-5)
    assert float(jnp.abs(moved).max()) <= 0.5
    # The start is cut to the ball, not stretched to it: 25 tiles of 1 pixel are 25 at first.
    state = begin(attack, Partial(lambda x: x[:, 0, 0] * jnp.ones((1, 2))), keys, images,
                  jnp.zeros(3, jnp.int32), 0, 0)  # fmt: skip
    np.testing.assert_allclose(jnp.abs(state.best - images), 0.6 / 25, rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_at_epsilon(norm):
    images, labels = batch()
    attack = Square(0.2, norm=norm)
    keys = example_keys(jax.random.key(0), 4)
    state = begin(attack, Partial(linear, WEIGHTS), keys, images, labels, 0, 0)
    change = state.best - images
    np.testing.assert_allclose(input_norms(change, norm), 0.2, rtol=1e-4)
    if norm == "linf":  # vertical stripes
        np.testing.assert_allclose(change, jnp.broadcast_to(change[:, :1], change.shape), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_windows_differ_between_examples_and_reach_every_pixel(norm):
    # In L1 what the window gets too much would be cut off everywhere else.
    attack = Square(10.0 if norm == "l1" else 0.1, 3000, norm)
    images = jnp.full((400, 6, 5, 2), 0.5)
    keys = example_keys(jax.random.key(0), 400)
    best = images if norm == "l1" else images + 0.01
    propose = attack._linf if norm == "linf" else attack._moved
    moved = jnp.abs(propose(keys, jnp.int32(2900), images, best) - best) > 1e-6
    assert len({row.tobytes() for row in np.asarray(moved)}) > 10
    assert bool(moved.any(axis=(0, 3)).all())


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), norm=st.sampled_from(["linf", "l2", "l1"]))
def test_never_leaves_the_ball_nor_the_pixel_range(seed, norm):
    images = jax.random.uniform(jax.random.key(seed), (3, 6, 5, 2))
    labels = linear(WEIGHTS, images).argmax(1).astype(jnp.int32)
    attack = Square(0.15, 12, norm)
    result = attack(Partial(linear, WEIGHTS), jax.random.key(seed), images, labels)
    assert float(input_norms(result.images - images, norm).max()) <= 0.15 + 1e-6
    assert float(result.images.min()) >= 0 and float(result.images.max()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_key_gives_the_same_result_for_any_batch(norm):
    images, labels = batch()
    attack, function = Square(0.1, 20, norm), Partial(linear, WEIGHTS)
    keys = example_keys(jax.random.key(3), 4)
    whole = attack(function, jax.random.key(3), images, labels)
    parts = [
        attack(function, keys[i : i + 2], images[i : i + 2], labels[i : i + 2]) for i in (0, 2)
    ]
    np.testing.assert_allclose(whole.images, jnp.concatenate([p.images for p in parts]), atol=1e-5)
    np.testing.assert_array_equal(whole.steps, jnp.concatenate([p.steps for p in parts]))


def test_no_gradient_is_needed():
    images, labels = batch()

    def step_function(weights, x):
        return jnp.round(20 * linear(weights, x))

    result = Square(0.3, 60)(Partial(step_function, WEIGHTS), jax.random.key(0), images, labels)
    assert result.success.all()


def test_bad_settings_and_input():
    with pytest.raises(ValueError, match="p is 0"):
        Square(0.1, p=0)
    with pytest.raises(ValueError, match="Square needs images"):
        Square(0.1)(
            lambda x: x[:, :2], jax.random.key(0), jnp.zeros((2, 9)), jnp.zeros(2, jnp.int32)
        )
