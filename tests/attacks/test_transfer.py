"""Transfer attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import PGD, transfer
from awp_jax.balls import input_norms


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def problem():
    weights = jax.random.normal(jax.random.key(7), (16, 3))
    images = 0.3 + 0.4 * jax.random.uniform(jax.random.key(0), (12, 4, 4, 1))
    return weights, images, linear(weights, images).argmax(1).astype(jnp.int32)


def test_the_same_model_is_a_white_box_attack_and_the_opposite_one_helps_nothing():
    weights, images, labels = problem()
    attack, key, target = PGD(0.3, 10), jax.random.key(0), Partial(linear, weights)
    white = attack(target, key, images, labels)
    same = transfer(attack, target, target, key, images, labels)
    np.testing.assert_array_equal(same.success, white.success)
    assert same.success.any()
    opposite = transfer(attack, Partial(linear, -weights), target, key, images, labels)
    assert opposite.success.sum() < same.success.sum()
    assert float(input_norms(same.images - images, "linf").max()) <= 0.3 + 1e-6


def test_clean_errors_of_the_target_count():
    weights, images, labels = problem()
    wrong = (labels + 1) % 3
    target = Partial(linear, weights)
    result = transfer(PGD(0.1, 5), target, target, jax.random.key(0), images, wrong)
    assert result.success.all()
    np.testing.assert_array_equal(result.images, images)


def test_bad_input():
    weights, images, labels = problem()
    surrogate, key = Partial(linear, weights), jax.random.key(0)
    with pytest.raises(ValueError, match="returns NaN"):
        transfer(PGD(), surrogate, Partial(linear, jnp.nan * weights), key, images, labels)
    with pytest.raises(ValueError, match="below 3"):
        transfer(PGD(), surrogate, surrogate, key, images, labels + 3)
