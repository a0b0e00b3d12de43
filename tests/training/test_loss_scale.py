"""Loss scaling: its numbers are PyTorch's, and powers of two change no bit of float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from longer import longer
from small_run import goes_on_bit_by_bit

from awp_jax import models, objectives
from awp_jax.training import (
    TrainingAttack,
    WeightPerturbation,
    build,
    init_state,
    make_train_step,
    read_metrics,
)
from awp_jax.training._loss_scale import LossScale

torch = pytest.importorskip("torch")
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(size=(16, 4, 4, 1)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 16).astype(np.int32)
KEY = jax.random.key(2)


def classifier(dtype="float32", name="mlp"):
    return models.create(name, image_shape=(4, 4, 1), num_classes=3, width=8, dtype=dtype)


def test_the_scales_are_those_of_pytorch():
    random = np.random.default_rng(3)
    # Long runs of finite steps with rare failures, some close behind each other.
    finite = random.random(9000) > 4e-4
    finite[[0, 1, 5000, 5001]] = False
    assert (~finite).sum() > 5
    parameter = torch.nn.Parameter(torch.zeros(1))
    scaler, sgd = torch.amp.GradScaler("cpu"), torch.optim.SGD([parameter], lr=0.0)
    expected = []
    for good in finite:
        scaler.scale(torch.ones(()))
        expected.append(scaler.get_scale())
        parameter.grad = torch.tensor([1.0 if good else float("inf")])
        scaler.step(sgd)
        scaler.update()
    rule = LossScale("dynamic")

    def one(state, good):
        return rule.after(state, good), state["scale"]

    _, found = jax.lax.scan(one, rule.fresh(), jnp.asarray(finite))
    np.testing.assert_array_equal(found, expected)
    assert len(set(expected)) > 4
    # It does not grow out of float32.
    top = {"scale": jnp.float32(2.0**127), "finite_steps": jnp.int32(1999)}
    assert float(rule.after(top, jnp.bool_(True))["scale"]) == 2.0**127


SETTINGS = {
    "at": {
        "objective": objectives.at(),
        "weights": WeightPerturbation("awp", 0.1, steps=2, loss_range=(0.0, 1.3)),
    },
    "trades": {"objective": objectives.trades(), "weights": WeightPerturbation("awp", 0.1)},
    "l2": {
        "objective": objectives.mart(),
        "attack": TrainingAttack(0.5, 3, "l2", step_size=0.2),
        "weights": WeightPerturbation("random", 0.1),
    },
    "rwp": {
        "objective": objectives.at(),
        "weights": WeightPerturbation("rwp", 0.1, steps=3, c_min=1.1),
    },
    "shared": {
        "objective": objectives.at(),
        "weights": WeightPerturbation("awp", 0.1, shared_backward=True),
    },
}


@pytest.mark.parametrize("parts", [4, *longer(1)])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_power_of_two_changes_no_bit_of_float32(name, parts):
    settings = {"attack": TrainingAttack(0.1, 2, "linf", step_size=0.05), **SETTINGS[name]}
    model, optimizer = classifier(), optax.sgd(0.5, 0.9)

    def after(scale):
        step = make_train_step(
            model,
            optimizer=optimizer,
            loss_scale=scale,
            micro_batches=parts,
            unroll=False,
            **settings,
        )
        step, state = jax.jit(step), init_state(model, optimizer, jax.random.key(0))
        for _ in range(2):
            state, metrics = step(state, IMAGES, LABELS, KEY)
        return state, {name: v for name, v in metrics.items() if name != "loss_scale"}, metrics

    plain, scaled = after(None), after(2.0**20)
    assert "loss_scale" not in plain[2] and float(scaled[2]["loss_scale"]) == 2.0**20
    for a, b in zip(jax.tree.leaves(plain[:2]), jax.tree.leaves(scaled[:2]), strict=True):
        np.testing.assert_array_equal(a, b)


def faint():
    """AT whose gradients are below the smallest float16, 6e-8, at every image and weight."""
    at = objectives.at()
    return dataclasses.replace(
        at,
        loss=lambda logits, labels: 1e-7 * at.loss(logits, labels),
        attack_loss=lambda logits, labels, clean: 1e-8 * at.attack_loss(logits, labels, clean),
    )


def test_float16_learns_what_underflows_without():
    """Of layers in float16, that is: the last one computes in float32."""

    def trained(dtype, scale):
        model, optimizer = classifier(dtype), optax.sgd(3e6)
        step = make_train_step(
            model,
            faint(),
            optimizer,
            attack=TrainingAttack(0.02, 1, "linf", step_size=0.02, start="none"),
            weights=WeightPerturbation("awp", 0.01),
            loss_scale=scale,
        )
        step, state = jax.jit(step), init_state(model, optimizer, jax.random.key(0))
        losses = []
        for _ in range(60):
            state, metrics = step(state, IMAGES, LABELS, KEY)
            losses.append(1e7 * float(metrics["loss"]))
        return np.array(losses), state.params["hidden"]

    first = init_state(classifier(), optax.sgd(0.1), jax.random.key(0)).params["hidden"]
    _, lost = trained("float16", None)
    for a, b in zip(jax.tree.leaves(lost), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(a, b)
    losses, kept = trained("float16", 2.0**24)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(first), strict=True):
        assert np.abs(a - b).max() > 0.01
    expected, _ = trained("float32", None)
    assert expected[-1] < 0.75 * expected[0]
    assert losses[-1] < 0.75 * losses[0]
    # Later on signs of the attack differ.
    np.testing.assert_allclose(losses[:20], expected[:20], rtol=1e-3)


def test_the_attack_moves_where_its_gradient_underflows():
    model, seen = classifier("float16"), {}
    objective = dataclasses.replace(
        faint(), loss=lambda logits, labels: logits["adversarial"][:, 0]
    )
    for scale in (None, 2.0**24):
        step = make_train_step(
            model,
            objective,
            optax.sgd(0.0),
            attack=TrainingAttack(0.1, 1, "linf", step_size=0.1, start="none"),
            weights=None,
            loss_scale=scale,
        )
        state = init_state(model, optax.sgd(0.0), jax.random.key(0))
        seen[scale] = float(jax.jit(step)(state, IMAGES, LABELS, KEY)[1]["loss"])
    clean, _ = model.apply(state.params, {}, jnp.asarray(IMAGES), mode="batch")
    assert seen[None] == pytest.approx(float(clean[:, 0].mean()), abs=1e-6)
    assert abs(seen[2.0**24] - seen[None]) > 1e-3


def test_an_overflow_is_skipped_and_halves_the_scale():
    model, optimizer = classifier("float16"), optax.adam(0.01)
    step = make_train_step(
        model,
        objectives.at(),
        optimizer,
        attack=TrainingAttack(0.1, 1, "linf", step_size=0.05),
        loss_scale="dynamic",
        skip_non_finite=True,
    )
    first = init_state(model, optimizer, jax.random.key(0), loss_scale="dynamic")
    assert float(first.loss_scale["scale"]) == 2.0**16
    high = {"scale": jnp.float32(2.0**40), "finite_steps": jnp.int32(7)}
    state, metrics = jax.jit(step)(first._replace(loss_scale=high), IMAGES, LABELS, KEY)
    assert not metrics["finite"] and float(metrics["loss_scale"]) == 2.0**40
    assert np.isfinite(metrics["loss"])
    assert int(state.step) == 1 and float(state.loss_scale["scale"]) == 2.0**39
    assert int(state.loss_scale["finite_steps"]) == 0
    kept = state._replace(step=first.step, loss_scale=first.loss_scale)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(a, b)
    state, metrics = jax.jit(step)(first, IMAGES, LABELS, KEY)
    assert metrics["finite"] and int(state.loss_scale["finite_steps"]) == 1


@pytest.mark.parametrize("parts", [4, *longer(1)])
def test_a_run_in_float16_goes_on_bit_by_bit(tmp_path, tiny_config, parts, monkeypatch):
    monkeypatch.setattr("awp_jax.training._loss_scale.INITIAL", 2.0**23)
    config = tiny_config(width=128)
    config.attack.epsilon, config.attack.step_size = "0.05", "0.03"
    config.epochs, config.data.train_examples = 12, 400
    config.schedule.name, config.weights.gamma = "cyclic", "0.005"
    config.model.dtype, config.logging.every_steps = "float16", 1
    config.optimizer.update(
        learning_rate=0.3, loss_scale="dynamic", non_finite="skip", micro_batches=parts
    )
    whole = goes_on_bit_by_bit(config, tmp_path, 5)
    records = [r for r in read_metrics(tmp_path / "cut") if r["kind"] == "train"]
    skipped = records[-1]["skipped_steps"]
    assert 1 <= skipped < 10
    assert (
        records[-1]["loss_scale"] == float(whole.state.loss_scale["scale"]) == 2.0 ** (23 - skipped)
    )
    last = [r for r in read_metrics(tmp_path / "cut") if r["kind"] == "evaluation"][-1]
    assert last["test"]["clean_accuracy"] > 0.7


def test_what_is_no_scale_is_one_sentence(tiny_config):
    make = functools.partial(make_train_step, classifier(), objectives.at(), optax.sgd(0.1))
    for wrong in (0, -1.0, float("inf"), True, "static"):
        with pytest.raises(ValueError, match="loss_scale is .*, but a positive number"):
            make(loss_scale=wrong)
    with pytest.raises(ValueError, match="skip_non_finite is False: True was expected"):
        make(loss_scale="dynamic")
    config = tiny_config()
    config.optimizer.loss_scale = "dynamic"
    with pytest.raises(ValueError, match="optimizer.non_finite is 'stop': set it to 'skip'"):
        build(config)
    config.optimizer.loss_scale = "often"
    with pytest.raises(ValueError, match="optimizer.loss_scale is 'often', but a positive number"):
        build(config)
