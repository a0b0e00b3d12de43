"""The perturbation itself: closed forms of linear and quadratic losses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_awp
import pytest

from awp_jax.balls import WeightBall
from awp_jax.weights import adversarial_displacement, perturb, random_displacement

W = np.array([[3.0, 0.0], [0.0, 4.0]])  # Frobenius norm 5, L1 norm 7
PARAMS = {"bias": jnp.array([1.0, 1.0]), "kernel": jnp.array(W)}


def test_perturb_starts_from_a_displacement_and_projects():
    grads = {"bias": jnp.ones(2), "kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]])}
    start = {"bias": jnp.zeros(2), "kernel": jnp.array([[0.5, 0.0], [0.0, 0.0]])}
    found = perturb(PARAMS, grads, 0.1, displacement=start)
    half = 0.5 / np.sqrt(2)
    np.testing.assert_allclose(found["kernel"], [[half, half], [0, 0]], rtol=1e-6)
    small = perturb(PARAMS, grads, 0.1, step_size=0.01)
    np.testing.assert_allclose(small["kernel"], [[0, 0.05], [0, 0]], rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("size", ["l2", "l1"])
def test_optimum_of_a_linear_loss(steps, size):
    # Every step goes the same way, so K2 steps of gamma / K2 end on the boundary.
    slope = np.array([[1.0, -2.0], [2.0, 0.0]])
    grad_fn = jax.grad(lambda p: jnp.sum(p["kernel"] * slope) + p["bias"].sum())
    found = adversarial_displacement(PARAMS, grad_fn, WeightBall(0.1, size=size), steps=steps)
    expected = 0.1 * (5 * slope / 3 if size == "l2" else 7 * slope / 5)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["bias"], [0, 0])
    value = np.sum(np.asarray(found["kernel"]) * slope)
    if size == "l2":  # epsilon ||w|| ||slope||: no point of the ball is higher
        np.testing.assert_allclose(value, 0.1 * 5 * 3, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_round_quadratic_grows_the_weights(steps):
    grad_fn = jax.grad(lambda p: 3.5 * jnp.sum(p["kernel"] ** 2))
    found = adversarial_displacement(PARAMS, grad_fn, "0.1", steps=steps)
    np.testing.assert_allclose(found["kernel"], 0.1 * W, rtol=1e-5)


def test_quadratic_in_closed_form(x64):
    # L = 1/2 (a w1^2 + b w2^2) in w = (3, 4): gradient (3a, 4b).
    params = {"kernel": jnp.array([[3.0, 4.0]])}
    curvature = np.array([[8.0, 1.0]])
    grad_fn = jax.grad(lambda p: 0.5 * jnp.sum(curvature * p["kernel"] ** 2))
    one = adversarial_displacement(params, grad_fn, 0.1)["kernel"]
    np.testing.assert_allclose(one, 0.1 * 5 * np.array([[24, 4]]) / np.sqrt(592), rtol=1e-12)
    # Many steps find the maximum on the sphere: (curvature - m) v = -curvature w.
    many = np.asarray(
        adversarial_displacement(params, grad_fn, 0.1, steps=400, step_size=0.01)["kernel"]
    )
    multiplier = (curvature * (W.sum(0) + many)) / many
    np.testing.assert_allclose(np.linalg.norm(many), 0.5, rtol=1e-9)
    np.testing.assert_allclose(multiplier[0, 0], multiplier[0, 1], rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("size", ["l2", "l1"])
def test_equals_the_numpy_implementation(steps, size, x64):
    (x,), (y,) = numpy_awp.batches(1)
    params = numpy_awp.first_params()
    found = adversarial_displacement(
        jax.tree.map(jnp.asarray, params),
        lambda p: jax.grad(numpy_awp.jax_loss)(p, x, y),
        WeightBall(0.1, size=size),
        steps=steps,
    )
    expected = numpy_awp.displacement(params, x, y, gamma=0.1, steps=steps, size=size)
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-12)
    np.testing.assert_array_equal(found["bias"], [0, 0])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_known_first_gradient_saves_a_call(steps):
    calls = []

    def grad_fn(params):
        calls.append(params)
        return jax.grad(lambda p: jnp.sum(p["kernel"] ** 3) + p["bias"].sum())(params)

    def run(**options):
        calls.clear()
        return adversarial_displacement(PARAMS, grad_fn, 0.1, steps=steps, **options)["kernel"]

    expected = run()
    assert len(calls) == 1  # the body of the loop is traced once
    known = grad_fn(PARAMS)
    np.testing.assert_allclose(run(first_gradient=known), expected, rtol=1e-5)
    assert len(calls) == (0 if steps == 1 else 1)


def test_one_step_outside_jit_sees_concrete_arrays():
    def grad_fn(params):
        assert float(params["kernel"][0, 0]) == 3.0  # a tracer would raise
        return params

    adversarial_displacement(PARAMS, grad_fn, 0.1)


def test_zero_gradient_gives_zero():
    for steps in (1, 3):
        found = adversarial_displacement(
            PARAMS, lambda p: jax.tree.map(jnp.zeros_like, p), 0.1, steps=steps
        )
        for leaf in jax.tree.leaves(found):
            np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_random_displacement():
    found = random_displacement(PARAMS, jax.random.key(0), 0.1)
    np.testing.assert_allclose(np.linalg.norm(found["kernel"]), 0.5, rtol=1e-5)
    np.testing.assert_array_equal(found["bias"], [0, 0])
    again = random_displacement(PARAMS, jax.random.key(0), 0.1)
    np.testing.assert_array_equal(found["kernel"], again["kernel"])


def test_bad_arguments():
    def grad_fn(params):
        return params

    with pytest.raises(ValueError, match="steps is 0"):
        adversarial_displacement(PARAMS, grad_fn, 0.1, steps=0)
    with pytest.raises(ValueError, match="gamma is -0.1"):
        adversarial_displacement(PARAMS, grad_fn, -0.1)
    with pytest.raises(ValueError, match="gamma is 'much'"):
        perturb(PARAMS, PARAMS, "much")
    with pytest.warns(UserWarning, match="gamma is 5, above 1"):
        perturb(PARAMS, PARAMS, 5)
    with pytest.raises(ValueError, match="typed key"):
        random_displacement(PARAMS, 0, 0.1)
