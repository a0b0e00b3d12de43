"""Losses of the adversary: by hand, and against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from awp_jax.attacks import cross_entropy, kl_divergence, largest_wrong, margin

EXTREME = jnp.array(
    [
        [1e4, -1e4, 0.0],
        [-1e4, 1e4, 0.0],
        [1e4, 1e4, 1e4],
        [-1e4, -1e4, -1e4],
        [0.0, 0.0, 0.0],
        [1e4, 1e4, -1e4],
    ]
)


@pytest.mark.core
def test_margin_by_hand():
    logits = jnp.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [3.0, 3.0, 0.0]])
    labels = jnp.array([1, 2, 0])
    np.testing.assert_array_equal(largest_wrong(logits, labels), [2, 4, 3])
    np.testing.assert_array_equal(margin(logits, labels), [-2, 2, 0])
    gradient = jax.grad(lambda z: margin(z, labels).sum())(logits)
    np.testing.assert_array_equal(gradient, [[0, -1, 1], [0, 1, -1], [-1, 1, 0]])


def test_cross_entropy_by_hand():
    # p = (1/4, 3/4)
    logits = jnp.array([[0.0, jnp.log(3.0)], [5.0, 5.0 + jnp.log(3.0)]])
    found = cross_entropy(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(found, [np.log(4), np.log(4 / 3)], rtol=1e-6)


def test_cross_entropy_equals_scipy(x64):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(5, 4)) * 10, random.integers(0, 4, 5)
    expected = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(5), labels]
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.core
def test_kl_equals_scipy(x64):
    random = np.random.default_rng(0)
    clean, adversarial = random.normal(size=(2, 5, 4)) * 3
    p, q = (scipy.special.softmax(z, axis=1) for z in (clean, adversarial))
    found = kl_divergence(jnp.asarray(clean), jnp.asarray(adversarial))
    np.testing.assert_allclose(found, scipy.special.rel_entr(p, q).sum(1), rtol=1e-12)


def test_kl_flows_through_both_arguments(x64):
    random = np.random.default_rng(0)
    clean, adversarial = random.normal(size=(2, 1, 3))
    p, q = (scipy.special.softmax(z) for z in (clean, adversarial))
    value = scipy.special.rel_entr(p, q).sum()
    for_clean, for_adversarial = jax.grad(lambda *z: kl_divergence(*z).sum(), (0, 1))(
        jnp.asarray(clean), jnp.asarray(adversarial)
    )
    np.testing.assert_allclose(for_adversarial, q - p, rtol=1e-12)
    np.testing.assert_allclose(for_clean, p * (np.log(p / q) - value), rtol=1e-12)


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_extreme_logits_give_finite_losses_and_gradients(dtype):
    with jax.enable_x64(dtype == "float64"):
        n = len(EXTREME)
        clean = jnp.repeat(EXTREME.astype(dtype), n, axis=0)
        adversarial = jnp.tile(EXTREME.astype(dtype), (n, 1))
        labels = jnp.tile(jnp.arange(3), len(clean) // 3)
        losses = {
            "kl": lambda a, b: kl_divergence(a, b),
            "cross-entropy": lambda a, b: cross_entropy(b, labels),
            "margin": lambda a, b: margin(b, labels),
        }
        for name, loss in losses.items():

            def total(a, b, loss=loss):
                return loss(a, b).sum(), loss(a, b)

            both = jax.jit(jax.grad(total, (0, 1), has_aux=True))
            gradients, values = both(clean, adversarial)
            for array in (*gradients, values):
                assert bool(jnp.isfinite(array).all()), name
        same = jax.jit(kl_divergence)(clean, clean)
        np.testing.assert_array_equal(np.asarray(same, np.float32), np.zeros(len(clean)))
