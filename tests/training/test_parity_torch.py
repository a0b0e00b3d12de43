"""The training step against an independent one in PyTorch, written from the papers."""

import dataclasses
import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from awp_jax import models, objectives
from awp_jax.balls import InputBall, WeightBall
from awp_jax.models.preact_resnet import PreActBlock
from awp_jax.training import (
    TrainingAttack,
    TrainState,
    WeightPerturbation,
    make_train_step,
    schedule,
)
from awp_jax.weights import random_displacement

torch = pytest.importorskip("torch")

from torch_reference import Reference, ResidualNet, randomise_batch_norm  # noqa: E402


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    """One thread, which is faster here, and PyTorch's own convolutions.

    In float32 those of oneDNN gave errors of 1% that changed from run to run (torch 2.13, AMD).
    """
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CLASSES = 5
BATCH = 12
RATE = 0.05
MOMENTUM = 0.9
# At the usual 5e-4 one could not see whether weights decay at w or at w + v.
DECAY = 0.05
GAMMA = 0.05
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
# Most of the time here is compilation: less of it, the same numbers.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class SmallNet(models.Network):
    """A stem and two residual blocks, the first with a convolution in its shortcut."""

    def __init__(self, make):
        self.activation = make.activate()
        self.conv1 = make.conv(3, 4, 3, padding=1)
        self.layer1 = nnx.List([PreActBlock(make, 4, 6, 2)])
        self.layer2 = nnx.List([PreActBlock(make, 6, 6, 1)])
        self.bn = make.batch_norm(6)
        self.linear = make.dense(6, CLASSES, classifies=True)

    def features(self, images, context):
        x = self.layer1[0](self.conv1(images), context)
        x = self.layer2[0](x, context)
        return self.activation(self.bn(x, context)).mean((1, 2))

    def classify(self, features, context):
        return self.linear(features)


@functools.cache
def classifier(name):
    shape = {"image_shape": (8, 8, 3), "num_classes": CLASSES}
    if name == "small":
        return models.from_network(SmallNet, name=name, **shape)
    if name == "preact-resnet-10":
        return models.create(name, width=4, **shape)
    return models.create(name, mean=MEAN, std=STD, **shape)


def torch_net(name, dtype):
    torch.manual_seed(0)
    if name == "small":
        net = ResidualNet(4, ((6, 2), (6, 1)), CLASSES)
    elif name == "preact-resnet-10":
        net = ResidualNet(4, ((4, 1), (8, 2), (16, 2), (32, 2)), CLASSES)
    else:
        own = {"names": ("block", "bn1", "fc"), "mean": MEAN, "std": STD}
        net = ResidualNet(16, ((16, 1), (32, 2), (64, 2)), CLASSES, **own)
    randomise_batch_norm(net, 1)
    return net.to(getattr(torch, dtype))


def as_trees(net):
    """Parameters and running statistics as nested dicts of numpy arrays, in JAX's layouts."""
    params, statistics = {}, {}

    def put(tree, path, name, value):
        for part in path:
            tree = tree.setdefault(part, {})
        tree[name] = value.detach().numpy().copy()

    for name, module in net.named_modules():
        path = name.split(".")
        if isinstance(module, torch.nn.Conv2d):
            put(params, path, "kernel", module.weight.permute(2, 3, 1, 0))
        elif isinstance(module, torch.nn.Linear):
            put(params, path, "kernel", module.weight.T)
            put(params, path, "bias", module.bias)
        elif isinstance(module, torch.nn.BatchNorm2d):
            put(params, path, "scale", module.weight)
            put(params, path, "bias", module.bias)
            put(statistics, path, "mean", module.running_mean)
            put(statistics, path, "var", module.running_var)
    return params, statistics


@functools.cache
def batches(count, dtype):
    """``count`` batches of images, labels, fixed adversarial images and starts of an attack."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        images = rng.uniform(0, 1, (BATCH, 8, 8, 3))
        labels = rng.integers(0, CLASSES, BATCH)
        adversarial = np.clip(images + rng.uniform(-0.2, 0.2, images.shape), 0, 1)
        start = images + 0.001 * rng.normal(size=images.shape)
        drawn.append((images.astype(dtype), labels, adversarial.astype(dtype), start.astype(dtype)))
    return drawn


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides are told."""

    objective: str = "at"
    weight_steps: int = 1
    alternations: int = 1
    size: str = "l2"
    net: str = "small"
    dtype: str = "float64"
    gamma: float = GAMMA
    method: str = "awp"
    attack: str = "fixed"  # or the norm of the ball
    batch_norm: str = "batch"
    start: str = "none"
    count: int = 10

    def __str__(self):
        words = [self.objective, f"K2={self.weight_steps}", f"A={self.alternations}", self.size]
        words += [self.net, self.dtype, self.method, self.attack]
        return "-".join(words + ([self.batch_norm, self.start] if self.attack != "fixed" else []))


