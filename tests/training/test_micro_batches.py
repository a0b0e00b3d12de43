"""A batch in parts: the step of the whole batch, in the memory of a part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from longer import longer
from small_run import goes_on_bit_by_bit

from awp_jax import models, objectives
from awp_jax.parts import Parts as Given
from awp_jax.training import (
    Regularisation,
    TrainingAttack,
    WeightPerturbation,
    build,
    init_state,
    make_train_step,
    read_metrics,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BATCH, GROUPS, CLASSES = 16, 4, 3
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(size=(BATCH, 4, 4, 1))
LABELS = RANDOM.integers(0, CLASSES, BATCH).astype(np.int32)
WEIGHTS = RANDOM.uniform(0.2, 2.0, BATCH)
ATTACK = TrainingAttack(0.1, 2, "linf", step_size=0.05)


class DenseNet(models.Network):
    """A dense network with BatchNorm and dropout: quick to compile."""

    def __init__(self, make, dropout=0.0):
        self.activation = make.activate()
        self.dropout_rate = dropout
        self.hidden = make.dense(16, 8)
        self.bn = make.batch_norm(8)
        self.linear = make.dense(8, CLASSES, classifies=True)

    def features(self, images, context):
        x = self.hidden(images.reshape(images.shape[0], -1))
        x = self.activation(self.bn(x, context))
        return context.dropout(x, self.dropout_rate)

    def classify(self, features, context):
        return self.linear(features)


def classifier_of(groups, axis_name=None, dropout=0.0):
    return models.from_network(
        functools.partial(DenseNet, dropout=dropout),
        name="dense",
        image_shape=(4, 4, 1),
        num_classes=CLASSES,
        batch_norm_groups=groups,
        axis_name=axis_name,
    )


def optimizer():
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.5, 0.9))


@functools.cache
def first_state(class_means=False):
    """Random numbers in float64."""
    init = functools.partial(init_state, classifier_of(1), optimizer(), class_means=class_means)
    random = np.random.default_rng(1)

    def filled(leaf):
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return np.zeros((), np.int32) if whole else random.uniform(-0.5, 1.0, leaf.shape)

    state = jax.tree.map(filled, jax.eval_shape(init, jax.random.key(0)))
    return state._replace(batch_stats=jax.tree.map(np.abs, state.batch_stats))


def step_of(case, parts, **more):
    """The step with BatchNorm in as many groups of the whole batch, however it is cut."""
    settings = {"attack": ATTACK, **CASES[case]}
    options, dropout = settings.pop("options", {}), settings.pop("dropout", 0.0)
    classifier = classifier_of(GROUPS // parts, more.get("axis_name"), dropout)
    step = make_train_step(
        classifier, optimizer=optimizer(), micro_batches=parts, **settings, **more
    )
    if settings["objective"].teacher:
        state = first_state()
        teacher = classifier_of(1).logits_fn(state.params, state.batch_stats)
        options = {**options, "teacher": teacher}
    return functools.partial(step, **options)


def run(case, step, weights=WEIGHTS, labels=LABELS):
    """State and metrics after two steps."""
    state = first_state(CASES[case]["objective"].class_temperature is not None)
    for _ in range(2):
        state, metrics = step(state, IMAGES, labels, jax.random.key(2), example_weights=weights)
    return jax.tree.map(np.asarray, (state, metrics))


def assert_close(found, expected, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


AWP, RWP = WeightPerturbation("awp", 0.1), WeightPerturbation("rwp", 0.1, steps=3, c_min=1.1)
CASES = {
    "at, two steps of a range": {
        "objective": objectives.at(),
        "weights": WeightPerturbation("awp", 0.1, steps=2, loss_range=(0.0, 1.3)),
        "dropout": 0.4,
    },
    "trades, two alternations": {
        "objective": objectives.trades(),
        "weights": WeightPerturbation("awp", 0.1, alternations=2),
        "regularisation": Regularisation(l1=1e-3, l2=1e-2),
    },
    "mart": {"objective": objectives.mart(), "weights": AWP},
    "natural": {"objective": objectives.natural(), "weights": None},
    "shared": {
        "objective": objectives.at(),
        "weights": WeightPerturbation("awp", 0.1, shared_backward=True),
    },
    "rwp, released statistics": {
        "objective": objectives.at(),
        "weights": RWP,
        "attack": TrainingAttack(
            0.1, 2, "linf", step_size=0.05, batch_norm="released", early_stop=1
        ),
    },
    "random": {"objective": objectives.at(), "weights": WeightPerturbation("random", 0.1)},
    "ard": {"objective": objectives.ard(0.9, 5.0), "weights": AWP},
    "hat": {"objective": objectives.hat(), "weights": AWP},
    "ikl": {"objective": objectives.ikl(), "weights": AWP, "steps_per_epoch": 2},
}


@functools.cache
def whole(case):
    return run(case, jax.jit(step_of(case, 1, unroll=False)))


@pytest.mark.parametrize(("parts", "unroll"), [(4, False), *longer((2, None))])
@pytest.mark.parametrize("case", CASES)
def test_parts_are_the_whole_batch(x64, case, parts, unroll):
    assert_close(run(case, jax.jit(step_of(case, parts, unroll=unroll))), whole(case))


def test_the_parts_of_a_step_outside_jit(x64):
    case = "rwp, released statistics"
    assert_close(run(case, step_of(case, 4)), whole(case))


def test_distributions_for_labels(x64):
    soft = RANDOM.dirichlet(np.ones(CLASSES), BATCH)
    case = "trades, two alternations"
    found, expected = (
        run(case, jax.jit(step_of(case, parts, unroll=False)), labels=soft) for parts in (4, 1)
    )
    assert_close(found, expected)


@pytest.mark.parametrize("case", ["ikl", *longer("shared", "mart", "rwp, released statistics")])
def test_padding_is_none_of_the_parts(x64, case):
    """The last part has one example, or none; each group is a part, and they move alike."""
    for real in (13, 9, 8):
        mask = np.arange(BATCH) < real
        found, expected = (
            run(case, jax.jit(functools.partial(step_of(case, n, unroll=False), mask=mask)), None)
            for n in (4, 1)
        )
        assert_close(found, expected)


def by_shard_map(step, devices):
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    split = P("data")

    def positional(state, images, labels, key, weights):
        return step(state, images, labels, key, example_weights=weights)

    specs = (P(), split, split, P(), split)
    mapped = jax.jit(jax.shard_map(positional, mesh=mesh, in_specs=specs, out_specs=P()))
    return lambda *args, example_weights: mapped(*args, example_weights)


def by_sharding(step, mesh):
    """Plain jit over the mesh, the batch split."""
    split = jax.sharding.NamedSharding(mesh, P("data"))
    compiled = jax.jit(step)

    def call(state, images, labels, key, example_weights):
        rows = jax.device_put((images, labels, example_weights), split)
        everywhere = jax.sharding.NamedSharding(mesh, P())
        state, key = jax.device_put((state, key), everywhere)
        return compiled(state, rows[0], rows[1], key, example_weights=rows[2])

    return call


# In parts of one group, whose statistics all devices share, and of as many groups as devices.
@pytest.mark.parametrize(
    ("case", "parts", "devices"),
    [
        ("at, two steps of a range", 4, 4),
        ("rwp, released statistics", 4, 2),
        *longer(("at, two steps of a range", 2, 2), ("shared", 2, 2)),
        ("ikl", 4, 2),
        ("ard", 2, 2),
    ],
)
@pytest.mark.parametrize("way", ["mapped", "sharded"])
def test_the_number_of_devices_changes_nothing(x64, case, parts, devices, way):
    if way == "mapped":
        step = by_shard_map(step_of(case, parts, axis_name="data", unroll=False), devices)
    else:
        mesh = jax.make_mesh(
            (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
        )
        step = by_sharding(step_of(case, parts, mesh=mesh, unroll=False), mesh)
    assert_close(run(case, step), whole(case), 1e-11)


@pytest.mark.parametrize("unroll", [False, *longer(True)])
def test_memory_is_that_of_a_part(unroll):
    classifier = models.create("mnist-cnn", image_shape=(28, 28, 1), num_classes=10)
    made = optax.sgd(0.1)

    def needed(parts, objective):
        step = make_train_step(
            classifier, objective, made, attack=ATTACK, micro_batches=parts, unroll=unroll
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        compiled = (
            jax.jit(step)
            .lower(
                jax.eval_shape(lambda key: init_state(classifier, made, key), key),
                jax.ShapeDtypeStruct((128, 28, 28, 1), jnp.float32),
                jax.ShapeDtypeStruct((128,), jnp.int32),
                key,
            )
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    # The parameters, w + v and gradients are what they were.
    assert needed(8, objectives.at()) < 0.4 * needed(1, objectives.at())


def test_an_own_perturbation_finds_the_whole_batch(x64):
    def own(ascent, ball):
        gradient = jax.grad(lambda p: ascent.losses_fn(p)[0].mean())(ascent.params)
        return ball.step(ascent.params, ball.start(None, ascent.params), gradient, 0.1)

    step = functools.partial(
        make_train_step,
        objective=objectives.at(),
        optimizer=optimizer(),
        attack=ATTACK,
        unroll=False,
    )
    made = WeightPerturbation(own, 0.1)
    found = run("mart", jax.jit(step(classifier_of(1), weights=made, micro_batches=4)))
    assert_close(found, run("mart", jax.jit(step(classifier_of(4), weights=AWP))))


def test_what_cannot_be_cut_is_one_sentence():
    make = functools.partial(make_train_step, classifier_of(1), optimizer=optimizer())
    for objective, match in (
        (objectives.create("at", gradient_alignment=0.2), "gradient_alignment is 0.2, whose mean"),
        (objectives.create("at", rotation_weight=0.5), "rotation_weight is 0.5, whose rotated"),
    ):
        with pytest.raises(ValueError, match=f"micro_batches is 2, but {match}"):
            make(objective, micro_batches=2)
    with pytest.raises(ValueError, match="micro_batches"):
        make(objectives.at(), micro_batches=0)
    step = make(objectives.at(), micro_batches=3)
    with pytest.raises(ValueError, match="A batch of 16 examples was given, which 3 micro-batches"):
        step(first_state(), IMAGES, LABELS, jax.random.key(0))


def test_a_run_in_parts_goes_on_bit_by_bit(tmp_path, tiny_config):
    config = tiny_config(width=128)
    config.attack.epsilon, config.attack.step_size = "0.05", "0.03"
    config.epochs, config.data.train_examples = 12, 400
    config.optimizer.micro_batches, config.optimizer.learning_rate = 4, 0.3
    config.schedule.name, config.weights.gamma = "cyclic", "0.005"
    goes_on_bit_by_bit(config, tmp_path)
    last = [r for r in read_metrics(tmp_path / "whole") if r["kind"] == "evaluation"][-1]
    assert last["test"]["clean_accuracy"] > 0.7


def grouped(image_shape, num_classes, batch_norm_groups):
    return models.from_network(
        functools.partial(Digits, classes=num_classes),
        name="digits",
        image_shape=image_shape,
        num_classes=num_classes,
        batch_norm_groups=batch_norm_groups,
    )


class Digits(DenseNet):
    def __init__(self, make, classes):
        super().__init__(make)
        self.hidden, self.linear = make.dense(64, 8), make.dense(8, classes, classifies=True)


def epoch_of(config, devices=1):
    """The state after an epoch."""
    experiment = build(config, given=Given(model=grouped), devices=devices)
    state = experiment.init()
    for step in range(experiment.steps_per_epoch):
        state, _ = experiment.step(
            state,
            *experiment.on_devices(),
            experiment.order(0),
            experiment.key,
            batch_size=experiment.rows_of(step),
            perturb_weights=True,
        )
    return experiment, state


def test_the_parts_of_a_config_have_their_share_of_the_groups(tiny_config):
    config = tiny_config("test:grouped", width=None)
    config.model.batch_norm_groups = 4
    config.attack.steps = 0  # a sign flips by rounding
    config.objective.name = "trades"
    _, expected = epoch_of(config)
    for parts, devices in ((4, 1), (2, 2)):
        config.optimizer.micro_batches = parts
        experiment, found = epoch_of(config, devices)
        assert not experiment.padded  # the last batch has 16 examples, which groups share equally
        assert_close(found, expected, 2e-5)
    config.data.train_examples = 78
    assert build(config, given=Given(model=grouped)).padded
    expected, found = (epoch_of(config, devices)[1] for devices in (1, 2))
    assert_close(found, expected, 2e-5)


def test_what_a_config_cannot_cut_is_one_sentence(tmp_path, tiny_config):
    def refused(match, devices=1, **changes):
        config = tiny_config("linear", width=None)
        config.optimizer.micro_batches = 4
        config.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=match) as found:
            train(config, tmp_path / "run", progress=None, devices=devices)
        assert "\n" not in str(found.value) and not (tmp_path / "run").exists()

    what = "optimizer.micro_batches is 4, but "
    refused(f"{what}batch_size is 30: a divisor", batch_size=30)
    refused(f"{what}model.batch_norm_groups is 6: 1", **{"model.batch_norm_groups": 6})
    refused(f"{what}objective.rotation_weight is 0.5", **{"objective.rotation_weight": 0.5})
    refused(f"{what}objective.gradient_alignment is 0.2", **{"objective.gradient_alignment": 0.2})
    refused(
        f"{what}the last batch of an epoch has 14 examples",
        **{"data.mixup": 1.0, "data.train_examples": 78},
    )
    refused("which leaves 4 images for a part, and 8 devices", 8, **{"optimizer.micro_batches": 8})
    refused("optimizer.micro_batches is 0", **{"optimizer.micro_batches": 0})


def test_a_plain_step_is_that_of_pytorch(x64):
    """Gradients of parts added up by hand, each with BatchNorm statistics of its own."""
    torch = pytest.importorskip("torch")
    parts, rate = 4, 0.3
    state = first_state()._replace(opt_state=())
    net = torch.nn.Sequential(
        torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ).double()
    hidden, bn, _, linear = net
    names = {hidden: "hidden", linear: "linear"}
    for layer, name in names.items():
        layer.weight.data = torch.tensor(state.params[name]["kernel"].T.copy())
        layer.bias.data = torch.tensor(state.params[name]["bias"])
    bn.weight.data = torch.tensor(state.params["bn"]["scale"])
    bn.bias.data = torch.tensor(state.params["bn"]["bias"])
    adversarial = np.clip(IMAGES + 0.05 * np.sign(RANDOM.normal(size=IMAGES.shape)), 0, 1)
    sgd, size = torch.optim.SGD(net.parameters(), lr=rate), BATCH // parts
    for first in range(0, BATCH, size):
        rows = torch.tensor(adversarial[first : first + size]).flatten(1)
        labels = torch.tensor(LABELS[first : first + size], dtype=torch.long)
        (torch.nn.functional.cross_entropy(net(rows), labels) / parts).backward()
    sgd.step()
    made = optax.sgd(rate)
    step = make_train_step(
        classifier_of(1), objectives.at(), made, weights=None, micro_batches=parts
    )
    state = state._replace(opt_state=made.init(state.params))
    after, _ = jax.jit(step)(state, IMAGES, LABELS, jax.random.key(0), adversarial=adversarial)
    for layer, name in names.items():
        np.testing.assert_allclose(
            after.params[name]["kernel"], layer.weight.detach().numpy().T, rtol=1e-10, atol=1e-12
        )
    np.testing.assert_allclose(
        after.params["bn"]["scale"], bn.weight.detach().numpy(), rtol=1e-10, atol=1e-12
    )
