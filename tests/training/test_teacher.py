"""Objectives that learn from another run: whole steps against PyTorch, runs on digits, refusals."""

import copy
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import goes_on_bit_by_bit

from awp_jax import models, objectives, training
from awp_jax.training import TrainState, WeightPerturbation, make_train_step, train

torch = pytest.importorskip("torch")
functional = torch.nn.functional
RANDOM = np.random.default_rng(0)
SHAPE, CLASSES, RATE, GAMMA = (3, 3, 1), 4, 0.1, 0.05
IMAGES = RANDOM.uniform(size=(6, *SHAPE))
ATTACKED = np.clip(IMAGES + RANDOM.uniform(-0.2, 0.2, IMAGES.shape), 0, 1)
LABELS = RANDOM.integers(0, CLASSES, 6)


def linear(seed):
    """A linear model in float64, and its parameters, as arrays and in PyTorch."""
    model = models.create("linear", image_shape=SHAPE, num_classes=CLASSES)
    params = model.init(jax.random.key(seed))[0]
    leaves, tree = jax.tree.flatten(params)
    drawn = [np.random.default_rng(seed).normal(size=leaf.shape) for leaf in leaves]
    params = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in drawn])
    kernel, bias = (next(torch.tensor(x) for x in drawn if x.ndim == n) for n in (2, 1))
    return model, params, kernel, bias


def torch_loss(name, student, teacher):
    """The formulas of the released code, but for the mean over classes of ARD's divergence."""
    clean, attacked = torch.tensor(IMAGES), torch.tensor(ATTACKED)
    labels = torch.tensor(LABELS)
    if name == "ard":
        divergence = functional.kl_div(
            functional.log_softmax(student(attacked) / 7.0, dim=1),
            functional.softmax(teacher(clean) / 7.0, dim=1),
            reduction="batchmean",
        )
        natural = functional.cross_entropy(student(clean), labels)
        return 0.6 * 7.0 * 7.0 * divergence + (1.0 - 0.6) * natural
    helper, seen = clean + 3.0 * (attacked - clean), teacher(attacked).argmax(dim=1)
    divergence = functional.kl_div(
        functional.log_softmax(student(attacked), dim=1),
        functional.softmax(student(clean), dim=1),
        reduction="batchmean",
    )
    natural = functional.cross_entropy(student(clean), labels)
    return natural + 2.5 * divergence + 0.5 * functional.cross_entropy(student(helper), seen)


