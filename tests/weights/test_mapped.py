"""Under pmap, shard_map and vmap: the same numbers as one device with the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_awp
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from numpy_awp import jax_loss

from awp_jax.weights import awp, random_value_and_grad, random_weight_perturbation, value_and_grad

DEVICES = 4


def mesh():
    return jax.make_mesh(
        (DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES]
    )


def by_shard_map(function, check_vma=True):
    """``function(params, x, y)`` whose results do not differ between devices."""
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh(),
            in_specs=(P(), P("data"), P("data")),
            out_specs=P(),
            check_vma=check_vma,
        )
    )


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _cut(x):
    return x.reshape(DEVICES, -1, *x.shape[1:])


def by_pmap(function):
    mapped = jax.pmap(
        function, axis_name="data", in_axes=(None, 0, 0), devices=jax.devices()[:DEVICES]
    )
    return lambda params, x, y: _first(mapped(params, _cut(x), _cut(y)))


def by_pmap_of_copies(function):
    mapped = jax.pmap(function, axis_name="data", devices=jax.devices()[:DEVICES])

    def call(params, x, y):
        copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), params)
        return _first(mapped(copies, _cut(x), _cut(y)))

    return call


def by_vmap(function):
    mapped = jax.vmap(function, axis_name="data", in_axes=(None, 0, 0))
    return lambda params, x, y: _first(mapped(params, _cut(x), _cut(y)))


WAYS = {
    "shard_map": by_shard_map,
    "shard_map unchecked": lambda function: by_shard_map(function, check_vma=False),
    "pmap": by_pmap,
    "pmap of copies": by_pmap_of_copies,
    "vmap": by_vmap,
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def problem(x64):
    (x,), (y,) = numpy_awp.batches(1)
    return jax.tree.map(jnp.asarray, numpy_awp.first_params()), jnp.asarray(x), jnp.asarray(y)


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


@every_way
@pytest.mark.parametrize("steps", [1, 3])
def test_value_and_grad(problem, way, steps):
    expected = value_and_grad(jax_loss, 0.1, steps=steps)(*problem)
    mapped = WAYS[way](value_and_grad(jax_loss, 0.1, steps=steps, axis_name="data"))
    assert_same(mapped(*problem), expected)


@every_way
def test_aux_stays_as_each_device_has_it(problem, way):
    def loss_fn(params, x, y):
        return jax_loss(params, x, y), x.mean()

    def function(params, x, y):
        (value, mean), grads = value_and_grad(loss_fn, 0.1, has_aux=True, axis_name="data")(
            params, x, y
        )
        return value, grads, jax.lax.pmean(mean, "data")

    value, grads, mean = WAYS[way](function)(*problem)
    assert_same((value, grads), value_and_grad(jax_loss, 0.1)(*problem))
    np.testing.assert_allclose(mean, problem[1].mean(), rtol=1e-12)


@every_way
def test_random_value_and_grad(problem, way):
    key = jax.random.key(0)
    expected = random_value_and_grad(jax_loss, 0.1)(key, *problem)
    function = random_value_and_grad(jax_loss, 0.1, axis_name="data")
    mapped = WAYS[way](lambda *args: function(key, *args))
    assert_same(mapped(*problem), expected)


OPTIMIZERS = {
    "awp": lambda: awp(optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, 0.9)), 0.1),
    "awp, 3 steps": lambda: awp(optax.sgd(0.1, 0.9), 0.1, steps=3),
    "random": lambda: random_weight_perturbation(optax.sgd(0.1), 0.1, jax.random.key(0)),
}


@every_way
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(problem, way, optimizer):
    tx = OPTIMIZERS[optimizer]()

    def two_steps(params, x, y, grad_fn):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
        return params

    def alone(params, x, y):
        return two_steps(params, x, y, lambda p: jax.grad(jax_loss)(p, x, y))

    def mapped(params, x, y):
        def grad_fn(p):
            # The mean of the whole batch, as every data-parallel loop takes it.
            if way != "vmap":
                p = jax.lax.pcast(p, "data", to="varying")
            return jax.lax.pmean(jax.grad(jax_loss)(p, x, y), "data")

        return two_steps(params, x, y, grad_fn)

    assert_same(WAYS[way](mapped)(*problem), jax.jit(alone)(*problem))


def test_sharded_batch_under_plain_jit(problem):
    params, x, y = problem
    expected = value_and_grad(jax_loss, 0.1)(params, x, y)
    placed = jax.device_put((x, y), jax.NamedSharding(mesh(), P("data")))
    assert_same(jax.jit(value_and_grad(jax_loss, 0.1))(params, *placed), expected)
