"""A run small enough for tests: real digits, a tiny network, real optimiser state."""

import copy

import jax
import numpy as np

from awp_jax import config as schema
from awp_jax import training


def tiny_config(model="mlp", width=16, **weights):
    """A small config: 3 epochs of 3 steps, the last with fewer examples."""
    config = schema.default()
    config.epochs = 3
    config.batch_size = 32
    config.data.name = "digits"
    config.data.train_examples = 80
    config.data.validation_examples = 40
    config.data.test_examples = 48
    config.data.crop_padding = 1
    config.data.flip = False
    config.model.name = model
    config.model.width = width
    config.model.normalize = False
    config.attack.epsilon = "0.1"
    config.attack.step_size = "0.05"
    config.attack.steps = 2
    config.weights.update(weights)
    config.evaluation.steps = 2
    config.evaluation.train_examples = 32
    config.evaluation.test_examples = 48
    config.evaluation.batch_size = 32
    config.optimizer.learning_rate = 0.05
    return config


def image_config(path, **changes):
    """2 epochs of 3 steps over the 17 images of ``image_files.write_folders`` that are left."""
    config = tiny_config("linear", width=None)
    config.seed, config.epochs, config.batch_size = 3, 2, 6
    config.data.update(
        name="images",
        path=str(path),
        image_size=12,
        resize=14,
        resized_crop=0.08,
        crop_padding=0,
        train_examples=None,
        validation_examples=4,
        test_examples=6,
    )
    config.data.update(changes)
    config.evaluation.train_examples = 4
    config.evaluation.test_examples = 6
    return config


def goes_on_bit_by_bit(config, tmp_path, stopped_after=17):
    """Trains in ``whole``, and in ``cut`` with a stop: both end with the same state."""

    def run(workdir, **options):
        return training.train(copy.deepcopy(config), workdir, progress=None, **options)

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", max_steps=stopped_after)
    again = run(tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(a, b)
    return whole


def poison(monkeypatch, after, change):
    """The metrics of the step that comes after so many are what ``change`` makes of them."""
    original = training.Experiment.step.func

    def poisoned(self):
        step = original(self)

        def call(state, *args, **kwargs):
            at = int(state.step)
            state, metrics = step(state, *args, **kwargs)
            return state, change(metrics) if at == after else metrics

        return call

    monkeypatch.setattr(training.Experiment, "step", property(poisoned))
