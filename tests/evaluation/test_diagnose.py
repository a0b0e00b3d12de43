"""Masked models are flagged, each for its own reason; a sound one is not."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.evaluation import diagnose
from awp_jax.evaluation._suspicions import above_chance, enough_examples, model_checks

KEY = jax.random.key(0)
_path = pathlib.Path(__file__).parents[1] / "attacks" / "digits_network.py"
_spec = importlib.util.spec_from_file_location("digits_network", _path)
digits = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(digits)


@pytest.fixture(scope="module")
def sound():
    params = digits.train()
    _, (images, labels) = digits.split_digits()
    return Partial(digits.network, params), images[:100], labels[:100]


def look(sound, change=None, **options):
    logits_fn, images, labels = sound
    function = logits_fn if change is None else change
    return diagnose(function, KEY, images, labels, epsilon=0.12, queries=300, **options)


def failed(diagnosis):
    return {check.name for check in diagnosis.checks if not check.passed}


def test_a_sound_model_is_not_flagged(sound):
    surrogate = Partial(digits.network, digits.train(seed=1, steps=100))
    moments = []
    found = look(sound, surrogate_fn=surrogate, progress=moments.append)
    shares = [moment.done for moment in moments]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert moments[0].what == "clean" and moments[-1].what == "transfer"
    assert not found.suspicious, found.verdict()
    assert found.verdict().startswith("No sign of gradient masking")
    assert set(found.others) == {"square", "transfer"}
    assert 0.2 < found.by_steps[-1] < 0.9 and found.by_epsilon[-1] <= 0.02
    assert found.as_dict()["suspicious"] is False
    few = dataclasses.replace(found, checks=(*found.checks, enough_examples(10)))
    assert few.suspicious and few.verdict().startswith("No verdict, there are too few examples")


@pytest.mark.parametrize(("sure", "passed"), [(4, True), (20, False)])
def test_being_sure_of_some_images_is_no_masking(sure, passed):
    logits = np.zeros((20, 3), np.float32)
    logits[:, 0], logits[:sure, 0] = 3.0, 20.0
    found = {c.name: c for c in model_checks(lambda x: jnp.asarray(logits[: len(x)]), logits)}
    assert found["float precision suffices"].passed == passed


def test_logits_times_10000_are_flagged(sound):
    found = look(sound, lambda x: 1e4 * sound[0](x))
    assert {"float precision suffices", "gradients of the cross-entropy loss"} & failed(found)
    assert found.verdict().startswith("Do not trust")


def test_a_quantised_input_is_flagged(sound):
    found = look(sound, lambda x: sound[0](jnp.round(x * 8) / 8))
    assert {"gradients of the cross-entropy loss", "gradients beat square"} <= failed(found)


def test_other_ways_to_mislead_are_named(sound):
    logits_fn = sound[0]
    draws = np.random.default_rng(0)

    def misleading(x):
        z = logits_fn(x)
        noise = 0.0 if isinstance(x, jax.core.Tracer) else draws.normal(size=z.shape)
        return jax.nn.softmax(z - z.mean(0, keepdims=True) + 0.1 * jnp.asarray(noise, z.dtype))

    names = failed(look(sound, misleading))
    assert {"the model is deterministic", "outputs are logits"} <= names
    assert "an example does not depend on its batch" in names


def test_chance_level_and_few_examples_get_no_clean_verdict(sound):
    logits_fn, _, labels = sound
    silent = Partial(logits_fn.func, jax.tree.map(jnp.zeros_like, *logits_fn.args))
    found = look(sound, silent)
    assert "clean accuracy is above chance" in failed(found)
    assert found.verdict().startswith("Do not trust")
    assert f"accuracy: {np.mean(labels == 0):.1%} clean" in found.verdict()
    assert not enough_examples(49).passed and enough_examples(50).passed
    half = np.repeat([0, 1], 50)
    assert not above_chance(0.6, half).passed and above_chance(0.7, half).passed


def test_a_randomised_model_is_looked_at_through_averages(sound):
    def random(x, key):
        return sound[0](x) + jax.random.normal(key, (10,))[None]

    found = look(sound, Partial(random), eot=3)
    assert {"averaged gradients beat single ones"} <= {check.name for check in found.checks}
    assert not found.others and found.eot == 3
    assert "3 random passes averaged" in found.verdict()
    assert not {"the model is deterministic", "outputs are logits"} & failed(found)


def test_bad_input(sound):
    logits_fn, images, labels = sound
    for epsilon in (0, "999999999", 1.5):
        message = f"epsilon is {epsilon!r}, but a number above 0 and at most 1, .* such as 8/255"
        with pytest.raises(ValueError, match=message):
            diagnose(logits_fn, KEY, images, labels, epsilon=epsilon)
    with pytest.raises(ValueError, match="at most 8, .* norm 'l2', such as 0.5"):
        diagnose(logits_fn, KEY, images, labels, norm="l2", epsilon=9)
    with pytest.raises(ValueError, match="Unknown norm"):
        diagnose(logits_fn, KEY, images, labels, norm="l1")
    with pytest.raises(ValueError, match="Unknown progress 'loud'"):
        diagnose(logits_fn, KEY, images, labels, progress="loud")
    broken = images.copy()
    broken[3, 0] = np.nan
    with pytest.raises(ValueError, match="^images hold NaN, in 1 of 100 images.$"):
        diagnose(logits_fn, KEY, broken, labels)
