"""RWP against an independent PyTorch implementation, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType, PartitionSpec
from jax.tree_util import Partial
from torch_rwp import kernels_of, network, params_of
from torch_rwp import rwp as torch_rwp

from awp_jax.attacks import cross_entropy, kl_divergence
from awp_jax.balls import WeightBall
from awp_jax.weights import (
    adversarial_displacement,
    awp,
    loss_range_gradient,
    robust_displacement,
    robust_value_and_grad,
    rwp,
)

GAMMA, BATCH = 0.2, 16


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, 6))
    adversarial = images + 0.3 * random.normal(size=images.shape)
    return images, adversarial, random.integers(0, 4, BATCH)


def logits(params, x):
    for place in range(len(params)):
        layer = params[str(place)]
        x = x @ layer["kernel"] + layer["bias"][None]
        x = jnp.tanh(x) if place < len(params) - 1 else x
    return x


def losses_fn(images, adversarial, labels, params, trades=False):
    attacked = logits(params, adversarial)
    entropy = cross_entropy(attacked, labels)
    if not trades:
        return entropy
    clean = logits(params, images)
    return cross_entropy(clean, labels) + 6.0 * kl_divergence(clean, attacked), entropy


@pytest.mark.parametrize("objective", ["at", "trades"])
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("traced", [False, True])
def test_v_is_that_of_pytorch(x64, data, objective, steps, traced):
    net = network()
    entropy = np.asarray(losses_fn(*data, params_of(net)))
    c_min = float(np.quantile(entropy, 0.6))
    arrays = [torch.tensor(a) for a in data]
    reference, selected = torch_rwp(
        net, *arrays, objective=objective, gamma=GAMMA, c_min=c_min, steps=steps
    )
    # The masks are no formality: some are left out, and they change on the way.
    assert 0 < selected[0] < BATCH and (steps == 1 or len(set(selected)) > 1)

    def displace(params):
        return robust_displacement(
            params,
            lambda p: losses_fn(*map(jnp.asarray, data), p, trades=objective == "trades"),
            GAMMA,
            c_min=c_min,
            steps=steps,
        )

    v = (jax.jit(displace) if traced else displace)(jax.tree.map(jnp.asarray, params_of(net)))
    for mine, theirs in zip(kernels_of(v), reference, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-9, atol=1e-12)
    assert not any(np.any(layer["bias"]) for layer in v.values())


def test_all_examples_one_step_leaf_scope_is_awp(x64, data):
    params = jax.tree.map(jnp.asarray, params_of(network()))
    arrays = [jnp.asarray(a) for a in data]

    def mean_gradient(params):
        return jax.grad(lambda p: losses_fn(*arrays, p).mean())(params)

    v = robust_displacement(
        params, lambda p: losses_fn(*arrays, p), WeightBall(GAMMA), c_min=jnp.inf, steps=1
    )
    expected = adversarial_displacement(params, mean_gradient, GAMMA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), v, expected)

    options = {"grad_fn": mean_gradient, "losses_fn": lambda p: losses_fn(*arrays, p)}
    robust = rwp(optax.sgd(0.1), ball=WeightBall(GAMMA), c_min=jnp.inf, steps=1)
    plain = awp(optax.sgd(0.1), GAMMA)
    found, _ = robust.update(None, robust.init(params), params, **options)
    wanted, _ = plain.update(None, plain.init(params), params, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, wanted)


def test_no_example_is_no_perturbation(x64, data):
    params = jax.tree.map(jnp.asarray, params_of(network()))
    arrays = [jnp.asarray(a) for a in data]
    value, grads = robust_value_and_grad(
        lambda p: losses_fn(*arrays, p, trades=True), GAMMA, c_min=-0.1, has_aux=True
    )(params)
    expected = jax.value_and_grad(lambda p: losses_fn(*arrays, p, trades=True)[0].mean())(params)
    np.testing.assert_allclose(value[0], expected[0], rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), grads, expected[1])


class Counting:
    """Two examples whose loss grows with the weight, counting the passes that are really made."""

    def __init__(self):
        self.passes = 0

    def __call__(self, params):
        jax.debug.callback(self._count)
        return params["kernel"][0] * jnp.array([1.0, 2.0])

    def _count(self):
        self.passes += 1


@pytest.mark.parametrize(
    ("how", "passes"), [("python", 2), ("while", 2), ("unrolled", 10)], ids=str
)
def test_it_stops_when_nothing_is_selected(how, passes):
    """At w = 1 the first loss is below 1.05, at w + v = 1.1 none is: two passes are enough."""
    params, losses = {"kernel": jnp.ones((1, 1))}, Counting()

    def displace(params):
        unroll = {"python": None, "while": False, "unrolled": True}[how]
        return robust_displacement(params, losses, 0.1, c_min=1.05, unroll=unroll)

    v = (displace if how == "python" else jax.jit(displace))(params)
    np.testing.assert_allclose(v["kernel"], 0.1, rtol=1e-6)
    jax.effects_barrier()
    assert losses.passes == passes


def test_outside_jit_it_is_compiled_once(data):
    arrays = [jnp.asarray(a, jnp.float32) for a in data[:2]] + [jnp.asarray(data[2])]
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params_of(network()))
    from awp_jax.weights._robust import _compiled_accumulate

    for scale in (1.0, 1.5, 2.0):
        now = jax.tree.map(lambda leaf, scale=scale: leaf * scale, params)
        robust_displacement(now, Partial(losses_fn, *arrays), GAMMA, c_min=scale)
        if scale == 1.0:
            before = _compiled_accumulate._cache_size()
    assert _compiled_accumulate._cache_size() == before


def test_devices_see_the_batch_of_all(x64, data):
    params = jax.tree.map(jnp.asarray, params_of(network()))
    images, adversarial, labels = (jnp.asarray(a) for a in data)
    c_min = float(np.quantile(np.asarray(losses_fn(images, adversarial, labels, params)), 0.6))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def gradient(params, x, y, axis_name=None):
        compute = robust_value_and_grad(
            lambda p: losses_fn(x, x, y, p), GAMMA, c_min=c_min, axis_name=axis_name, unroll=False
        )
        return compute(params)

    alone = jax.jit(gradient)(params, adversarial, labels)
    split = PartitionSpec("data")
    whole = PartitionSpec()
    mapped = jax.shard_map(
        lambda p, x, y: gradient(p, x, y, "data"),
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=whole,
    )
    together = jax.jit(mapped)(params, adversarial, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), alone, together)


def test_a_range_of_loss(x64, data):
    """LSC[p, q): the mean gradient of the examples inside, times their share of the batch."""
    params = jax.tree.map(jnp.asarray, params_of(network()))
    arrays = [jnp.asarray(a) for a in data]
    entropy = np.asarray(losses_fn(*arrays, params))
    low, high = np.sort(entropy)[[4, 11]]  # the lower end belongs to it, the upper one does not
    inside = np.flatnonzero((entropy >= low) & (entropy < high))
    assert len(inside) == 7
    chosen = [a[inside] for a in arrays]
    expected = jax.grad(lambda p: losses_fn(*chosen, p).sum() / BATCH)(params)
    found = loss_range_gradient(lambda p: losses_fn(*arrays, p), params, low, high)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15), found, expected
    )
    parts = [(0.0, low), (low, high), (high, np.inf)]
    summed = jax.tree.map(
        lambda *leaves: sum(leaves),
        *(loss_range_gradient(lambda p: losses_fn(*arrays, p), params, *part) for part in parts),
    )
    whole = jax.grad(lambda p: losses_fn(*arrays, p).mean())(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15), summed, whole
    )


def test_misuse_is_one_sentence():
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="c_min is 'low', but a loss in nats"):
        robust_displacement(params, lambda p: p["kernel"][0], 0.1, c_min="low")
    with pytest.raises(ValueError, match="one loss per example"):
        robust_displacement(params, lambda p: p["kernel"].sum(), 0.1)
    optimizer = rwp(optax.sgd(0.1), 0.1)
    with pytest.raises(ValueError, match="losses_fn is missing"):
        optimizer.update(None, optimizer.init(params), params, grad_fn=lambda p: p)
