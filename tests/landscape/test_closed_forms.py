"""Flatness and curvature where the answer is known: quadratic and linear losses, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from landscape.quadratic import (
    apply_isotropic,
    apply_linear,
    isotropic_params,
    logits_with_loss,
)

from awp_jax.attacks import PGD
from awp_jax.balls import InputBall, WeightBall, everything
from awp_jax.landscape import (
    adversarial_directions,
    average_flatness,
    hessian_density,
    hessian_spectrum,
    hessian_trace,
    pac_bayes,
    perturbed_loss,
    robust_loss,
    surface,
    worst_case_flatness,
)

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("x64")]
ATTACK = PGD(0.1, steps=4, step_size=0.06)


def batch(n=5):
    images = np.random.default_rng(0).uniform(0.2, 0.8, (n, 2, 2, 1))
    return images, np.zeros(n, np.int32)


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_a_quadratic_loss(attack):
    """At the minimum of a sphere every nu costs sum_l a_l xi^2 ||w_l||^2 / 2."""
    images, labels = batch()
    params, key = isotropic_params(jnp.float64), jax.random.key(0)
    level = 1 + images.mean() + (0 if attack is None else 0.1)
    reference = robust_loss(apply_isotropic, params, images, labels, key, attack=attack, restarts=2)
    np.testing.assert_allclose(reference.loss, level, rtol=1e-12)

    xi = 0.3
    known = level * (2 * (xi * 5) ** 2 + 10 * (xi * 3) ** 2) / 2
    average = average_flatness(
        apply_isotropic, params, images, labels, key, attack=attack, xi=xi, draws=2, batch_size=3
    )
    np.testing.assert_allclose(average.flatness, known, rtol=1e-10)
    np.testing.assert_allclose(average.draws, level + known, rtol=1e-10)
    # From anywhere inside the ball, ascent goes straight out.
    worst = worst_case_flatness(
        apply_isotropic,
        params,
        images,
        labels,
        key,
        attack=attack,
        xi=xi,
        weight_step=0.1,
        steps=6,
        restarts=2,
        batch_size=3,
    )
    np.testing.assert_allclose(worst.flatness, known, rtol=1e-10)
    np.testing.assert_allclose(worst.per_batch, known, rtol=1e-10)
    np.testing.assert_allclose(worst.restarts, level + known, rtol=1e-10)


def apply_ellipsoid(matrix, params, images):
    away = params["kernel"].ravel() - jnp.arange(1.0, 5.0)
    return logits_with_loss((1 + away @ matrix @ away / 2) * jnp.ones(len(images)))


def test_an_ellipsoid():
    """Worst case: xi^2 ||w||^2 lambda_max / 2; top eigenvalues: those of the matrix."""
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    matrix = rotation @ np.diag([12.0, 1.0, 0.5, -3.0]) @ rotation.T
    images, labels = batch(3)
    params = {"kernel": jnp.arange(1.0, 5.0).reshape(4, 1)}
    apply_fn, key = Partial(apply_ellipsoid, jnp.asarray(matrix)), jax.random.key(3)
    worst = worst_case_flatness(
        apply_fn,
        params,
        images,
        labels,
        key,
        attack=None,
        xi=0.02,
        weight_step=0.1,
        steps=20,
        restarts=2,
    )
    np.testing.assert_allclose(worst.flatness, 0.02**2 * 30 * 12 / 2, rtol=1e-9)
    found = hessian_spectrum(
        apply_fn, params, images, labels, key, count=3, attack=None, batch_size=2
    )
    np.testing.assert_allclose(found.eigenvalues, [12, 1, 0.5], rtol=1e-9)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix)[:0:-1], rtol=1e-9)
    assert (found.residuals < 1e-8).all()
    for which, expected in (("smallest", [-3, 0.5]), ("magnitude", [12, -3])):
        ends = hessian_spectrum(
            apply_fn, params, images, labels, key, count=2, which=which, attack=None
        )
        np.testing.assert_allclose(ends.eigenvalues, expected, rtol=1e-9)
    one = hessian_spectrum(
        apply_fn, params, images, labels, key, attack=None, layers={"kernel": True}
    )
    np.testing.assert_allclose(one.eigenvalues, [12], rtol=1e-6)


def test_a_linear_loss_per_batch_and_shared():
    """The best nu follows the mean gradient: of the batch, or of all images where it is shared."""
    images, labels = batch(5)
    params = {"kernel": jnp.asarray([[1.0], [-1.0], [1.0], [1.0]])}
    rows, xi = images.reshape(5, 4), 0.01

    def worst(**changes):
        return worst_case_flatness(
            apply_linear,
            params,
            images,
            labels,
            jax.random.key(1),
            attack=None,
            ball=WeightBall(xi, mask=everything),
            restarts=2,
            weight_step=0.1,
            steps=15,
            **changes,
        ).flatness

    per_batch = (3 * np.linalg.norm(rows[:3].mean(0)) + 2 * np.linalg.norm(rows[3:].mean(0))) / 5
    np.testing.assert_allclose(worst(batch_size=3), xi * 2 * per_batch, rtol=1e-9)
    shared = xi * 2 * np.linalg.norm(rows.mean(0))
    for size in (2, 5):
        found = worst(batch_size=size, shared_across_batches=True)
        np.testing.assert_allclose(found, shared, rtol=1e-9)
    np.testing.assert_allclose(worst(batch_size=8), shared, rtol=1e-9)


def test_growing_gamma_of_a_linear_loss():
    """AWP gains gamma ||w|| ||g||; a random direction with angle theta cos(theta) of it."""
    images, labels = batch(5)
    params = {"kernel": jnp.asarray([[1.0], [-1.0], [1.0], [1.0]])}
    gammas, key = (0.0, 0.1, 0.5), jax.random.key(4)
    found = perturbed_loss(
        apply_linear, params, images, labels, key, gammas=gammas, draws=2, attack=None, batch_size=3
    )
    rows = images.reshape(5, 4)
    base = 5 + (rows @ np.asarray(params["kernel"])).mean()
    slope = 2 * np.linalg.norm(rows.mean(0))
    np.testing.assert_allclose(found.adversarial, base + slope * np.asarray(gammas), rtol=1e-10)
    np.testing.assert_allclose(found.random[0], base, rtol=1e-12)
    # One direction per draw, for all gammas: the loss is linear in gamma.
    np.testing.assert_allclose(found.random[2] - base, 5 * (found.random[1] - base), rtol=1e-8)
    assert (np.abs(found.random[2] - base) < 0.5 * slope).all()
    assert not np.allclose(found.random[2, 0], found.random[2, 1])
    reference = robust_loss(apply_linear, params, images, labels, key, attack=None)
    assert found.adversarial[0] == reference.single


def curved():
    """``(apply_fn, params, images, labels)``, and the Hessian of their robust loss by JAX."""
    generator = np.random.default_rng(5)
    images, labels = generator.uniform(size=(6, 2, 2, 1)), generator.integers(0, 3, 6)
    params = {
        "a": {"kernel": jnp.asarray(generator.normal(size=(4, 4))), "bias": jnp.zeros(4)},
        "b": {"kernel": jnp.asarray(generator.normal(size=(4, 3))), "bias": jnp.ones(3)},
    }

    def apply_fn(params, images):
        hidden = images.reshape(len(images), 4) @ params["a"]["kernel"] + params["a"]["bias"][None]
        return jnp.tanh(hidden) @ params["b"]["kernel"] + params["b"]["bias"][None]

    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.fold_in(jax.random.key(2), 0), jnp.arange(6)
    )
    attacked = ATTACK(lambda x: apply_fn(params, x), keys, jnp.asarray(images), labels).images
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def loss(flat):
        logits = apply_fn(unravel(flat), attacked)
        return -jax.nn.log_softmax(logits)[jnp.arange(6), labels].mean()

    return (apply_fn, params, images, labels), np.asarray(jax.jit(jax.hessian(loss))(flat))


def test_the_hessian_of_a_robust_loss_against_jax_hessian():
    problem, hessian = curved()
    found = hessian_spectrum(*problem, jax.random.key(2), count=4, attack=ATTACK, batch_size=4)
    exact = np.linalg.eigvalsh(hessian)[::-1]
    np.testing.assert_allclose(found.eigenvalues, exact[:4], rtol=1e-6)


def test_the_trace_is_that_of_jax_hessian():
    problem, hessian = curved()
    found = hessian_trace(*problem, jax.random.key(2), draws=300, attack=ATTACK, batch_size=4)
    assert found.size == len(hessian) and found.draws.shape == (300,)
    # Of signs, the variance of z^T H z is twice the sum of squares beside the diagonal.
    beside = hessian - np.diag(np.diag(hessian))
    deviation = np.sqrt(2 * (beside**2).sum())
    np.testing.assert_allclose(found.draws.std(), deviation, rtol=0.15)
    np.testing.assert_allclose(found.error, deviation / np.sqrt(300), rtol=0.15)
    assert abs(found.trace - np.trace(hessian)) < 4 * found.error
    with pytest.raises(ValueError, match="draws"):
        hessian_trace(*problem, jax.random.key(2), draws=0)


def test_the_spectral_density_is_that_of_jax_hessian():
    problem, hessian = curved()
    exact = np.linalg.eigvalsh(hessian)
    settings = {"attack": ATTACK, "batch_size": 4}
    found = hessian_density(*problem, jax.random.key(2), draws=60, steps=100, **settings)
    assert found.nodes.shape == found.weights.shape == (60, len(exact))  # there are no more
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-9)
    # With as many steps as the start holds eigenvectors, the nodes are the eigenvalues.
    real = found.nodes[found.weights > 1e-6]
    assert np.abs(real[:, None] - exact).min(1).max() < 1e-7 * exact.max()
    for power in (1, 2, 3):
        moments = (found.weights * found.nodes**power).sum(1)
        error = moments.std() / np.sqrt(60)
        assert abs(moments.mean() - (exact**power).mean()) < 4 * error
        assert power != 2 or 4 * error < (exact**2).mean()
    # A quadrature of m nodes knows all moments up to 2 m - 1 of its start.
    few = hessian_density(*problem, jax.random.key(2), draws=3, steps=4, **settings)
    for power in range(8):
        moments = (found.weights[:3] * found.nodes[:3] ** power).sum(1)
        np.testing.assert_allclose((few.weights * few.nodes**power).sum(1), moments, rtol=1e-6)
    points, width = np.linspace(-2, 2, 4001) * exact.max(), 0.01 * exact.max()
    density = found.density(points, width)
    assert np.trapezoid(density, points) == pytest.approx(1, rel=1e-6)
    with pytest.raises(ValueError, match="width is 0"):
        found.density(points, 0)
    with pytest.raises(ValueError, match="steps"):
        hessian_density(*problem, jax.random.key(2), steps=0)


def test_bounds_are_those_of_the_attack_s_ball():
    """Standardised inputs lie outside [0, 1]."""

    def apply_fn(params, images):
        return images.reshape(len(images), -1) @ params["kernel"]

    params = {"kernel": jnp.array([[1.0, -1.0]] * 4)}
    images, labels = jnp.full((3, 2, 2, 1), -1.5), jnp.array([0, 1, 0])
    attack = PGD(ball=InputBall("linf", 0.1, low=-2.0, high=2.0), steps=2, step_size=0.1)
    common, key = (apply_fn, params, images, labels), jax.random.key(0)
    hessian_spectrum(*common, key, attack=attack, count=1)
    pac_bayes(*common, key, attack=attack, draws=1, alphas=[0.1])
    perturbed_loss(*common, key, attack=attack, draws=1, gammas=[0.1])
    ways = adversarial_directions(apply_fn, params, key, images, labels, attack)
    at_centre = {"axes": [[0.0]], "attack": attack, "key": key}
    found = surface(apply_fn, params, ways, images, labels, **at_centre)
    # The margin of class 0 is 8 * (-1.5 -+ 0.1).
    worst = jnp.logaddexp(0.0, jnp.array([12.8, -11.2, 12.8])).mean()
    np.testing.assert_allclose(found.loss, [worst], rtol=1e-6)
    with pytest.raises(ValueError, match="-2"):
        surface(apply_fn, params, ways, images - 1, labels, **at_centre)
