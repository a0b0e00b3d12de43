"""A small robust network on real digits, in JAX and, with the same weights, in PyTorch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import PGD, cross_entropy

# Radii at which about half of the test images survive.
EPSILON = {"linf": 0.16, "l2": 0.7}


class Digits(NamedTuple):
    """The network and test images; ``logits_fn`` is a ``Partial`` over the parameters."""

    params: Any
    logits_fn: Partial
    images: jax.Array
    labels: jax.Array


def features(params, images):
    """The penultimate features of ``network``."""
    x = images.reshape(images.shape[0], -1)
    for name in ("hidden1", "hidden2"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None, :])
    return x


def network(params, images):
    """Two hidden layers: convolutions as small as digits need are slow in XLA on CPU."""
    return features(params, images) @ params["out"]["kernel"] + params["out"]["bias"][None, :]


def initial(seed, width=64, classes=10):
    shapes = {"hidden1": (64, width), "hidden2": (width, width), "out": (width, classes)}
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        name: {
            "kernel": jax.random.normal(key, shape) * np.sqrt(2 / shape[0]),
            "bias": jnp.zeros(shape[1]),
        }
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def split_digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16).astype(np.float32)[..., None]
    labels = data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    return (images[600:], labels[600:]), (images[:500], labels[:500])


def train(seed=0, steps=250, epsilon=0.12, batch=128):
    """Adversarial training by PGD-3; a few seconds."""
    (images, labels), _ = split_digits()
    optimiser = optax.adam(5e-3)
    attack = PGD(epsilon, steps=3, step_size=epsilon / 2)

    @jax.jit
    def step(params, state, key, x, y):
        x = attack.perturb(Partial(network, params), key, x, y) if epsilon else x
        grads = jax.grad(lambda p: cross_entropy(network(p, x), y).mean())(params)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = initial(seed)
    state, rng = optimiser.init(params), np.random.default_rng(seed)
    for index in range(steps):
        rows = rng.choice(len(labels), batch, replace=False)
        key = jax.random.key(index)
        params, state = step(params, state, key, images[rows], labels[rows])
    return params


def as_torch(params):
    """The same network as a ``torch.nn.Module``, images ``[batch, channels, height, width]``."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def dense(name):
        kernel = np.array(params[name]["kernel"])
        layer = nn.Linear(*kernel.shape)
        layer.weight.data = torch.from_numpy(kernel.T.copy())
        layer.bias.data = torch.from_numpy(np.array(params[name]["bias"]))
        return layer

    # One channel: flattening gives the same order as in [batch, height, width, channels].
    layers = (nn.Flatten(), dense("hidden1"), nn.ReLU(), dense("hidden2"), nn.ReLU(), dense("out"))
    return nn.Sequential(*layers).eval().requires_grad_(False)


def to_torch(images):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())


def from_torch(images):
    return np.asarray(images.detach()).transpose(0, 2, 3, 1)
