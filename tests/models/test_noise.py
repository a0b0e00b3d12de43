"""Parametric noise injection: law, gradients, who needs a key, what AWP leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax import models
from awp_jax.weights import perturb

IMAGES = jax.random.uniform(jax.random.key(1), (4, 3, 3, 1))


@pytest.fixture(scope="module")
def noisy():
    plain = models.create("mlp", image_shape=(3, 3, 1), num_classes=3, width=5, depth=1)
    classifier = models.with_parametric_noise(plain)
    params, batch_stats = classifier.init(jax.random.key(0))
    return plain, classifier, params, batch_stats


@pytest.mark.core
def test_the_law_of_the_noise():
    generator = np.random.default_rng(0)
    kernels = {
        "conv": jnp.asarray(generator.normal(3.0, 0.5, (3, 3, 2, 4)), jnp.float32),
        "dense": jnp.asarray(generator.normal(0.0, 2.0, (20, 10)), jnp.float32),
    }
    network = {name: {"kernel": k, "bias": jnp.ones(k.shape[-1:])} for name, k in kernels.items()}
    alphas = {"conv": {"kernel": jnp.float32(0.25)}, "dense": {"kernel": jnp.float32(-0.5)}}
    many = jax.vmap(lambda key: models.noisy_kernels(network, alphas, key))
    drawn = many(jax.random.split(jax.random.key(0), 2000))
    assert drawn["conv"]["bias"].shape == (2000, 4) and bool((drawn["conv"]["bias"] == 1).all())
    standard = {}
    for name, kernel in kernels.items():
        noise = np.asarray(drawn[name]["kernel"], np.float64) - np.asarray(kernel)
        deviation = abs(float(alphas[name]["kernel"])) * np.asarray(kernel, np.float64).std()
        count = noise.size
        assert abs(noise.mean()) < 5 * deviation / np.sqrt(count)
        assert noise.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * count))
        standard[name] = noise.reshape(2000, -1)[:, :8] / deviation
    both = np.corrcoef(np.concatenate(list(standard.values()), axis=1).T) - np.eye(16)
    assert np.abs(both).max() < 5 / np.sqrt(2000)  # entries and layers are independent


@pytest.mark.core
def test_kernels_get_an_alpha_of_a_quarter_and_gradients_by_hand(noisy):
    _, classifier, params, batch_stats = noisy
    expected = {"hidden": {"0": {"kernel": 0.25}}, "linear": {"kernel": 0.25}}
    assert jax.tree.map(float, params["noise"]) == expected
    key = jax.random.key(3)

    def total(p):
        return classifier.apply(p, batch_stats, IMAGES, mode="running", key=key)[0][:, 0].sum()

    gradient = jax.grad(total)(params)
    assert all(float(abs(g)) > 0 for g in jax.tree.leaves(gradient["noise"]))
    # The last layer is linear: with w' = w + alpha * std * n, the gradient in alpha is that in w
    # (the deviation is a constant) times std * n, summed.
    fold = jax.random.fold_in(key, 0x504E49)
    seen = models.noisy_kernels(params["network"], params["noise"], fold)["linear"]["kernel"]
    kernel = params["network"]["linear"]["kernel"]
    by_hand = jnp.sum(gradient["network"]["linear"]["kernel"] * (seen - kernel) / 0.25)
    np.testing.assert_allclose(gradient["noise"]["linear"]["kernel"], by_hand, rtol=1e-4)


def test_awp_perturbs_kernels_and_leaves_alpha_alone(noisy):
    *_, params, _ = noisy
    v = perturb(params, jax.tree.map(jnp.ones_like, params), gamma=0.01)
    assert all(float(abs(leaf)) == 0 for leaf in jax.tree.leaves(v["noise"]))
    assert float(jnp.abs(v["network"]["linear"]["kernel"]).max()) > 0


@pytest.mark.core
def test_one_draw_serves_the_batch_in_every_mode_and_a_key_is_needed(noisy):
    plain, classifier, params, batch_stats = noisy
    logits_fn = classifier.logits_fn(params, batch_stats)
    first, second = logits_fn(IMAGES, jax.random.key(0)), logits_fn(IMAGES, jax.random.key(1))
    assert float(jnp.abs(first - second).max()) > 1e-3
    np.testing.assert_array_equal(first, logits_fn(IMAGES, jax.random.key(0)))
    np.testing.assert_allclose(first[2:], logits_fn(IMAGES[2:], jax.random.key(0)), atol=1e-6)
    np.testing.assert_allclose(first, jax.jit(logits_fn)(IMAGES, jax.random.key(0)), atol=1e-6)
    silent = {**params, "noise": jax.tree.map(jnp.zeros_like, params["noise"])}
    clean = plain.logits_fn(params["network"], batch_stats)(IMAGES)
    quiet = classifier.logits_fn(silent, batch_stats)(IMAGES, jax.random.key(0))
    np.testing.assert_allclose(quiet, clean, atol=1e-6)
    for mode in ("running", "batch", "update"):
        with pytest.raises(ValueError, match="every pass needs a key"):
            classifier.apply(params, batch_stats, IMAGES, mode=mode)
    with pytest.raises(ValueError, match="give one key, not 4"):
        keys = jax.random.split(jax.random.key(0), 4)
        classifier.apply(params, batch_stats, IMAGES, mode="running", key=keys)


def test_bad_input(noisy):
    _, classifier, *_ = noisy
    with pytest.raises(ValueError, match="randomised model already"):
        models.with_parametric_noise(classifier)
    with pytest.raises(ValueError, match="alpha is nan"):
        models.with_parametric_noise(noisy[0], float("nan"))
