"""Free adversarial training: against its released loop, resumed, over devices, and refused."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from small_run import goes_on_bit_by_bit

from awp_jax import models, objectives, runs
from awp_jax.balls import InputBall, WeightBall
from awp_jax.runs._method import method_name
from awp_jax.training import (
    TrainingAttack,
    WeightPerturbation,
    build,
    init_state,
    make_train_step,
    read_metrics,
)

SHAPE, CLASSES, BATCH, EPSILON = (6, 5, 2), 4, 8, 0.15
NO_WEIGHTS = WeightPerturbation("none")
RANDOM = np.random.default_rng(0)


def drawn(count):
    # Beyond the range at first: many pixels lie on its bounds, where delta is cut off.
    images = np.clip(RANDOM.uniform(-0.2, 1.2, (count, BATCH, *SHAPE)), 0, 1)
    return images, RANDOM.integers(0, CLASSES, (count, BATCH))


def linear():
    return models.create("linear", image_shape=SHAPE, num_classes=CLASSES)


def stepper(weights=NO_WEIGHTS, objective=None, **options):
    attack = TrainingAttack(EPSILON, step_size=EPSILON, free=True)
    optimizer = optax.sgd(0.2, momentum=0.9)
    step = make_train_step(
        linear(),
        objectives.at() if objective is None else objective,
        optimizer,
        attack=attack,
        weights=weights,
        **options,
    )
    return step, init_state(linear(), optimizer, jax.random.key(1), delta=(BATCH, *SHAPE))


def float64(state):
    return jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.float32 else a, state)


@pytest.mark.parametrize("gamma", [0, 0.05])
def test_steps_are_those_of_the_released_loop(x64, gamma):
    """main_free.py of mahyarnajibi/FreeAdversarialTraining, in PyTorch; with AWP at w + v."""
    torch = pytest.importorskip("torch")
    weights = WeightPerturbation("awp", ball=WeightBall(gamma)) if gamma else NO_WEIGHTS
    step, state = stepper(weights=weights)
    step, state = jax.jit(step), float64(state)
    kernel = torch.tensor(np.asarray(state.params["linear"]["kernel"]))
    bias = torch.tensor(np.asarray(state.params["linear"]["bias"]))
    kernel.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.SGD([kernel, bias], 0.2, momentum=0.9)
    noise = torch.zeros((BATCH, *SHAPE), dtype=torch.float64)
    images, labels = drawn(3)
    for x, y in zip(images, labels, strict=True):
        for _ in range(4):
            state, metrics = step(state, jnp.asarray(x), jnp.asarray(y), jax.random.key(0))
            mine = noise.clone().requires_grad_()
            seen = torch.clamp(torch.tensor(x) + mine, 0, 1).reshape(BATCH, -1)
            loss = lambda w, b: torch.nn.functional.cross_entropy(seen @ w + b, torch.tensor(y))  # noqa: B023, E731
            w, v = kernel, 0
            if gamma:  # every tensor but vectors moves by gamma times its norm
                (ascent,) = torch.autograd.grad(loss(kernel, bias), [kernel])
                v = gamma * kernel.norm() * ascent / ascent.norm()
                w = (kernel + v).detach().requires_grad_()
            value = loss(w, bias)
            optimizer.zero_grad()
            in_w, in_b, in_noise = torch.autograd.grad(value, [w, bias, mine])
            kernel.grad, bias.grad = in_w, in_b
            optimizer.step()
            noise = torch.clamp(noise + EPSILON * torch.sign(in_noise), -EPSILON, EPSILON)
            assert float(metrics["loss"]) == pytest.approx(value.item(), rel=1e-12)
            np.testing.assert_allclose(state.delta, noise, atol=1e-12)
            np.testing.assert_allclose(
                state.params["linear"]["kernel"], kernel.detach().numpy(), atol=1e-12
            )
    assert len(np.unique(np.round(state.delta, 6))) > 2  # some pixels were held by the bounds


def test_a_smaller_last_batch_leaves_the_rest_of_delta(x64):
    step, state = stepper()
    images, labels = drawn(1)
    state, _ = step(float64(state), images[0], labels[0], jax.random.key(0))
    after, _ = step(state, images[0, :5], labels[0, :5], jax.random.key(0))
    np.testing.assert_array_equal(after.delta[5:], state.delta[5:])
    assert (after.delta[:5] != state.delta[:5]).any()
    mask = jnp.arange(BATCH) < 5
    padded, _ = step(state, images[0], labels[0], jax.random.key(0), mask=mask)
    np.testing.assert_allclose(padded.delta, after.delta, atol=1e-12)


def test_in_parts_and_on_mapped_devices_it_is_the_same(x64):
    images, labels = drawn(2)
    mesh = Mesh(jax.devices()[:4], ("data",))

    def run(wrap=jax.jit, **options):
        step, state = stepper(**options)
        step, state = wrap(step), float64(state)
        for x, y in zip(images, labels, strict=True):
            for _ in range(3):
                state, _ = step(state, jnp.asarray(x), jnp.asarray(y), jax.random.key(0))
        return state

    def mapped(step):
        _, state = stepper()
        whole = jax.tree.map(lambda _: P(), state)._replace(delta=P("data"))
        specs = (whole, P("data"), P("data"), P())
        return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(whole, P())))

    expected = run()
    for found in (run(micro_batches=2), run(mapped, axis_name="data")):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def free_config(tiny_config, **changes):
    config = tiny_config("linear", width=None, method="none")
    config.attack.name, config.attack.replays = "free", 3
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"data.device_megabytes": 0},
        {"training.steps_per_call": 4},
        {"data.device_megabytes": 0, "training.steps_per_call": 4},
        {"devices": 8},
        {"devices": 8, "parallel.mesh": "data:2,fsdp:4"},
    ],
    ids=str,
)
def test_the_trainer_hands_each_batch_to_all_replays(tmp_path, tiny_config, changes):
    """Also from the host, several steps in one call, on more devices: the same numbers."""
    devices = changes.get("devices", 1)
    config = free_config(tiny_config, **{k: v for k, v in changes.items() if k != "devices"})
    experiment = build(copy.deepcopy(config))
    assert experiment.steps_per_epoch == 9 and experiment.padded
    assert [experiment.batch_size_of(step) for step in range(9)] == [32] * 6 + [16] * 3
    trained = runs.train(config, tmp_path / "run", devices=devices, progress=None)
    found = trained.experiment.abstract_state()
    if devices == 8:
        assert found.delta.sharding.shard_shape(found.delta.shape)[0] == 4
    records = [r for r in read_metrics(tmp_path / "run") if r["kind"] == "train"]
    plain = free_config(tiny_config)
    runs.train(plain, tmp_path / "plain", devices=1, progress=None)
    expected = [r for r in read_metrics(tmp_path / "plain") if r["kind"] == "train"]
    assert [r["step"] for r in records] == [r["step"] for r in expected]
    for ours, theirs in zip(records, expected, strict=True):
        for name in ("loss", "gradient_norm", "learning_rate", "epoch", "robust_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name


def test_replays_are_of_one_augmented_batch(tiny_config):
    config = free_config(tiny_config, **{"data.random_erasing": 0.5})
    experiment = build(config)
    choose, gather = experiment._batch_functions
    order = experiment.order(0)

    def batch(step):
        return gather(
            experiment.batch_of(step),
            *experiment.on_devices(),
            order,
            experiment.key,
            batch_size=experiment.rows_of(step),
        )

    first = batch(3)
    for replay in (4, 5):
        np.testing.assert_array_equal(batch(replay).images, first.images)
        np.testing.assert_array_equal(batch(replay).labels, first.labels)
    assert (np.asarray(batch(6).images) != np.asarray(first.images)).any()
    chosen = np.concatenate([choose(s, order, experiment.key, batch_size=32) for s in range(3)])
    np.testing.assert_array_equal(chosen[:80], order)


def test_a_run_goes_on_within_the_replays(tmp_path, tiny_config):
    goes_on_bit_by_bit(free_config(tiny_config), tmp_path, stopped_after=13)
    assert method_name(runs.open(tmp_path / "whole").config) == "AT + free, 3 replays"


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        ({"start": "uniform"}, "start is 'uniform', but free attacks nothing"),
        ({"early_stop": 1}, "early_stop is 1, but free attacks nothing"),
        ({"own": print}, "own is .*, but free attacks nothing"),
        ({"batch_norm": "batch"}, "attack_batch_norm is 'batch', but free makes no pass"),
    ],
)
def test_what_free_has_no_use_for_is_refused(attack, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainingAttack(0.1, free=True, **attack)


def test_another_kind_of_ball_is_refused():
    class Own:
        start = step = project = sample = distance = lambda *_: None

    with pytest.raises(ValueError, match="free needs an InputBall, .* not a Own"):
        TrainingAttack(ball=Own(), free=True)
    assert TrainingAttack(ball=InputBall("l2", 0.5), free=True).free


def test_steps_that_cannot_be_free_are_refused():
    with pytest.raises(ValueError, match="objective natural looks at no attacked images"):
        stepper(objective=objectives.natural())
    with pytest.raises(ValueError, match="alternations is 2, but a free attack makes no pass"):
        stepper(weights=WeightPerturbation("awp", alternations=2))
    with pytest.raises(ValueError, match="shared_backward is True, but a free attack makes no"):
        stepper(weights=WeightPerturbation("awp", shared_backward=True))
    images, labels = drawn(1)
    step, state = stepper()
    with pytest.raises(ValueError, match=r"delta of the state has the shape None, and the images"):
        step(state._replace(delta={}), images[0], labels[0], jax.random.key(0))
    with pytest.raises(ValueError, match="adversarial was given, but the attack is free"):
        step(state, images[0], labels[0], jax.random.key(0), adversarial=images[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective.name": "natural"}, "objective natural looks at no attacked"),
        ({"objective.gradient_alignment": 0.2}, "attack.name 'free' makes 0"),
        ({"attack.replays": 0}, "attack.replays is 0"),
        ({"weights.method": "awp", "weights.alternations": 2}, "alternations is 2"),
    ],
)
def test_configs_that_cannot_be_free_are_refused(tiny_config, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(free_config(tiny_config, **changes))


def test_given_batches_come_once(tmp_path, tiny_config):
    with pytest.raises(ValueError, match="takes each batch 3 times, but batches are given"):
        runs.train(free_config(tiny_config), tmp_path / "run", batches=iter(()), progress=None)
    assert not (tmp_path / "run").exists()
