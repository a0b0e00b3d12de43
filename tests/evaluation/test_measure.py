"""Accuracy and loss of any logits function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import programs_of

from awp_jax.attacks import FGSM, PGD
from awp_jax.evaluation import _measure, attack_by_name, measure, measure_each

WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def logits_fn(images):
    return images.reshape(images.shape[0], -1) @ WEIGHTS


@pytest.fixture
def batch():
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (37, 4, 4, 1)).astype(np.uint8)
    return images, generator.integers(0, 3, 37).astype(np.int32)


@pytest.mark.core
@pytest.mark.parametrize("batch_size", [1, 5, 36, 37, 100])
def test_clean_accuracy_and_loss_by_hand_for_every_batch_size(batch, batch_size):
    images, labels = batch
    logits = (images.reshape(37, -1) / 255.0) @ WEIGHTS.astype(np.float64)
    exact = np.log(np.exp(logits).sum(1)) - logits[np.arange(37), labels]
    found = measure(logits_fn, images, labels, batch_size=batch_size)
    assert found.accuracy == np.mean(logits.argmax(1) == labels)
    assert found.loss == pytest.approx(exact.mean(), rel=1e-5)
    assert found.examples == 37


@pytest.mark.core
def test_an_attacked_result_does_not_depend_on_the_batch_size(batch):
    images, labels = batch
    attack = PGD(epsilon=0.05, steps=3, restarts=2)
    results = {
        measure(logits_fn, images, labels, attack, key=jax.random.key(0), batch_size=b).accuracy
        for b in (4, 10, 37)
    }
    assert len(results) == 1


def test_the_worst_case_of_a_linear_model_in_two_classes():
    weights = jnp.asarray(WEIGHTS[:, :2])
    images = np.full((20, 4, 4, 1), 0.5, np.float32) + np.linspace(-0.2, 0.2, 20)[
        :, None, None, None
    ].astype(np.float32)
    labels = np.zeros(20, np.int32)
    difference = np.asarray(weights[:, 0] - weights[:, 1], np.float64)
    margins = images.reshape(20, -1) @ difference - 0.01 * np.abs(difference).sum()
    found = measure(
        lambda x: x.reshape(x.shape[0], -1) @ weights,
        images,
        labels,
        FGSM(0.01),
        key=jax.random.key(0),
    )
    assert found.accuracy == np.mean(margins > 0)
    assert found.loss == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)


def test_bad_input_is_one_sentence(batch):
    images, labels = batch
    with pytest.raises(ValueError, match="key is missing"):
        measure(logits_fn, images, labels, PGD())
    with pytest.raises(ValueError, match="batch_size is 0"):
        measure(logits_fn, images, labels, batch_size=0)
    with pytest.raises(ValueError, match="labels lie in"):
        measure(logits_fn, images, labels - 5)
    with pytest.raises(ValueError, match=r"images hold \[.*2\.55\]"):
        measure(logits_fn, images.astype(np.float32) / 100, labels)


@pytest.mark.core
def test_attacks_by_name():
    assert attack_by_name("clean") is None
    assert attack_by_name("fgsm", epsilon="8/255") == FGSM(8 / 255)
    pgd = attack_by_name("pgd-20", epsilon="8/255", step_size="2/255", restarts=3)
    assert (pgd.steps, pgd.loss, pgd.restarts) == (20, "cross_entropy", 3)
    cw = attack_by_name("cw-100", norm="l2", epsilon="128/255")
    assert (cw.steps, cw.loss, cw.ball.norm) == (100, "margin", "l2")
    for name in ("pgd", "pgd-0", "pdg-20", "FGSM"):
        with pytest.raises(ValueError, match="Unknown attack"):
            attack_by_name(name)


def test_clean_and_attacked_share_what_is_compiled():
    # The model is compiled twice: for the verdict, clean and attacked, and for a step.
    def logits_fn(images):
        return images.mean((1, 2)) * jnp.array([[1.0, -1.0]])

    images, labels = np.full((30, 4, 4, 1), 100, np.uint8), np.zeros(30, np.int32)

    def both():
        key = jax.random.key(0)
        measure(logits_fn, images, labels, batch_size=8)
        measure(logits_fn, images, labels, PGD("8/255", steps=3), key=key, batch_size=8)

    assert programs_of(both) <= 26


@pytest.mark.parametrize("one_program", [False, True])
def test_several_attacks_in_one_pass_are_as_each_alone(batch, one_program, monkeypatch):
    monkeypatch.setattr(_measure, "_is_one_program", lambda attacks: one_program)
    images, labels = batch
    attacks = {
        "clean": None,
        "pgd": PGD(0.05, steps=3, restarts=2, unroll=False),
        "l2": PGD(0.5, norm="l2", steps=2, step_size=0.3, momentum=0.9, unroll=False),
    }
    options = {"key": jax.random.key(3), "batch_size": 8}
    together = measure_each(logits_fn, images, labels, attacks, **options)
    assert list(together) == list(attacks)
    for name, attack in attacks.items():
        alone = measure(logits_fn, images, labels, attack, **options)
        assert together[name].accuracy == alone.accuracy
        assert together[name].loss == pytest.approx(alone.loss, rel=1e-6)


@pytest.mark.parametrize("one_program", [False, True])
def test_a_randomised_model_in_one_pass(batch, one_program, monkeypatch):
    monkeypatch.setattr(_measure, "_is_one_program", lambda attacks: one_program)
    images, labels = batch

    def noisy(images, key):
        return logits_fn(images + 0.1 * jax.random.normal(key, images.shape))

    attacks = {"clean": None, "pgd": PGD(0.05, steps=2, eot=3, unroll=False)}
    options = {"key": jax.random.key(3), "batch_size": 8, "eot": 4}
    together = measure_each(noisy, images, labels, attacks, **options)
    for name, attack in attacks.items():
        alone = measure(noisy, images, labels, attack, **options)
        assert together[name].as_dict() == pytest.approx(alone.as_dict(), rel=1e-6)
    assert together["pgd"].accuracy not in (0.0, 1.0)


def test_on_an_accelerator_clean_and_pgd_are_one_program(monkeypatch):
    def logits_fn(images):
        return images.mean((1, 2)) * jnp.array([[1.0, -1.0]])

    images, labels = np.full((30, 4, 4, 1), 100, np.uint8), np.zeros(30, np.int32)
    attacks = {"clean": None, "robust": PGD("8/255", steps=3, unroll=False)}

    def both():
        measure_each(logits_fn, images, labels, attacks, key=jax.random.key(0), batch_size=8)

    from_python = programs_of(both)
    monkeypatch.setattr(_measure, "_is_one_program", lambda attacks: True)
    assert programs_of(both) <= 10 < from_python


def test_a_model_of_nan_is_told_of_inside_a_program_too(monkeypatch, batch):
    monkeypatch.setattr(_measure, "_is_one_program", lambda attacks: True)
    attacks = {"clean": None, "pgd": PGD(0.05, steps=1)}
    with pytest.raises(ValueError, match="The model returns NaN"):
        measure_each(lambda x: logits_fn(x) * jnp.nan, *batch, attacks, key=jax.random.key(0))


def test_what_is_one_program():
    pgd = PGD(0.05)
    cpu = jax.default_backend() == "cpu"
    assert _measure._is_one_program((None, pgd)) != cpu
    assert not _measure._is_one_program((None, lambda *_: None))