WEIGHT = {"trades": 6.0, "mart": 5.0}
RADII = {"fixed": (0.0, 0.0), "linf": (8 / 255, 3 / 255), "l2": (128 / 255, 60 / 255)}
K1 = 3


class Drawn(InputBall):
    """Starts at points that were drawn before, so that both sides start at the same ones."""

    def __init__(self, points):
        super().__init__()
        object.__setattr__(self, "points", points)

    def start(self, key, centre):
        return jnp.asarray(self.points)


@functools.cache
def ours(case):
    """``[(params, statistics, loss)]`` after each step."""
    epsilon, step_size = RADII[case.attack]
    objective = objectives.create(case.objective, beta=WEIGHT["trades"], lambda_=WEIGHT["mart"])
    with jax.enable_x64(case.dtype == "float64"):
        optimizer = optax.chain(
            optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM)
        )
        model = classifier(case.net)
        params, statistics = as_trees(torch_net(case.net, case.dtype))
        expected = jax.eval_shape(model.init, jax.random.key(0))
        assert jax.tree.map(np.shape, (params, statistics)) == jax.tree.map(np.shape, expected)
        params, statistics = jax.tree.map(jnp.asarray, (params, statistics))
        state = TrainState(jnp.int32(0), params, statistics, optimizer.init(params))
        data = batches(case.count, case.dtype)
        step = make_train_step(
            model,
            objective,
            optimizer,
            attack=TrainingAttack(
                norm="linf" if case.attack == "fixed" else case.attack,
                epsilon=epsilon,
                steps=K1,
                step_size=step_size,
                start=Drawn(data[0][3]) if case.start == "given" else "none",
                batch_norm=case.batch_norm if case.attack != "fixed" else None,
            ),
            weights=WeightPerturbation(
                "awp" if case.method == "off" else case.method,
                ball=WeightBall(
                    case.gamma, case.size, "global" if case.method == "rwp" else "leaf"
                ),
                steps=case.weight_steps,
                alternations=case.alternations,
            ),
        )
        step = functools.partial(step, perturb_weights=case.method != "off")
        step = jax.jit(step, compiler_options=QUICK)
        history = []
        for images, labels, adversarial, _ in data:
            given = jnp.asarray(adversarial) if case.attack == "fixed" else None
            state, metrics = step(
                state,
                jnp.asarray(images),
                jnp.asarray(labels),
                jax.random.key(7),
                adversarial=given,
            )
            assert all(leaf.dtype == case.dtype for leaf in jax.tree.leaves(state.params))
            trees = jax.tree.map(np.asarray, (state.params, state.batch_stats))
            history.append((*trees, float(metrics["loss"])))
        assert int(state.step) == case.count
        return history


