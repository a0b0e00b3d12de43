"""RWP in the training step: against PyTorch, its limits, and early exit from the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch_rwp import losses, rwp

from awp_jax import models, objectives
from awp_jax.balls import WeightBall
from awp_jax.training import TrainingAttack, TrainState, WeightPerturbation, make_train_step

GAMMA, BATCH, CLASSES = 0.2, 16, 4
# Its update is what it was handed: afterwards there is w + (w + v).
SHOW = optax.GradientTransformation(lambda p: (), lambda grads, state, p: (p, state))


@functools.cache
def classifier():
    return models.create("mlp", image_shape=(2, 3, 1), num_classes=CLASSES, width=8, depth=1)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    images = random.uniform(size=(BATCH, 2, 3, 1))
    adversarial = np.clip(images + 0.1 * random.normal(size=images.shape), 0, 1)
    labels = random.integers(0, CLASSES, BATCH)
    return images, adversarial, labels, random.choice([1.0, 0.3], BATCH)


def first_state():
    params, _ = jax.device_get(classifier().init(jax.random.key(3)))
    params = jax.tree.map(lambda leaf: jnp.asarray(3 * leaf, jnp.float64), params)
    return TrainState(jnp.int32(0), params, {}, ())


def perceptron(params):
    modules = [nn.Flatten()]
    for layer in (params["hidden"]["0"], params["linear"]):
        linear = nn.Linear(*layer["kernel"].shape).double()
        linear.weight.data = torch.tensor(np.asarray(layer["kernel"]).T.copy())
        linear.bias.data = torch.tensor(np.asarray(layer["bias"]))
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def displacement(batch, weights, objective="at", example_weights=None, compiled=True):
    """The kernels' v that a step takes with these adversarial images."""
    images, adversarial, labels, _ = (jnp.asarray(a) for a in batch)
    step = make_train_step(
        classifier(), objectives.create(objective, beta=6.0), SHOW, weights=weights
    )
    step = jax.jit(step) if compiled else step
    state = first_state()
    options = {"adversarial": adversarial, "example_weights": example_weights}
    after, metrics = step(state, images, labels, jax.random.key(7), **options)
    v = jax.tree.map(lambda new, w: np.asarray(new - 2 * w), after.params, state.params)
    return [v["hidden"]["0"]["kernel"], v["linear"]["kernel"]], float(metrics["loss"])


@pytest.mark.parametrize(
    ("objective", "weighted"), [("at", False), ("trades", False), ("trades", True)]
)
def test_a_step_is_that_of_pytorch(x64, batch, objective, weighted):
    """AT, TRADES, and TRADES on labelled and unlabelled images of other weight (RST)."""
    net = perceptron(first_state().params)
    images, adversarial, labels, weights = (torch.tensor(a) for a in batch)
    values, entropy = losses(net, images, adversarial, labels, objective)
    c_min = entropy.quantile(0.6).item()
    expected, selected = rwp(
        net,
        images,
        adversarial,
        labels,
        objective=objective,
        gamma=GAMMA,
        c_min=c_min,
        steps=10,
        weights=weights if weighted else None,
    )
    assert 0 < min(selected) and max(selected) < BATCH and len(set(selected)) > 1
    settings = WeightPerturbation("rwp", GAMMA, c_min=c_min)
    assert (settings.steps, settings.ball.scope) == (10, "global")
    found, loss = displacement(
        batch, settings, objective, jnp.asarray(batch[3]) if weighted else None
    )
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy().T, rtol=1e-9, atol=1e-12)
    for p, v in zip([p for p in net.parameters() if p.ndim > 1], expected, strict=True):
        p.data = p.data + v
    values, _ = losses(net, images, adversarial, labels, objective)
    mean = (values * weights).sum() / weights.sum() if weighted else values.mean()
    assert abs(loss - mean.item()) < 1e-9 * mean.item()


