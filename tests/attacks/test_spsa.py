"""SPSA: the estimate, and attacks without gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import SPSA
from awp_jax.balls import input_norms
from awp_jax.random import example_keys

WEIGHTS = jax.random.normal(jax.random.key(7), (16, 2))


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def rounded(weights, images):
    """Logits without a gradient."""
    return jnp.round(1000 * linear(weights, images))


def batch(count=3):
    images = 0.3 + 0.4 * jax.random.uniform(jax.random.key(0), (count, 4, 4, 1))
    return images, linear(WEIGHTS, images).argmax(1).astype(jnp.int32)


def test_the_estimate_approaches_the_gradient():
    images, _ = batch()
    attack = SPSA(0.1, samples=4000, samples_per_pass=1000, delta=0.01)
    keys, labels = example_keys(jax.random.key(1), 3), jnp.zeros(3, jnp.int32)
    estimate = attack.gradient(Partial(linear, WEIGHTS), keys, images, labels).reshape(3, -1)
    exact = WEIGHTS[:, 1] - WEIGHTS[:, 0]
    cosine = estimate @ exact / jnp.linalg.norm(estimate, axis=1) / jnp.linalg.norm(exact)
    assert float(cosine.min()) > 0.99
    np.testing.assert_allclose(jnp.linalg.norm(estimate, axis=1), jnp.linalg.norm(exact), rtol=0.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_breaks_a_model_without_gradients(norm):
    images, labels = batch()
    attack = SPSA(0.9, 40, norm, samples=32, delta=0.01, learning_rate=0.05)
    function = Partial(rounded, WEIGHTS)
    result = attack(function, jax.random.key(0), images, labels)
    assert result.success.all() and (result.steps >= 1).all()
    assert float(input_norms(result.images - images, norm).max()) <= 0.9 + 1e-6
    keys = example_keys(jax.random.key(0), 3)
    part = attack(function, keys[1:], images[1:], labels[1:])
    np.testing.assert_allclose(part.images, result.images[1:], atol=1e-5)


@pytest.mark.parametrize("bad", [{"samples": 3}, {"samples_per_pass": 5}, {"delta": 0}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SPSA(0.1, **bad)