@pytest.mark.parametrize("method", ["none", "awp"])
@pytest.mark.parametrize("name", ["ard", "hat"])
def test_a_step_is_that_of_pytorch(x64, name, method):
    model, params, kernel, bias = linear(1)
    _, taught, *others = linear(2)

    def logits(kernel, bias, x):
        return x.flatten(1) @ kernel + bias

    def gradients(kernel, bias):
        weights = [w.clone().requires_grad_() for w in (kernel, bias)]
        teacher = functools.partial(logits, *others)
        torch_loss(name, functools.partial(logits, *weights), teacher).backward()
        return [w.grad for w in weights]

    v = torch.zeros_like(kernel)
    if method == "awp":  # biases stay, eq. 10
        ascent = gradients(kernel, bias)[0]
        v = GAMMA * kernel.norm() / ascent.norm() * ascent
    expected = [
        w - RATE * g for w, g in zip((kernel, bias), gradients(kernel + v, bias), strict=True)
    ]
    objective = objectives.create(name, beta=2.5, alpha=0.6, temperature=7.0, helper_scale=3.0)
    optimizer = optax.sgd(RATE)
    step = make_train_step(
        model, objective, optimizer, weights=WeightPerturbation(method, gamma=GAMMA)
    )
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params))
    after, _ = jax.jit(step)(
        state,
        jnp.asarray(IMAGES),
        jnp.asarray(LABELS),
        jax.random.key(0),
        adversarial=jnp.asarray(ATTACKED),
        teacher=model.logits_fn(taught, {}),
    )
    found = {leaf.ndim: leaf for leaf in jax.tree.leaves(after.params)}
    np.testing.assert_allclose(found[2], expected[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-10, atol=1e-12)


def test_a_step_needs_a_teacher_where_one_is_learnt_from():
    model = models.create("linear", image_shape=SHAPE, num_classes=CLASSES)
    optimizer = optax.sgd(RATE)
    state = training.init_state(model, optimizer, jax.random.key(0))
    arguments = state, jnp.asarray(IMAGES, jnp.float32), jnp.asarray(LABELS), jax.random.key(0)
    with pytest.raises(ValueError, match="teacher is None, but ard learns from one"):
        make_train_step(model, objectives.ard(), optimizer)(*arguments)
    with pytest.raises(ValueError, match="but at learns from none"):
        make_train_step(model, objectives.at(), optimizer)(*arguments, teacher=lambda x: x)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run on digits that is no beginner."""
    from small_run import tiny_config

    config = tiny_config(width=64, method="none")
    config.objective.name, config.optimizer.learning_rate = "natural", 0.2
    config.schedule.name = "cyclic"
    config.epochs, config.data.train_examples = 12, 400
    config.evaluation.train_examples = 0
    workdir = tmp_path_factory.mktemp("teachers") / "natural"
    train(config, workdir, progress=None)
    return workdir


def taught_config(tiny_config, name, teacher):
    config = tiny_config(width=128)
    config.attack.epsilon, config.attack.step_size = "0.05", "0.03"
    config.objective.name, config.objective.teacher = name, str(teacher)
    config.epochs, config.data.train_examples = 12, 400
    config.optimizer.learning_rate = 0.2 if name == "ard" else 0.05
    config.schedule.name = "cyclic"
    if name == "ard":
        config.objective.alpha, config.objective.temperature = 0.9, 5.0
        config.objective.label_smoothing = 0.1
    return config


@pytest.mark.parametrize("name", ["ard", "hat"])
def test_a_student_learns_and_goes_on_bit_by_bit(tmp_path, tiny_config, teacher, name):
    config = taught_config(tiny_config, name, teacher)
    goes_on_bit_by_bit(config, tmp_path)
    assert training.read_metrics(teacher)[-1]["test"]["clean_accuracy"] > 0.8
    last = [r for r in training.read_metrics(tmp_path / "whole") if r["kind"] == "evaluation"][-1]
    assert last["test"]["clean_accuracy"] > 0.7


def test_the_teacher_is_an_argument_and_in_no_checkpoint(tmp_path, tiny_config, teacher):
    config = taught_config(tiny_config, "ard", teacher)
    experiment = training.with_teacher(training.build(config))
    plain = tiny_config(width=128)
    assert jax.tree.structure(experiment.abstract_state()) == jax.tree.structure(
        training.build(plain).abstract_state()
    )
    order, count = experiment.order(0), sum(x.size for x in jax.tree.leaves(experiment.teacher))
    step = experiment.step
    lowered = step.func.lower(
        experiment.init(),
        *experiment.on_devices(),
        order,
        experiment.key,
        batch_size=32,
        perturb_weights=True,
        **step.keywords,
    )
    # Each array of the teacher is a parameter of the program; its constants are small.
    assert len(jax.tree.leaves(experiment.teacher)) > 4 and count > 1000
    text = lowered.as_text()
    constants = [line for line in text.splitlines() if 'stablehlo.constant dense<"' in line]
    assert sum(map(len, constants)) < 4 * count


def test_what_cannot_teach_is_refused_before_anything_is_written(tmp_path, tiny_config, teacher):
    def refused(match, **changes):
        config = taught_config(tiny_config, "hat", teacher)
        config.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=match) as found:
            train(config, tmp_path / "student", progress=None)
        assert "\n" not in str(found.value) and not (tmp_path / "student").exists()

    refused("objective.teacher is None, but the directory", **{"objective.teacher": None})
    refused("but none was expected with objective.name 'at'", **{"objective.name": "at"})
    refused("but a run to learn from was expected there", **{"objective.teacher": str(tmp_path)})
    refused(
        "it is a model of 8x8x1 images and 10 classes, and one of 4x4x1 images and 10 classes",
        **{"data.downsample": 2},
    )
    refused("average", **{"objective.teacher_checkpoint": "average"})
    images, labels = RANDOM.integers(0, 256, (480, 8, 8, 1)).astype(np.uint8), np.arange(480) % 3
    np.savez(tmp_path / "three.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    refused(
        "8x8x1 images and 10 classes, and one of 8x8x1 images and 3 classes",
        **{"data.name": "npz", "data.path": str(tmp_path / "three.npz")},
    )


def test_a_teacher_that_has_changed_is_refused(tmp_path, tiny_config, teacher):
    moved = tmp_path / "teacher"
    shutil.copytree(teacher, moved)
    config = taught_config(tiny_config, "hat", moved)
    config.epochs = 2
    train(copy.deepcopy(config), tmp_path / "student", progress=None, max_steps=3)
    shutil.rmtree(moved)
    other = taught_config(tiny_config, "hat", teacher)
    other.objective.name, other.objective.teacher, other.epochs = "natural", None, 1
    other.model.width, other.weights.method = 64, "none"
    train(other, moved, progress=None)
    found = "whose weights have the digest [0-9a-f]{8}, but this run has learnt from weights of"
    with pytest.raises(ValueError, match=found) as refused:
        train(copy.deepcopy(config), tmp_path / "student", progress=None)
    assert "\n" not in str(refused.value)
    assert training.Checkpoints(tmp_path / "student" / "checkpoints").steps("last") == [3]
    shutil.rmtree(moved)
    shutil.copytree(teacher, moved)
    assert train(config, tmp_path / "student", progress=None).finished


def test_a_student_outlives_its_teacher(tmp_path, tiny_config, teacher):
    from awp_jax import runs

    moved = tmp_path / "teacher"
    shutil.copytree(teacher, moved)
    config = taught_config(tiny_config, "ard", moved)
    config.epochs = 1
    train(config, tmp_path / "student", progress=None)
    shutil.rmtree(moved)
    student = runs.open(tmp_path / "student")
    assert student.model("last").logits_fn(jnp.zeros((1, 8, 8, 1))).shape == (1, 10)
    assert student.data("test", 10).images.shape[0] == 10
