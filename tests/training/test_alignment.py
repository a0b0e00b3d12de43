"""GradAlign, against PyTorch's double backward pass and inside a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from awp_jax import models, objectives, streams
from awp_jax.balls import InputBall
from awp_jax.random import example_keys, fold_keys
from awp_jax.training import (
    TrainingAttack,
    TrainState,
    WeightPerturbation,
    build,
    make_train_step,
)
from awp_jax.training._alignment import misalignment

RANDOM = np.random.default_rng(0)


class Curved(nn.Module):
    """A network whose gradients in its images are not everywhere the same."""

    def __init__(self, first, second, last):
        super().__init__()
        self.first, self.second, self.last = (nn.Parameter(w) for w in (first, second, last))

    def forward(self, x):
        hidden = nn.functional.silu(x.flatten(1) @ self.first)
        # BatchNorm without scale in batch statistics, as in training.
        hidden = nn.functional.batch_norm(hidden, None, None, training=True)
        return nn.functional.silu(hidden @ self.second) @ self.last


def torch_alignment(network, images, others, labels):
    """train.py and utils.py of the release: two gradients, each with its graph."""

    def gradient(x):
        x = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(network(x), labels)
        return torch.autograd.grad(loss, x, create_graph=True)[0]

    a, b = gradient(images), gradient(others)
    norms = [(g**2).sum([1, 2, 3]) ** 0.5 for g in (a, b)]
    there = (norms[0] != 0) * (norms[1] != 0)
    a, b = ((g[there] / n[there][:, None, None, None]) for g, n in zip((a, b), norms, strict=True))
    return 1.0 - (a * b).sum((1, 2, 3)).mean()


def curved(weights):
    """The same network in JAX, ``images -> [batch]`` losses."""

    def losses(x, labels):
        hidden = jax.nn.silu(x.reshape(len(x), -1) @ weights[0])
        mean, var = hidden.mean(0, keepdims=True), hidden.var(0, keepdims=True)
        hidden = jax.nn.silu((hidden - mean) / jnp.sqrt(var + 1e-5) @ weights[1])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ weights[2], labels)

    return losses


def test_gradient_alignment_is_that_of_pytorch(x64):
    """Value and gradient in the weights: a backward pass through two backward passes."""
    weights = [RANDOM.normal(size=shape) for shape in ((9, 7), (7, 6), (6, 5))]
    images = RANDOM.uniform(size=(8, 3, 3, 1))
    others = images + RANDOM.uniform(-0.3, 0.3, size=images.shape)
    labels = RANDOM.integers(0, 5, 8)
    network = Curved(*(torch.tensor(w) for w in weights))
    tensors = (torch.tensor(array) for array in (images, others, labels))
    expected = torch_alignment(network, *tensors)
    expected.backward()

    def found(weights, relative=None):
        losses = curved(weights)
        arguments = jnp.asarray(images), jnp.asarray(others), relative, None
        return misalignment(lambda x: losses(x, jnp.asarray(labels)), *arguments)

    value, gradients = jax.value_and_grad(found)([jnp.asarray(w) for w in weights])
    assert 0.01 < expected.item() < 2
    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    for ours, theirs in zip(gradients, network.parameters(), strict=True):
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_gradient_alignment_without_gradients(scale):
    """Zero gradients do not count; small ones are not taken for zero; nothing is not finite."""
    pairs = jnp.asarray(
        [[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [4.0, 3.0]]]
    )
    first, second = (pairs[:, i].reshape(3, 1, 2, 1) * scale for i in (0, 1))

    def apart(w, relative=None):
        def losses(x):  # of x = 0 the first gradient, of x = 1 the second
            slopes = jnp.where(jax.lax.stop_gradient(x) > 0.5, second, first)
            return (w * slopes * x).sum((1, 2, 3))

        ones = jnp.ones_like(first)
        return misalignment(losses, 0 * ones, ones, relative, None)

    value, gradient = jax.value_and_grad(apart)(jnp.ones((1, 1, 2, 1)))
    assert float(value) == pytest.approx((1 + (1 - 24 / 25)) / 2, rel=1e-5)
    assert bool(jnp.isfinite(gradient).all())
    weighted = apart(jnp.ones((1, 1, 2, 1)), jnp.asarray([0.0, 1.0, 2.0]))
    assert float(weighted) == pytest.approx(1 - 24 / 25, rel=1e-4)
    nothing = misalignment(lambda x: 0 * x.sum((1, 2, 3)), first, second, None, None)
    assert float(nothing) == 0


@pytest.mark.parametrize("method", ["none", "awp"])
def test_gradient_alignment_joins_the_descent_alone_at_w_and_v(x64, method):
    model = models.create("mlp", image_shape=(3, 3, 1), num_classes=5, width=6)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), model.init(jax.random.key(1))[0])
    images = jnp.asarray(RANDOM.uniform(-0.3, 1.3, size=(12, 3, 3, 1)).clip(0, 1))
    adversarial = jnp.clip(images + 0.1, 0, 1)
    labels = jnp.asarray(RANDOM.integers(0, 5, 12))
    key, optimizer = jax.random.key(0), optax.sgd(1.0)
    attack, weights = TrainingAttack(0.1, 1), WeightPerturbation(method, gamma=0.1)
    state = TrainState(jnp.int32(3), params, {}, optimizer.init(params))

    def after(lambda_):
        objective = objectives.create("at", gradient_alignment=lambda_)
        step = make_train_step(model, objective, optimizer, attack=attack, weights=weights)
        return jax.jit(step)(state, images, labels, key, adversarial=adversarial)[0].params

    def losses(w, x):
        logits, _ = model.apply(w, {}, x, mode="batch")
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    perturbed = params
    if method == "awp":  # eq. 10; kernels only, and the loss of AT without the regulariser
        ascent = jax.grad(lambda w: losses(w, adversarial).mean())(params)
        perturbed = jax.tree.map(
            lambda w, g: (
                w + 0.1 * (jnp.linalg.norm(w) / jnp.linalg.norm(g) * g if w.ndim > 1 else 0)
            ),
            params,
            ascent,
        )
    keys = fold_keys(example_keys(jax.random.fold_in(key, 3), 12), streams.EXAMPLE_ALIGNMENT)
    others = InputBall("linf", 0.1, low=None, high=None).sample(keys, images)
    assert float(others.min()) < 0 and float(others.max()) > 1  # not clipped, as released
    expected = jax.grad(lambda w: misalignment(lambda x: losses(w, x), images, others, None, None))(
        perturbed
    )
    moved = jax.tree.map(lambda a, b: a - b, after(0.0), after(0.7))  # the learning rate is 1
    for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, 0.7 * theirs, rtol=1e-8, atol=1e-12)


def test_gradient_alignment_is_for_attacks_of_one_step(tiny_config):
    config = tiny_config()
    config.objective.gradient_alignment = 0.2
    with pytest.raises(ValueError, match="for attacks of one step: attack.name 'pgd' makes 2"):
        build(config)
    config.attack.steps = 1
    build(config)
    config.objective.name = "natural"
    with pytest.raises(ValueError, match="'natural' attacks nothing"):
        build(config)
