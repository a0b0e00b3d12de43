"""Each option of training against what defines it: a closed form, PyTorch, or numpy."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from awp_jax import data, models, objectives, runs
from awp_jax.objectives import ADVERSARIAL, CLEAN
from awp_jax.training import (
    Regularisation,
    TrainingAttack,
    TrainState,
    WeightPerturbation,
    averaging_rate,
    entropy_sgd,
    estimate_batch_stats,
    make_train_step,
    train,
)
from awp_jax.training._optimizers import make_optimizer

RANDOM = np.random.default_rng(0)
LOGITS, OTHER = RANDOM.normal(size=(2, 12, 5)) * 3
LABELS = RANDOM.integers(0, 5, 12)


@pytest.mark.parametrize("objective", ["natural", "at", "trades"])
def test_label_smoothing_is_that_of_pytorch(x64, objective):
    clean, attacked = torch.tensor(OTHER), torch.tensor(LOGITS)
    labels = torch.tensor(LABELS)
    smooth = functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.3)
    expected = smooth(attacked if objective == "at" else clean, labels)
    if objective == "trades":
        log_clean, log_attacked = clean.log_softmax(1), attacked.log_softmax(1)
        expected = expected + 6 * (log_clean.exp() * (log_clean - log_attacked)).sum(1)
    made = objectives.create(objective, label_smoothing=0.3)
    found = made.loss(
        {CLEAN: jnp.asarray(OTHER), ADVERSARIAL: jnp.asarray(LOGITS)}, jnp.asarray(LABELS)
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)
    if objective == "at":  # the attack keeps the labels
        attack = made.attack_loss(jnp.asarray(LOGITS), jnp.asarray(LABELS), None)
        np.testing.assert_allclose(attack, F.cross_entropy(attacked, labels, reduction="none"))


def test_mixup_mixes_images_and_losses(x64):
    """The loss of a mixed label is the mixture of losses (the criterion of Zhang et al.)."""
    images = jnp.asarray(RANDOM.uniform(size=(12, 4, 4, 1)))
    mixed, soft = data.mixup(jax.random.key(0), images, jnp.asarray(LABELS), 1.4, 5)
    weights = np.asarray(soft).max(axis=1)
    t = max(np.median(weights), 1 - np.median(weights))
    flat, out = np.asarray(images).reshape(12, -1), np.asarray(mixed).reshape(12, -1)
    partners = []
    for row, result, label, target in zip(flat, out, LABELS, np.asarray(soft), strict=True):
        fits = [
            (share, j)
            for share in (t, 1 - t)
            for j in range(12)
            if np.allclose(result, share * row + (1 - share) * flat[j], atol=1e-9)
        ]
        assert fits
        share, j = fits[0]
        expected = share * np.eye(5)[label] + (1 - share) * np.eye(5)[LABELS[j]]
        np.testing.assert_allclose(target, expected, atol=1e-9)
        partners.append((share, j))
    assert sorted(j for _, j in partners) == list(range(12))
    loss = objectives.at().loss({ADVERSARIAL: jnp.asarray(LOGITS)}, soft)
    plain = objectives.at().loss
    first = plain({ADVERSARIAL: jnp.asarray(LOGITS)}, jnp.asarray(LABELS))
    second = plain(
        {ADVERSARIAL: jnp.asarray(LOGITS)}, jnp.asarray(LABELS[[j for _, j in partners]])
    )
    share = partners[0][0]
    np.testing.assert_allclose(loss, share * first + (1 - share) * second, rtol=1e-9)
    ascended = objectives.at().attack_loss(jnp.asarray(LOGITS), soft, None)  # as Rice et al.
    np.testing.assert_allclose(ascended, loss, rtol=1e-12)


def test_the_weight_of_mixup_is_beta():
    draw = jax.jit(
        jax.vmap(
            lambda k: data.mixup(k, jnp.ones((2, 1, 1, 1)), jnp.array([0, 1]), 1.4, 2)[1][0, 0]
        )
    )
    weights = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    inner = weights[weights < 1]  # 1 where the permutation left the two in place
    assert abs(len(inner) / 4000 - 0.5) < 0.05
    assert abs(inner.mean() - 0.5) < 0.02
    assert abs(inner.var() - 1 / (4 * (2 * 1.4 + 1))) < 0.005  # of Beta(a, a)


def test_label_noise_replaces_a_share_once_and_for_all():
    labels = np.arange(20000, dtype=np.int32) % 10
    clean = data.Dataset(np.zeros((20000, 1, 1, 1), np.uint8), labels, 10, "set")
    noisy = data.with_label_noise(clean, 0.4, seed=3).labels
    assert abs((noisy != labels).mean() - 0.4 * 9 / 10) < 0.02
    wrong = noisy[noisy != labels]
    assert np.bincount(wrong).min() > 600  # of about 720 in each class
    np.testing.assert_array_equal(noisy, data.with_label_noise(clean, 0.4, seed=3).labels)
    assert (noisy != data.with_label_noise(clean, 0.4, seed=4).labels).any()
    np.testing.assert_array_equal(data.with_label_noise(clean, 0.0, seed=3).labels, labels)


@functools.cache
def perceptron(auxiliary=0):
    return models.create(
        "mlp", image_shape=(3, 3, 1), num_classes=5, width=6, depth=1, auxiliary=auxiliary
    )


def torch_perceptron(params):
    modules = [nn.Flatten()]
    for layer in (params["hidden"]["0"], params["linear"]):
        linear = nn.Linear(*layer["kernel"].shape).double()
        linear.weight.data = torch.tensor(np.asarray(layer["kernel"]).T.copy())
        linear.bias.data = torch.tensor(np.asarray(layer["bias"]))
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def in_float64(auxiliary=0):
    params, _ = perceptron(auxiliary).init(jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) * 2, params)


IMAGES = RANDOM.uniform(size=(12, 3, 3, 1))


def natural_step(optimizer, **options):
    step = make_train_step(
        perceptron(), objectives.natural(), optimizer, weights=WeightPerturbation("none"), **options
    )
    return jax.jit(step)


def test_l1_l2_and_clipping_of_kernels(x64):
    params = in_float64()
    net = torch_perceptron(params)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = F.cross_entropy(net(torch.tensor(IMAGES)), torch.tensor(LABELS))
    for module in net:
        if isinstance(module, nn.Linear):
            loss = loss + 0.02 * module.weight.abs().sum() + 0.3 / 2 * (module.weight**2).sum()
    loss.backward()
    optimizer.step()
    step = natural_step(optax.sgd(0.1), regularisation=Regularisation(0.02, 0.3, clip=0.25))
    state, metrics = step(
        TrainState(jnp.int32(0), params, {}, optax.sgd(0.1).init(params)),
        jnp.asarray(IMAGES),
        jnp.asarray(LABELS),
        jax.random.key(0),
    )
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-12)
    for layer, module in ((state.params["hidden"]["0"], net[1]), (state.params["linear"], net[3])):
        weight = module.weight.detach().numpy().T
        assert np.abs(weight).max() > 0.25  # or clipping would not show
        np.testing.assert_allclose(layer["kernel"], weight.clip(-0.25, 0.25), rtol=1e-10)
        np.testing.assert_allclose(layer["bias"], module.bias.detach().numpy(), rtol=1e-10)


def settings(**changes):
    from awp_jax import config

    group = config.default().optimizer
    group.update(changes)
    return group


def test_adam_is_that_of_pytorch(x64):
    w = RANDOM.normal(size=(3, 4))
    optimizer = make_optimizer(
        settings(name="adam", weight_decay=0.1), lambda step: 0.01, jax.random.key(0)
    )
    params, parameter = jnp.asarray(w), nn.Parameter(torch.tensor(w))
    state = optimizer.init(params)
    adam = torch.optim.Adam([parameter], lr=0.01, weight_decay=0.1)
    for _ in range(10):
        gradient = RANDOM.normal(size=w.shape)
        parameter.grad = torch.tensor(gradient)
        adam.step()
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=1e-10)


def test_entropy_sgd_is_algorithm_1(x64):
    """On a quadratic, in numpy, without noise: 3 outer steps of 4 gradients."""
    curvature, x = np.array([1.0, 4.0]), np.array([2.0, -1.0])
    eta, inner, gamma, growth, averaging, momentum, decay = 0.7, 0.1, 0.5, 0.2, 0.75, 0.9, 0.01
    optimizer = entropy_sgd(
        eta,
        jax.random.key(0),
        steps=4,
        inner_learning_rate=inner,
        gamma=gamma,
        growth=growth,
        noise=0.0,
        averaging=averaging,
        momentum=momentum,
        weight_decay=decay,
    )
    params = {"w": jnp.asarray(x)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    velocity = np.zeros(2)
    for outer in range(3):
        explorer, mean = x.copy(), x.copy()
        for _ in range(4):
            np.testing.assert_allclose(params["w"], explorer, rtol=1e-12)
            pull = gamma * (1 + growth) ** outer * (x - explorer)
            explorer = explorer - inner * (curvature * explorer + decay * explorer - pull)
            mean = averaging * mean + (1 - averaging) * explorer
            updates, state = update({"w": curvature * params["w"]}, state, params)
            params = optax.apply_updates(params, updates)
        velocity = momentum * velocity + (x - mean)
        x = x - eta * velocity
        np.testing.assert_allclose(params["w"], x, rtol=1e-12)


def test_the_noise_of_entropy_sgd():
    optimizer = entropy_sgd(1.0, jax.random.key(0), inner_learning_rate=0.25, noise=0.1)
    params = jnp.zeros(20000)
    updates, state = optimizer.update(jnp.zeros(20000), optimizer.init(params), params)
    assert abs(float(updates.std()) - 0.5 * 0.1) < 0.002  # sqrt(eta') * epsilon
    again, _ = optimizer.update(jnp.zeros(20000), state, params)
    assert abs(np.corrcoef(updates, again)[0, 1]) < 0.05


@pytest.mark.parametrize("name", ["swa", "ema"])
def test_the_average_is_that_of_the_weights(x64, name):
    """SWA: the mean of the ends of epochs 2, 3, 4; EMA: every step from epoch 1 on."""
    rate = averaging_rate(name, 3, start_epoch=1, decay=0.8)
    optimizer = optax.sgd(0.5)
    step = natural_step(optimizer, average_rate=rate)
    params = in_float64()
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), params)
    kernels, averages = [], []
    for _ in range(12):
        state, _ = step(state, jnp.asarray(IMAGES), jnp.asarray(LABELS), jax.random.key(0))
        kernels.append(np.asarray(state.params["linear"]["kernel"]))
        averages.append(np.asarray(state.average["linear"]["kernel"]))
    if name == "swa":
        expected = np.mean([kernels[5], kernels[8], kernels[11]], axis=0)
    else:
        expected = kernels[2]
        for kernel in kernels[3:]:
            expected = 0.8 * expected + 0.2 * kernel
    np.testing.assert_allclose(averages[-1], expected, rtol=1e-12)
    np.testing.assert_array_equal(averages[2], kernels[2])
    assert np.abs(averages[-1] - kernels[-1]).max() > 1e-3


def test_batch_norm_of_an_average_is_that_of_pytorch(x64):
    """As torch.optim.swa_utils.update_bn: the mean over batches, not the moving one."""
    make = models.BatchNorm

    class Normed(models.Network):
        def __init__(self, layers):
            self.bn = make(3)
            self.linear = layers.dense(3, 2, classifies=True)

        def features(self, images, context):
            return self.bn(images, context).mean((1, 2))

        def classify(self, features, context):
            return self.linear(features)

    model = models.from_network(Normed, name="normed", image_shape=(4, 4, 3), num_classes=2)
    params, stats = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(jax.random.key(0)))
    batches = [RANDOM.normal(0.4, 0.2, (6, 4, 4, 3)) for _ in range(3)]
    stats = jax.tree.map(lambda leaf: leaf + 7.0, stats)  # whatever was there
    found = estimate_batch_stats(model, params, stats, map(jnp.asarray, batches))
    net = nn.Sequential(nn.BatchNorm2d(3).double())
    loader = [torch.tensor(batch).permute(0, 3, 1, 2) for batch in batches]
    torch.optim.swa_utils.update_bn(loader, net)
    np.testing.assert_allclose(found["bn"]["mean"], net[0].running_mean, rtol=1e-10)
    np.testing.assert_allclose(found["bn"]["var"], net[0].running_var, rtol=1e-10)


def test_statistics_that_training_does_not_move_stay_in_an_average(x64):
    """Behind fixed means, BatchNorm's statistics are of what the means leave."""

    class Sparse(models.Network):
        def __init__(self, layers):
            self.sparse = models.MeanSparse(3)
            self.bn = models.BatchNorm(3)
            self.linear = layers.dense(3, 2, classifies=True)

        def features(self, images, context):
            return self.bn(self.sparse(images), context).mean((1, 2))

        def classify(self, features, context):
            return self.linear(features)

    model = models.from_network(Sparse, name="sparse", image_shape=(4, 4, 3), num_classes=2)
    params, stats = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(jax.random.key(0)))
    stats["sparse"] = {
        "mean": jnp.full(3, 0.4),
        "var": jnp.full(3, 0.04),
        "threshold": jnp.asarray(1.0),
    }
    batches = [RANDOM.normal(0.4, 0.2, (6, 4, 4, 3)) for _ in range(3)]
    found = estimate_batch_stats(model, params, stats, map(jnp.asarray, batches))
    left = [np.where(np.abs(batch - 0.4) < 0.2, 0.4, batch) for batch in batches]
    expected = np.mean([batch.var((0, 1, 2), ddof=1) for batch in left], 0)
    np.testing.assert_allclose(found["bn"]["var"], expected, rtol=1e-10)
    np.testing.assert_array_equal(found["sparse"]["mean"], stats["sparse"]["mean"])
    assert found["sparse"]["threshold"] == 1