def test_its_limits_are_awp_and_at(x64, batch):
    everything = WeightPerturbation("rwp", ball=WeightBall(GAMMA), steps=1, c_min=float("inf"))
    found, loss = displacement(batch, everything)
    expected, plain = displacement(batch, WeightPerturbation("awp", GAMMA))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(plain, rel=1e-12)

    found, loss = displacement(batch, WeightPerturbation("rwp", GAMMA, c_min=-0.1))
    _, plain = displacement(batch, WeightPerturbation("none"))
    assert all(np.abs(v).max() < 1e-12 for v in found)
    assert loss == pytest.approx(plain, rel=1e-12)


def test_a_step_in_parts_is_the_step(x64, batch):
    """Outside jit, where RWP can stop early on CPU."""
    settings = WeightPerturbation("rwp", GAMMA, c_min=1.0)
    whole, parts = (displacement(batch, settings, compiled=c) for c in (True, False))
    for a, b in zip(whole[0], parts[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_range_of_loss_in_awp(x64, batch):
    """Disjoint ranges ascend other examples; the whole line is AWP."""
    all_, _ = displacement(batch, WeightPerturbation("awp", GAMMA))
    low, _ = displacement(batch, WeightPerturbation("awp", GAMMA, loss_range=(0.0, 1.0)))
    high, _ = displacement(batch, WeightPerturbation("awp", GAMMA, loss_range=(1.0, 1e9)))
    whole, _ = displacement(batch, WeightPerturbation("awp", GAMMA, loss_range=(0.0, 1e9)))
    for a, b, c, d in zip(all_, low, high, whole, strict=True):
        np.testing.assert_allclose(a, d, rtol=1e-9, atol=1e-12)
        assert np.abs(a - b).max() > 1e-3 and np.abs(b - c).max() > 1e-3
        sizes = [np.linalg.norm(v) for v in (a, b, c)]
        np.testing.assert_allclose(sizes, sizes[0], rtol=1e-9)


def shared_step(objective="at", **attack):
    weights = WeightPerturbation("awp", GAMMA, shared_backward=True)
    return make_train_step(
        classifier(),
        objectives.create(objective),
        SHOW,
        attack=TrainingAttack(epsilon=0.1, steps=3, step_size=0.04, start="none", **attack),
        weights=weights,
    )


def test_a_shared_backward_pass_gives_the_gradient_before_the_last_step(x64, batch):
    """v_l = gamma ||w_l|| g_l / ||g_l||, g at the iterate of PGD before its last step."""
    state, labels = first_state(), torch.tensor(batch[2])
    net = perceptron(state.params)
    images = torch.tensor(batch[0])

    def loss(x):
        return nn.functional.cross_entropy(net(x), labels, reduction="sum")

    x = images
    for _ in range(2):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        x = (images + (x + 0.04 * gradient.sign() - images).clamp(-0.1, 0.1)).clamp(0, 1)
    kernels = [p for p in net.parameters() if p.ndim > 1]
    grads = torch.autograd.grad(loss(x.detach()), kernels)
    step = jax.jit(shared_step())
    after, _ = step(state, jnp.asarray(batch[0]), jnp.asarray(batch[2]), jax.random.key(7))
    v = jax.tree.map(lambda new, w: new - 2 * w, after.params, state.params)
    for mine, w, g in zip(
        (v["hidden"]["0"]["kernel"], v["linear"]["kernel"]), kernels, grads, strict=True
    ):
        expected = GAMMA * w.norm() * g / g.norm()
        np.testing.assert_allclose(mine, expected.detach().numpy().T, rtol=1e-9, atol=1e-12)


def test_a_shared_backward_pass_is_refused_where_losses_differ():
    for objective in ("trades", "mart"):
        with pytest.raises(ValueError, match=f"{objective} attacks another loss"):
            shared_step(objective)
    with pytest.raises(ValueError, match="early_stop 1"):
        shared_step(early_stop=1)
    with pytest.raises(ValueError, match="batch_norm 'running'"):
        shared_step(batch_norm="running")
    with pytest.raises(ValueError, match="shared_backward takes its one gradient"):
        WeightPerturbation("awp", steps=2, shared_backward=True)
    with pytest.raises(ValueError, match="only weight perturbation 'awp' has"):
        WeightPerturbation("rwp", loss_range=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"\(p, q\) in nats with p < q"):
        WeightPerturbation("awp", loss_range=(1.0, 0.5))
