"""The feature attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from digits_network import features
from jax.tree_util import Partial

from awp_jax.attacks import FeatureAttack
from awp_jax.attacks._feature import cosine_distance
from awp_jax.balls import input_norms
from awp_jax.random import example_keys


def test_cosine_distance_by_hand():
    first = jnp.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    second = jnp.array([[0.0, 2.0], [6.0, 8.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosine_distance(first, second), [1, 0, 1], atol=1e-6)
    gradient = jax.grad(lambda x: cosine_distance(x, second).sum())(first)
    assert bool(jnp.isfinite(gradient).all())


def test_breaks_some_images_and_depends_on_no_batch(digits):
    images, labels = digits.images[:48], digits.labels[:48]
    attack = FeatureAttack(
        Partial(features, digits.params),
        0.25,
        steps=10,
        step_size=0.05,
        restarts=2,
        pool=(digits.images[48:96], digits.labels[48:96]),
    )
    result = attack(digits.logits_fn, jax.random.key(0), images, labels)
    clean = digits.logits_fn(images).argmax(1) != labels
    assert result.success.sum() > clean.sum() + 5
    assert float(input_norms(result.images - images, "linf").max()) <= 0.25 + 1e-6
    keys = example_keys(jax.random.key(0), 48)
    half = attack(digits.logits_fn, keys[24:], images[24:], labels[24:])
    np.testing.assert_array_equal(half.success, result.success[24:])


def test_bad_input(digits):
    with pytest.raises(ValueError, match="features_fn is 3"):
        FeatureAttack(3)
    attack = FeatureAttack(Partial(features, digits.params), 0.1, steps=1)
    with pytest.raises(ValueError, match="no image of another class"):
        attack(digits.logits_fn, jax.random.key(0), digits.images[:2], jnp.full(2, 1, jnp.int32))
