"""Losses and gradients that are not finite: the step is skipped, or the run stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import poison

from awp_jax import models, objectives, runs, training
from awp_jax.training import TrainingAttack, WeightPerturbation, _loop

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Normalised(models.Network):
    """BatchNorm and a dense layer."""

    def __init__(self, make):
        self.bn = make.batch_norm(1)
        self.linear = make.dense(4, 2, classifies=True)

    def features(self, images, context):
        return self.bn(images, context).reshape(images.shape[0], -1)

    def classify(self, features, context):
        return self.linear(features)


def test_a_skipped_step_leaves_everything_but_the_count():
    classifier = models.from_network(
        Normalised, name="normalised", image_shape=(2, 2, 1), num_classes=2
    )
    # Its state holds a typed key and everything else that an optimiser may hold.
    optimizer = training.entropy_sgd(0.1, jax.random.key(3))
    step = training.make_train_step(
        classifier,
        objectives.at(),
        optimizer,
        attack=TrainingAttack(steps=1, batch_norm="released"),
        weights=WeightPerturbation("awp", 0.01),
        average_rate=lambda step: 0.5,
        skip_non_finite=True,
    )
    step = jax.jit(step)
    first = training.init_state(classifier, optimizer, jax.random.key(0), averaged=True)
    images = np.random.RandomState(0).uniform(size=(6, 2, 2, 1)).astype(np.float32)
    labels, key = np.arange(6) % 2, jax.random.key(1)
    state, metrics = step(first, images, labels, key)
    assert metrics["finite"] and not leaves_equal(state, first)
    bad = images.copy()
    bad[3, 1, 1, 0] = np.nan
    skipped, metrics = step(state, bad, labels, key)
    assert not metrics["finite"] and np.isnan(metrics["loss"])
    assert int(skipped.step) == int(state.step) + 1
    assert leaves_equal(skipped._replace(step=state.step), state)
    assert float(metrics["weight_norm"]) == pytest.approx(
        np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(state.params))), rel=1e-5
    )


def leaves_equal(one, other):
    def plain(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(plain(a), plain(b)) for a, b in pairs)


@pytest.fixture
def overflowing(tiny_config):
    """Finite losses and gradients, and a learning rate that overflows the weights."""
    config = tiny_config("linear", width=None)
    config.optimizer.learning_rate = 1e30
    config.optimizer.non_finite = "skip"
    config.evaluation.train_examples = 0
    config.epochs = 1
    config.logging.every_steps = 2
    return config


def test_skipped_steps_are_counted_also_over_a_restart(tmp_path, overflowing, capsys):
    training.train(overflowing, tmp_path, max_steps=1)
    outcome = training.train(overflowing, tmp_path)
    assert outcome.finished
    assert leaves_equal(outcome.state.params, training.build(overflowing).init().params)
    counts = [r["skipped_steps"] for r in training.read_metrics(tmp_path) if r["kind"] == "train"]
    assert (
        counts == [1, 3]
        and runs.open(tmp_path, dtype=None).restore("last")[1]["skipped_steps"] == 3
    )
    assert (
        "Steps 2 to 3: 2 skipped, loss or gradient not finite; 3 in all." in capsys.readouterr().err
    )


def test_many_skipped_steps_in_a_row_stop_the_run(tmp_path, overflowing, monkeypatch):
    monkeypatch.setattr(_loop, "MOST_SKIPPED", 3)
    expected = (
        r"^Step 3: the loss is [\d.]+ and the gradient norm [\d.]+ and overflows the weights at "
        r"learning rate 1e\+30, weight norm [\d.]+ and perturbation norm 0.0[\d]+, as 2 skipped "
        "steps before; training stops, and the checkpoints before are kept.$"
    )
    with pytest.raises(training.NonFiniteError, match=expected):
        training.train(overflowing, tmp_path, progress=None)


def test_what_is_skipped_is_no_part_of_the_averages(tmp_path, tiny_config, monkeypatch):
    config = tiny_config("linear", width=None)
    config.optimizer.non_finite = "skip"
    wrong = {"loss": jnp.float32(jnp.nan), "finite": jnp.bool_(False)}
    poison(monkeypatch, 1, lambda found: {**found, **wrong})
    training.train(config, tmp_path, max_steps=3, progress=None)
    (record,) = [r for r in training.read_metrics(tmp_path) if r["kind"] == "train"]
    assert record["skipped_steps"] == 1 and np.isfinite(record["loss"])


def test_an_unknown_word_is_one_sentence(tiny_config):
    config = tiny_config()
    config.optimizer.non_finite = "ignore"
    with pytest.raises(ValueError, match="optimizer.non_finite 'ignore'; known: stop, skip"):
        training.build(config)