def theirs(case, mistake=""):
    epsilon, step_size = RADII[case.attack]
    net = torch_net(case.net, case.dtype)
    reference = Reference(
        objective=case.objective,
        weight=WEIGHT.get(case.objective, 0.0),
        gamma=case.gamma if case.method == "awp" else 0.0,
        weight_steps=case.weight_steps,
        alternations=case.alternations,
        size={"l1": 1, "l2": 2}[case.size],
        norm=case.attack,
        epsilon=epsilon,
        attack_steps=K1,
        step_size=step_size,
        attack_batch_norm=case.batch_norm,
        mistake=mistake,
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    history = []
    for images, labels, adversarial, start in batches(case.count, case.dtype):
        loss = reference.step(
            net,
            optimizer,
            torch.tensor(images).permute(0, 3, 1, 2),
            torch.tensor(labels),
            torch.tensor(adversarial).permute(0, 3, 1, 2) if case.attack == "fixed" else None,
            torch.tensor(start).permute(0, 3, 1, 2) if case.start == "given" else None,
        )
        history.append((*as_trees(net), loss))
    return history


def deviation(tree, reference):
    """The norm of the difference of two trees, relative to that of the second.

    Of whole trees: weights that a BatchNorm makes ineffective have gradients of rounding errors.
    """
    assert jax.tree.structure(tree) == jax.tree.structure(reference)
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    pairs = [(np.float64(a), np.float64(b)) for a, b in leaves]
    differences = [(np.sum((a - b) ** 2), np.sum(b**2)) for a, b in pairs]
    return math.sqrt(sum(d for d, _ in differences) / sum(s for _, s in differences))


def compare(case):
    for place, (mine, reference) in enumerate(zip(ours(case), theirs(case), strict=True)):
        tolerance = TOLERANCE[case.dtype]
        found = [deviation(mine[i], reference[i]) for i in (0, 1)]
        found.append(abs(mine[2] - reference[2]) / abs(reference[2]))
        if place in (0, case.count - 1):  # shown by pytest -rP
            print(f"step {place + 1}:", " ".join(f"{value:.1e}" for value in found))
        assert max(found) < tolerance, (place, found)


# Every value of every option, and both ways around the loops of the ascent: alternations and steps
# together (three by two, so that their product is not their sum), steps of a loss of two passes.
FIXED = [
    Case("at"),
    Case("at", weight_steps=3, alternations=2, size="l1"),
    Case("trades", weight_steps=2),
    Case("trades"),
    Case("mart", size="l1"),
    Case("at", dtype="float32"),
    Case("mart", dtype="float32"),
    Case("at", net="preact-resnet-10", count=2),
    Case("at", net="wrn-10-1", count=2),
]


@pytest.mark.parametrize("case", FIXED, ids=str)
def test_one_and_more_steps_with_fixed_adversarial_images(case):
    compare(case)


ATTACKED = [
    Case("at", attack="linf", alternations=2, count=1),
    Case("at", attack="l2", batch_norm="released", count=2),
    Case("trades", attack="linf", batch_norm="running", start="given", alternations=2, count=1),
    Case("trades", attack="l2", batch_norm="running", start="given", count=1),
    Case("mart", attack="linf", batch_norm="running", count=1),
]


@pytest.mark.parametrize("case", ATTACKED, ids=str)
def test_a_step_with_its_own_attack(case):
    compare(case)


MISTAKES = [
    (Case("at"), "decay at w", 0),
    (Case("at"), "ascent moves statistics", 1),
    (Case("at"), "all perturbed", 0),
    (Case("at", dtype="float32"), "decay at w", 0),
    (Case("trades"), "decay at w", 0),
    (Case("trades"), "adversarial first", 1),
    (Case("trades"), "clean side detached", 0),
    (Case("mart", size="l1"), "decay at w", 0),
]


@pytest.mark.parametrize(("case", "mistake", "where"), MISTAKES)
def test_the_comparison_notices(case, mistake, where):
    found = deviation(ours(case)[-1][where], theirs(case, mistake)[-1][where])
    print(f"deviation: {found:.1e}")
    assert found > {"float64": 1e4, "float32": 10}[case.dtype] * TOLERANCE[case.dtype]


@pytest.mark.parametrize(
    "case",
    [
        Case("natural", method="none"),
        Case("at", method="awp", gamma=0.0),
        Case("at", method="off"),
    ],
    ids=str,
)
def test_without_a_perturbation_it_is_plain_sgd(case):
    compare(case)


def by_name(tree):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def assert_on_sphere(displacement, params):
    for name, v in by_name(displacement).items():
        w = by_name(params)[name]
        expected = GAMMA * np.linalg.norm(w) if w.ndim > 1 else 0.0
        np.testing.assert_allclose(np.linalg.norm(v), expected, rtol=1e-12, err_msg=name)


def test_random_displacement_is_on_the_sphere(x64):
    params = jax.tree.map(jnp.asarray, as_trees(torch_net("small", "float64"))[0])
    draw = jax.jit(lambda key: random_displacement(params, key, GAMMA), compiler_options=QUICK)
    first, second = draw(jax.random.key(0)), draw(jax.random.key(1))
    assert_on_sphere(first, params)
    assert deviation(first, second) > 1


def test_random_perturbation_in_a_step(x64):
    """The optimiser is handed w + v on the sphere, and the loss is that of w + v."""
    images, labels, adversarial, _ = batches(1, "float64")[0]
    net = torch_net("small", "float64")
    params, statistics = jax.tree.map(jnp.asarray, as_trees(net))
    # An optimiser whose update is what it was handed: afterwards there is w + (w + v).
    show = optax.GradientTransformation(lambda p: (), lambda grads, state, p: (p, state))
    step = make_train_step(
        classifier("small"),
        objectives.at(),
        show,
        weights=WeightPerturbation("random", GAMMA),
    )
    step = jax.jit(step, compiler_options=QUICK)
    state = TrainState(jnp.int32(0), params, statistics, ())
    state, metrics = step(
        state, images, labels, jax.random.key(7), adversarial=jnp.asarray(adversarial)
    )
    v = jax.tree.map(lambda new, w: new - 2 * w, state.params, params)
    assert_on_sphere(v, params)

    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                d = v
                for part in name.split("."):
                    d = d[part]
                d = torch.tensor(np.asarray(d["kernel"]))
                module.weight += d.permute(3, 2, 0, 1) if d.ndim == 4 else d.T
        logits = net.train()(torch.tensor(adversarial).permute(0, 3, 1, 2))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    assert abs(float(metrics["loss"]) - loss.item()) < 1e-9 * loss.item()
    assert deviation(state.batch_stats, as_trees(net)[1]) < 1e-9


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_torch(x64, nesterov):
    rng = np.random.default_rng(0)
    optimizer = optax.chain(
        optax.add_decayed_weights(DECAY),
        optax.sgd(schedule("piecewise", 0.1, 2, 5), momentum=MOMENTUM, nesterov=nesterov),
    )
    w = rng.normal(size=(3, 4))
    params = jnp.asarray(w)
    state = optimizer.init(params)
    parameter = torch.nn.Parameter(torch.tensor(w))
    sgd = torch.optim.SGD(
        [parameter], lr=0.1, momentum=MOMENTUM, weight_decay=DECAY, nesterov=nesterov
    )
    for step in range(10):
        gradient = rng.normal(size=w.shape)
        # Ten steps in two epochs: the drops are at epochs 1 and 1.5.
        t = fractions.Fraction(step + 1, 5)
        sgd.param_groups[0]["lr"] = 0.1 if t < 1 else 0.01 if t < 1.5 else 0.001
        parameter.grad = torch.tensor(gradient)
        sgd.step()
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=1e-13, atol=1e-14)


