"""What today's recipes are made of: optimisers, clipping, schedules, averages, warm-ups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from longer import some
from small_run import goes_on_bit_by_bit
from torch import nn

from awp_jax import config as schema
from awp_jax import data, models, objectives
from awp_jax.balls import InputBall
from awp_jax.random import example_keys
from awp_jax.training import (
    TrainingAttack,
    TrainState,
    averaging_rate,
    build,
    make_train_step,
    read_metrics,
    schedule,
)
from awp_jax.training._attack import make_attack
from awp_jax.training._configured import training_attack
from awp_jax.training._optimizers import make_optimizer
from awp_jax.training._schedules import warmup

RANDOM = np.random.default_rng(0)
SHAPES = {"kernel": (3, 4), "bias": (4,)}
RATE = 0.01


def optimizer(**changes):
    group = schema.default().optimizer
    group.update(changes)
    return make_optimizer(group, lambda step: RATE, jax.random.key(0))


def walk(made, weights, gradients):
    """The weights after each gradient."""
    params = jax.tree.map(jnp.asarray, weights)
    state, path = made.init(params), []
    for gradient in gradients:
        updates, state = made.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def drawn(scale=1.0):
    weights = {name: RANDOM.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = [
        {name: scale * RANDOM.normal(size=shape) for name, shape in SHAPES.items()}
        for _ in range(8)
    ]
    return weights, gradients


def torch_walk(make, weights, gradients, clip=None):
    parameters = {name: nn.Parameter(torch.tensor(value)) for name, value in weights.items()}
    made, path = make(parameters), []
    for gradient in gradients:
        for name, value in gradient.items():
            parameters[name].grad = torch.tensor(value)
        if clip is not None:
            norm = sum((value**2).sum() for value in gradient.values()) ** 0.5
            # clip_grad_norm_ divides by the norm and 1e-6, optax by the norm.
            found = nn.utils.clip_grad_norm_(parameters.values(), clip)
            assert float(found) == pytest.approx(norm)
        made.step()
        path.append({name: value.detach().numpy().copy() for name, value in parameters.items()})
    return path


def compare(found, expected, rtol=1e-10):
    for ours, theirs in zip(found, expected, strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_adamw_is_that_of_pytorch(x64, decay):
    weights, gradients = drawn()

    def make(parameters):
        groups = [
            {"params": [parameters["kernel"]]},
            {"params": [parameters["bias"]], "weight_decay": 0.1 * (decay == "all")},
        ]
        return torch.optim.AdamW(groups, lr=RATE, weight_decay=0.1)

    made = optimizer(name="adamw", weight_decay=0.1, decay=decay)
    compare(walk(made, weights, gradients), torch_walk(make, weights, gradients))


@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_nesterov_decay_and_clipping_are_those_of_pytorch(x64, decay):
    weights, gradients = drawn(scale=3.0)

    def make(parameters):
        groups = [
            {"params": [parameters["kernel"]]},
            {"params": [parameters["bias"]], "weight_decay": 0.1 * (decay == "all")},
        ]
        return torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True, weight_decay=0.1)

    made = optimizer(weight_decay=0.1, decay=decay, nesterov=True, clip_norm=2.0)
    compare(walk(made, weights, gradients), torch_walk(make, weights, gradients, 2.0), 1e-6)
    unclipped = optimizer(weight_decay=0.1, decay=decay, nesterov=True)
    assert not np.allclose(walk(unclipped, weights, gradients)[0]["bias"], weights["bias"], 1e-6)


def test_lion_is_algorithm_2(x64):
    """Chen et al. 2023: the sign of an interpolation, and a slower mean of the gradients."""
    weights, gradients = drawn()
    w, m, path = {n: v.copy() for n, v in weights.items()}, dict.fromkeys(SHAPES, 0.0), []
    for gradient in gradients:
        for name, g in gradient.items():
            direction = np.sign(0.9 * m[name] + 0.1 * g)
            w[name] = w[name] - RATE * (direction + 0.1 * w[name])
            m[name] = 0.99 * m[name] + 0.01 * g
        path.append({name: value.copy() for name, value in w.items()})
    compare(walk(optimizer(name="lion", weight_decay=0.1), weights, gradients), path)


def test_lamb_is_algorithm_2(x64):
    """You et al. 2020: Adam's step and the decay, as long as the leaf's weights."""
    weights, gradients = drawn()
    w, path = {n: v.copy() for n, v in weights.items()}, []
    m, v = dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)
    for t, gradient in enumerate(gradients, start=1):
        for name, g in gradient.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            step = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-6)
            step = step + 0.1 * w[name]
            trust = np.linalg.norm(w[name]) / np.linalg.norm(step)
            w[name] = w[name] - RATE * trust * step
        path.append({name: value.copy() for name, value in w.items()})
    compare(walk(optimizer(name="lamb", weight_decay=0.1), weights, gradients), path)


@pytest.mark.parametrize("peak", [0.025, 0.25, 0.4])
def test_one_cycle_is_that_of_pytorch(x64, peak):
    epochs, steps = 4, 25
    parameter = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=0.2, total_steps=epochs * steps, pct_start=peak, cycle_momentum=False
    )
    expected = []
    for _ in range(epochs * steps):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        if len(expected) < epochs * steps:
            cycle.step()
    rate = schedule("one-cycle", 0.2, epochs, steps, peak=peak)
    np.testing.assert_allclose(rate(jnp.arange(epochs * steps)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["constant", "piecewise", "cosine"])
def test_a_warm_up_is_a_line_before_the_schedule(x64, name):
    step = jnp.arange(100)
    plain = np.asarray(schedule(name, 0.1, 10, 10)(step))
    warm = np.asarray(schedule(name, 0.1, 10, 10, warmup_epochs=2.5)(step))
    np.testing.assert_allclose(warm[:25], plain[:25] * np.arange(1, 26) / 25)
    np.testing.assert_array_equal(warm[25:], plain[25:])


def test_ema_with_a_warm_up_is_that_of_wang_et_al(x64):
    """utils/utils.py of DM-Improves-AT: decay min(0.995, (1 + n) / (10 + n)) after the start."""
    rate = averaging_rate("ema", 5, start_epoch=1, decay=0.995, warmup=True)
    average, weights = 0.0, RANDOM.normal(size=3000)
    expected = 0.0
    for step, weight in enumerate(weights):
        average = average + float(rate(step)) * (weight - average)
        delta = step - 5
        decay = min(0.995, (1.0 + delta) / (10.0 + delta)) if delta >= 0 else 0.0
        expected = decay * expected + (1 - decay) * weight
        assert average == pytest.approx(expected, rel=1e-9)
    assert float(rate(2999)) == pytest.approx(0.005)


@pytest.mark.parametrize("number", [0, 3, 7, 20])
def test_epsilon_rises_in_the_warm_up(x64, number):
    """A step of the warm-up is one within the smaller ball."""
    model = models.create("linear", image_shape=(3, 3, 1), num_classes=5)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), model.init(jax.random.key(1))[0])
    images = jnp.asarray(RANDOM.uniform(size=(12, 3, 3, 1)))
    labels = jnp.asarray(RANDOM.integers(0, 5, 12))
    factor = min(1.0, (number + 1) / 8)

    def stepped(attack):
        step = make_train_step(model, objectives.at(), optax.sgd(0.1), attack=attack)
        state = TrainState(jnp.int32(number), params, {}, optax.sgd(0.1).init(params))
        return jax.jit(step)(state, images, labels, jax.random.key(0))[0].params

    found = stepped(TrainingAttack(0.2, 3, step_size=0.1, scale=warmup(2, 4)))
    expected = stepped(TrainingAttack(0.2 * factor, 3, step_size=0.1 * factor))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(("name", "alpha", "k"), [("fgsm-rs", 1.25, 1.0), ("n-fgsm", 1.0, 2.0)])
def test_attacks_of_one_step(x64, name, alpha, k):
    """Noise, one step along the sign of the gradient there; N-FGSM does not go back."""
    config = schema.default()
    config.attack.name, config.attack.epsilon = name, "0.05"
    attack = training_attack(config)
    model = models.create("linear", image_shape=(3, 3, 1), num_classes=5)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), model.init(jax.random.key(1))[0])
    images = jnp.asarray(RANDOM.uniform(size=(12, 3, 3, 1)))
    labels = jnp.asarray(RANDOM.integers(0, 5, 12))
    keys = example_keys(jax.random.key(0), 12)
    craft, _ = make_attack(model, objectives.at(), attack)
    found = craft(params, {}, images, labels, keys, None).images
    noisy = InputBall("linf", k * 0.05).start(keys, images)
    assert k * 0.05 * 0.9 < jnp.abs(noisy - images).max() <= k * 0.05 + 1e-12

    def loss(x):
        logits, _ = model.apply(params, {}, x, mode="batch")
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    expected = noisy + alpha * 0.05 * jnp.sign(jax.grad(loss)(noisy))
    if name == "fgsm-rs":
        expected = jnp.clip(expected, images - 0.05, images + 0.05)
    np.testing.assert_allclose(found, jnp.clip(expected, 0, 1), atol=1e-12)
    scaled = craft(params, {}, images, labels, keys, None, None, 0.5).images
    assert jnp.abs(scaled - images).max() < 0.5 * jnp.abs(found - images).max() + 1e-9


def test_cutmix_pastes_one_box_and_mixes_labels_by_its_pixels():
    images = jnp.arange(1.0, 13.0)[:, None, None, None] * jnp.ones((12, 8, 10, 2)) / 16
    labels = jnp.asarray(RANDOM.integers(0, 5, 12))
    shares = []
    for seed in range(40):
        mixed, soft = data.cutmix(jax.random.key(seed), images, labels, 1.0, 5)
        foreign = np.asarray(mixed != images)
        own = np.asarray(images[:, 0, 0, 0])
        theirs = np.asarray(mixed.max((1, 2, 3)) + mixed.min((1, 2, 3))) - own
        moved = foreign.any((1, 2, 3))
        if not moved.any():
            continue
        boxes = foreign[moved][..., 0]
        assert (boxes == boxes[0]).all() and (foreign[..., 0] == foreign[..., 1]).all()
        rows, columns = np.nonzero(boxes[0].any(1))[0], np.nonzero(boxes[0].any(0))[0]
        assert boxes[0].sum() == len(rows) * len(columns)  # a box without holes
        assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
        share = boxes[0].mean()
        whole = moved & (share < 1)
        partner = np.rint(theirs * 16).astype(int) - 1
        expected = (1 - share) * np.eye(5)[labels] + share * np.eye(5)[labels[partner]]
        np.testing.assert_allclose(soft[whole], expected[whole], atol=1e-6)
        shares.append(share)
    assert 0.1 < np.mean(shares) < 0.5  # of 1/2, less what the edges cut off
    with pytest.raises(ValueError, match="alpha of CutMix is 0"):
        data.cutmix(jax.random.key(0), images, labels, 0, 5)


@pytest.mark.parametrize("devices", [1, 2])
def test_means_of_classes_are_those_of_the_last_epoch(devices, tiny_config):
    """Softened predictions at w + v, by class, over the steps of an epoch; padding is none."""
    config = tiny_config("linear", width=None, method="none")
    config.objective.name, config.data.crop_padding = "ikl", 0
    experiment = build(config, devices=devices)
    assert experiment.padded and experiment.steps_per_epoch == 3
    images = data.as_float(jnp.asarray(experiment.splits.train.images))
    labels = experiment.splits.train.labels
    state, total = experiment.init(), np.zeros((10, 10))
    np.testing.assert_allclose(state.class_means["last"], np.full((10, 10), 0.1))
    for step in range(6):
        epoch = step // 3
        order = experiment.order(epoch)
        last = np.asarray(state.class_means["last"])
        rows = np.asarray(order)[(step % 3) * 32 :][:32]
        logits, _ = experiment.classifier.apply(state.params, {}, images[rows], mode="batch")
        soft = torch.softmax(torch.tensor(np.asarray(logits)) / 4.0, dim=1).numpy()
        total += np.eye(10)[labels[rows]].T @ soft
        state, _ = experiment.step(
            state,
            *experiment.on_devices(),
            order,
            experiment.key,
            batch_size=experiment.rows_of(step),
            perturb_weights=False,
        )
        if step % 3 < 2:
            np.testing.assert_array_equal(state.class_means["last"], last)
        else:
            expected = total / total.sum(1, keepdims=True)
            np.testing.assert_allclose(state.class_means["last"], expected, atol=1e-6)
            total[:] = 0


RECIPES = {
    "sgd": {
        "optimizer.nesterov": True,
        "optimizer.decay": "kernels",
        "optimizer.clip_norm": 1.0,
        "optimizer.learning_rate": 0.5,
        "schedule.name": "one-cycle",
        "schedule.peak": 0.25,
        "averaging.name": "ema",
        "averaging.decay": 0.995,
        "averaging.warmup": True,
        "objective.label_smoothing": 0.1,
        "attack.warmup_epochs": 1.0,
        "data.cutmix": 0.2,
        "model.activation": "silu",
    },
    "ikl": {
        "objective.name": "ikl",
        "objective.label_smoothing": 0.1,
        "optimizer.learning_rate": 0.05,
        "schedule.name": "cyclic",
        "attack.warmup_epochs": 12.0,
        "weights.gamma": "0.005",
        "weights.start_epoch": 1,
    },
    "grad-align": {
        "attack.name": "fgsm-rs",
        "objective.gradient_alignment": 0.2,
        "data.random_erasing": 0.2,
        "optimizer.learning_rate": 0.3,
        "schedule.name": "cyclic",
        "weights.gamma": "0.005",
    },
    "free": {
        "attack.name": "free",
        "attack.replays": 3,
        "optimizer.learning_rate": 0.05,
        "schedule.name": "cyclic",
        "weights.gamma": "0.005",
    },
    "fast": {
        "attack.name": "n-fgsm",
        "optimizer.learning_rate": 0.5,
        "schedule.name": "cyclic",
        "weights.gamma": "0.005",
    },
    **{
        name: {
            "optimizer.name": name,
            "optimizer.learning_rate": rate,
            "schedule.name": "cosine",
            "schedule.warmup_epochs": 1.0,
        }
        for name, rate in {"adamw": 0.01, "lion": 3e-3, "lamb": 0.02}.items()
    },
}


@pytest.mark.parametrize("recipe", some(RECIPES, {"sgd", "ikl", "grad-align", "free", "adamw"}))
def test_a_recipe_learns_and_goes_on_bit_by_bit(tmp_path, tiny_config, recipe):
    config = tiny_config(width=128)
    config.attack.epsilon, config.attack.step_size = "0.05", "0.03"
    config.epochs, config.data.train_examples = 12, 400
    config.update_from_flattened_dict(RECIPES[recipe])
    goes_on_bit_by_bit(config, tmp_path)
    last = [r for r in read_metrics(tmp_path / "whole") if r["kind"] == "evaluation"][-1]
    for measured in (last, last["average"]) if recipe == "sgd" else (last,):
        assert measured["test"]["clean_accuracy"] > 0.7
