"""``value_and_grad`` behaves as ``jax.value_and_grad``, at w + v."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpy_awp
import pytest
from numpy_awp import jax_loss

from awp_jax.balls import WeightBall
from awp_jax.weights import random_displacement, random_value_and_grad, value_and_grad


@pytest.fixture
def problem(x64):
    (x,), (y,) = numpy_awp.batches(1)
    return jax.tree.map(jnp.asarray, numpy_awp.first_params()), jnp.asarray(x), jnp.asarray(y)


def expected_at(params, x, y, **options):
    params = {name: np.asarray(leaf) for name, leaf in params.items()}
    moved = numpy_awp.add(params, numpy_awp.displacement(params, x, y, **options))
    residual = x @ moved["kernel"] + moved["bias"] - y
    return 0.5 * np.mean(np.sum(residual**2, axis=1)), numpy_awp.gradient(moved, x, y)


def assert_same(found, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, expected)


@pytest.mark.core
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("size", ["l2", "l1"])
@pytest.mark.parametrize("jitted", [False, True])
def test_value_and_gradient_come_from_the_perturbed_point(problem, steps, size, jitted):
    params, x, y = problem
    function = value_and_grad(jax_loss, ball=WeightBall(0.1, size=size), steps=steps)
    found = (jax.jit(function) if jitted else function)(params, x, y)
    expected = expected_at(params, np.asarray(x), np.asarray(y), steps=steps, size=size)
    assert_same(found, expected)


@pytest.mark.core
def test_gamma_zero_is_jax_value_and_grad(problem):
    assert_same(value_and_grad(jax_loss, 0.0)(*problem), jax.value_and_grad(jax_loss)(*problem))


def test_aux_comes_from_the_perturbed_point_only(problem):
    params, x, y = problem
    seen = []

    def loss_fn(p, x, y):
        seen.append(1)
        return jax_loss(p, x, y), {"kernel": p["kernel"]}

    (value, aux), grads = value_and_grad(loss_fn, 0.1, has_aux=True)(params, x, y)
    assert_same((value, grads), expected_at(params, np.asarray(x), np.asarray(y)))
    moved = numpy_awp.displacement(
        {name: np.asarray(leaf) for name, leaf in params.items()}, np.asarray(x), np.asarray(y)
    )
    np.testing.assert_allclose(aux["kernel"], params["kernel"] + moved["kernel"], rtol=1e-12)
    assert len(seen) == 2


def test_argnums_and_keywords(problem):
    params, x, y = problem
    expected = value_and_grad(jax_loss, 0.1)(params, x, y)
    assert_same(
        value_and_grad(lambda x, y, p: jax_loss(p, x, y), 0.1, argnums=2)(x, y, params), expected
    )
    assert_same(
        value_and_grad(lambda x, y, p: jax_loss(p, x, y), 0.1, argnums=-1)(x, y, params), expected
    )
    assert_same(value_and_grad(jax_loss, 0.1)(params, y=y, x=x), expected)


def test_several_argnums_give_a_tuple(problem):
    params, x, y = problem

    def loss_fn(kernel, x, bias, y):
        return jax_loss({"kernel": kernel, "bias": bias}, x, y)

    arguments = params["kernel"], x, params["bias"], y
    value, grads = value_and_grad(loss_fn, 0.1, argnums=(0, 2))(*arguments)
    one_value, one = value_and_grad(jax_loss, 0.1)(params, x, y)
    assert_same((value, grads), (one_value, (one["kernel"], one["bias"])))


def test_wrong_calls_say_so(problem):
    params, x, y = problem
    with pytest.raises(ValueError, match="argnums is 3, but the function got 3 positional"):
        value_and_grad(jax_loss, 0.1, argnums=3)(params, x, y)
    with pytest.raises(ValueError, match="argnums is 0, but the function got 0 positional"):
        value_and_grad(jax_loss, 0.1)(params=params, x=x, y=y)
    with pytest.raises(ValueError, match="gamma is -1"):
        value_and_grad(jax_loss, -1)
    with pytest.raises(ValueError, match="steps is 0"):
        value_and_grad(jax_loss, 0.1, steps=0)(params, x, y)
    with pytest.raises(TypeError, match="scalar"):
        value_and_grad(lambda p: p["bias"], 0.1)(params)
    with pytest.raises(ValueError, match="tuple of 2, but a scalar .* give has_aux=True"):
        value_and_grad(lambda p: (p["bias"].sum(), 1), 0.1)(params)
    with pytest.raises(ValueError, match=r"with has_aux=True a pair \(loss, aux\) was expected"):
        jax.jit(value_and_grad(lambda p: p["bias"].sum(), 0.1, has_aux=True))(params)


def test_keeps_name_and_signature():
    function = value_and_grad(jax_loss, 0.1)
    assert function.__name__ == "jax_loss"
    assert inspect.signature(function) == inspect.signature(jax_loss)
    value_and_grad(functools.partial(jax_loss, y=0), 0.1)  # has no name of its own


def test_static_arguments_by_name(problem):
    params, x, y = problem

    def loss_fn(p, x, kind):
        assert kind == "sum"
        return jnp.sum(x @ p["kernel"])

    jax.jit(value_and_grad(loss_fn, 0.1), static_argnames="kind")(params, x, kind="sum")
    function = jax.jit(random_value_and_grad(loss_fn, 0.1), static_argnames="kind")
    function(jax.random.key(0), params, x, kind="sum")


def test_gamma_may_be_traced(problem):
    params, x, y = problem
    found = jax.jit(lambda gamma: value_and_grad(jax_loss, gamma)(params, x, y))(0.1)
    assert_same(found, expected_at(params, np.asarray(x), np.asarray(y)))


def test_a_vmapped_ensemble(problem):
    params, x, y = problem
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    found = jax.vmap(value_and_grad(jax_loss, 0.1), (0, None, None))(members, x, y)
    for index in range(2):
        member = jax.tree.map(lambda leaf, i=index: leaf[i], members)
        expected = expected_at(member, np.asarray(x), np.asarray(y))
        assert_same(jax.tree.map(lambda leaf, i=index: leaf[i], found), expected)


def test_no_tracer_leaks(problem):
    for steps in (1, 2):
        with jax.checking_leaks():
            jax.jit(value_and_grad(jax_loss, 0.1, steps=steps))(*problem)


def test_compiled_once(problem):
    params, x, y = problem
    traces = []

    def loss_fn(p, x, y):
        traces.append(1)
        return jax_loss(p, x, y)

    function = jax.jit(value_and_grad(loss_fn, 0.1))
    function(params, x, y)
    first = len(traces)
    function(jax.tree.map(lambda leaf: leaf + 1, params), y @ y.T @ x, y)
    assert len(traces) == first == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_have_the_dtype_of_the_parameters(dtype):
    params = {"kernel": jnp.ones((3, 2), dtype), "bias": jnp.ones(2, dtype)}
    x = jnp.ones((2, 3), dtype)
    _, grads = value_and_grad(jax_loss, 0.1)(params, x, jnp.zeros((2, 2), dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}


def test_zero_loss_gives_no_nan():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    value, grads = value_and_grad(lambda p: 0.0 * p["kernel"].sum(), 0.1)(params)
    assert float(value) == 0.0
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads))


def test_random_value_and_grad(problem):
    params, x, y = problem
    key = jax.random.key(3)
    found = jax.jit(random_value_and_grad(jax_loss, 0.1))(key, params, x, y)
    v = random_displacement(params, key, 0.1)
    np.testing.assert_allclose(
        np.linalg.norm(v["kernel"]), 0.1 * np.linalg.norm(params["kernel"]), rtol=1e-12
    )
    moved = {name: np.asarray(params[name] + v[name]) for name in params}
    expected = numpy_awp.gradient(moved, np.asarray(x), np.asarray(y))
    assert_same(found[1], expected)
    (value, aux), grads = random_value_and_grad(
        lambda x, p: (jax_loss(p, x, y), p["bias"]), 0.1, argnums=1, has_aux=True
    )(key, x, params)
    assert_same((value, grads), found)
    np.testing.assert_array_equal(aux, params["bias"])