def rates(rate, steps):
    return np.asarray(jax.jit(jax.vmap(rate))(jnp.arange(steps, dtype=jnp.int32)))


def fractional_epochs(epochs, length):
    """Exactly, for every step: epoch + (i + 1) / len."""
    return [e + fractions.Fraction(i + 1, length) for e in range(epochs) for i in range(length)]


# 391: batches of 128 in 50,000 images, the smaller last one kept.
@pytest.mark.parametrize(("epochs", "length"), [(200, 391), (200, 1), (30, 7), (7, 3), (3, 10)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_piecewise_drops_at_exactly_its_step(epochs, length, dtype):
    with jax.enable_x64(dtype == "float64"):
        found = rates(schedule("piecewise", 0.1, epochs, length), epochs * length)
    half, three_quarters = fractions.Fraction(epochs, 2), fractions.Fraction(3 * epochs, 4)
    expected = [
        0.1 if t < half else 0.01 if t < three_quarters else 0.001
        for t in fractional_epochs(epochs, length)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("milestones", [(75, 90, 100), (60, 90, 120), (100,)])
def test_piecewise_at_other_epochs(milestones):
    """TRADES' and the flatness study's drops, given as fractions of all epochs."""
    epochs, length = 150, 17
    as_fractions = tuple(m / epochs for m in milestones)
    rate = schedule("piecewise", 0.1, epochs, length, milestones=as_fractions)
    found = rates(rate, epochs * length)
    expected = [
        0.1 * 0.1 ** sum(t >= m for m in milestones) for t in fractional_epochs(epochs, length)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


FORMULAS = {
    "constant": lambda t, T: 0.2,
    "cosine": lambda t, T: 0.5 * 0.2 * (1 + math.cos(math.pi * t / T)),
    "cyclic": lambda t, T: np.interp(t, [0, 0.4 * T, T], [0, 0.2, 0]),
    "linear": lambda t, T: np.interp(t, [0, T // 3, T * 2 // 3, T], [0.2, 0.2, 0.02, 0.002]),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_smooth_schedules(name):
    for epochs, length in ((200, 11), (30, 7)):
        found = rates(schedule(name, 0.2, epochs, length), epochs * length)
        times = [float(t) for t in fractional_epochs(epochs, length)]
        expected = [FORMULAS[name](t, epochs) for t in times]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_cyclic_peaks_at_epoch_80_of_200():
    found = rates(schedule("cyclic", 0.2, 200, 5), 1000)
    assert found.argmax() == 80 * 5 - 1
    np.testing.assert_allclose(found.max(), 0.2, rtol=1e-6)