@pytest.mark.parametrize("tau", [0, 1, 2])
def test_early_stopped_pgd_is_that_of_zhang_et_al(x64, tau):
    """Algorithm 1 of friendly adversarial training, image by image, in PyTorch."""
    params = in_float64()
    net = torch_perceptron(params)
    epsilon, size = 0.3, 0.05
    labels = net(torch.tensor(IMAGES)).argmax(1)  # all right at first
    expected, lengths = [], []
    for image, label in zip(torch.tensor(IMAGES), labels, strict=True):
        x, patience, taken = image[None], tau, 0
        for _ in range(8):
            x = x.detach().requires_grad_()
            output = net(x)
            if output.argmax() != label:
                if patience == 0:
                    break
                patience -= 1
            (gradient,) = torch.autograd.grad(F.cross_entropy(output, label[None]), x)
            moved = (x + size * gradient.sign() - image).clamp(-epsilon, epsilon)
            x, taken = (image + moved).clamp(0, 1), taken + 1
        expected.append(x.detach().numpy()[0])
        lengths.append(taken)
    assert min(lengths) < 8 and len(set(lengths)) > 1  # some stop, at different steps
    seen = {}

    def spy(x, mode):
        seen[mode] = x

    spied = copy.copy(perceptron())
    real = spied.apply

    def apply(params, stats, images, *, mode, key=None):
        if mode == "update":
            jax.debug.callback(lambda x: spy(np.asarray(x), mode), images)
        return real(params, stats, images, mode=mode, key=key)

    object.__setattr__(spied, "apply", apply)
    attack = TrainingAttack(epsilon, 8, "linf", step_size=size, start="none", early_stop=tau)
    step = make_train_step(
        spied, objectives.at(), optax.sgd(0.1), attack=attack, weights=WeightPerturbation("none")
    )
    state = TrainState(jnp.int32(0), params, {}, optax.sgd(0.1).init(params))
    jax.jit(step)(state, jnp.asarray(IMAGES), jnp.asarray(labels.numpy()), jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_allclose(seen["update"], np.stack(expected), atol=1e-12)


def test_self_supervision_is_the_rotation_loss_of_an_auxiliary_head(x64):
    """CE(adversarial) + 0.5 * the mean of CE(rotation) over four rotations, in PyTorch."""
    params = in_float64(auxiliary=4)
    net, head = torch_perceptron(params), nn.Linear(6, 4).double()
    head.weight.data = torch.tensor(np.asarray(params["auxiliary"]["kernel"]).T.copy())
    head.bias.data = torch.tensor(np.asarray(params["auxiliary"]["bias"]))
    adversarial = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    loss = F.cross_entropy(net(torch.tensor(IMAGES)), torch.tensor(LABELS))
    for turns in range(4):
        rotated = torch.rot90(adversarial, turns, (2, 3)).permute(0, 2, 3, 1)
        target = torch.full((12,), turns)
        loss = loss + 0.5 / 4 * F.cross_entropy(head(net[:3](rotated)), target)
    loss.backward()
    step = make_train_step(
        perceptron(4),
        objectives.create("at", rotation_weight=0.5),
        optax.sgd(1.0),
        weights=WeightPerturbation("none"),
    )
    state = TrainState(jnp.int32(0), params, {}, optax.sgd(1.0).init(params))
    after, metrics = jax.jit(step)(
        state,
        jnp.asarray(IMAGES),
        jnp.asarray(LABELS),
        jax.random.key(0),
        adversarial=jnp.asarray(IMAGES),
    )
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-12)
    for name, module in (("auxiliary", head), ("linear", net[3])):
        moved = params[name]["kernel"] - after.params[name]["kernel"]
        np.testing.assert_allclose(moved, module.weight.grad.numpy().T, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "module"), [("silu", nn.SiLU), ("mish", nn.Mish), ("gelu", nn.GELU)]
)
def test_smooth_activations_are_those_of_pytorch(x64, name, module):
    x = np.linspace(-6, 6, 101)
    expected = module()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(models.ACTIVATIONS[name](jnp.asarray(x)), expected, atol=1e-12)


def test_statistics_of_the_training_images_stay_with_the_run(tmp_path, tiny_config):
    random, labels = np.random.default_rng(0), np.repeat(np.arange(4), 12)
    images = random.integers(0, 200, (48, 4, 4, 1)).astype(np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    config = tiny_config("linear", width=None)
    config.data.update(name="npz", path=str(tmp_path / "data.npz"), test_examples=None)
    config.data.update(train_examples=None, validation_examples=0)
    config.evaluation.selection = "test"
    config.model.normalize = True
    train(config, tmp_path / "run", max_steps=1, progress=None)
    expected = images.mean() / 255, images.std() / 255
    np.savez(tmp_path / "data.npz", **arrays | {"x_train": images // 2})  # the data is another
    run = runs.open(tmp_path / "run", dtype=None)
    found = run.experiment.classifier
    np.testing.assert_allclose((*found.mean, *found.std), expected, atol=1e-6)
    # A file sorted by class: all classes are measured on.
    part = run.data("test", 8)
    assert np.bincount(part.labels).tolist() == [2] * 4
