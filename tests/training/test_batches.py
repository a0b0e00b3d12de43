"""What a step is handed: augmented images in their order, smoothed labels of all of them."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from awp_jax import data
from awp_jax.training import augmentation_keys, build

RANDOM = np.random.default_rng(0)


def test_augmentations_of_a_batch_come_in_their_order(tmp_path, tiny_config):
    images = RANDOM.integers(0, 256, (150, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(150) % 5
    path = tmp_path / "colours.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = tiny_config("linear", width=None)
    config.data.name, config.data.path = "npz", str(path)
    config.data.trivialaugment, config.data.random_erasing = True, 0.7
    config.data.cutout, config.data.test_examples = 2, None
    experiment = build(config)
    order = experiment.order(0)
    _, gather = experiment._batch_functions
    found = gather(2, *experiment.on_devices(), order, experiment.key, batch_size=32)
    keys = augmentation_keys(experiment.key, 2, 32)
    rows = experiment.chosen(2, order)
    moved = data.augment(keys, experiment.splits.train.images[rows], crop_padding=1, flip=False)
    expected = data.cutout(keys, data.trivialaugment(keys, moved), 2)
    expected = data.as_float(data.random_erasing(keys, expected, 0.7))
    np.testing.assert_array_equal(found.images, expected)
    config.data.autoaugment = True
    with pytest.raises(ValueError, match="data.autoaugment and data.trivialaugment are both on"):
        build(config)


@pytest.mark.parametrize("name", ["natural", "at"])
def test_smoothing_holds_for_extra_images_too(tmp_path, tiny_config, name):
    """Of extra images as of others, generated or pseudo-labelled, before they are weighted."""
    images = RANDOM.uniform(size=(60, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "extra.npz", image=images, label=RANDOM.integers(0, 10, 60))
    config = tiny_config("linear", width=None, method="none")
    config.objective.name, config.objective.label_smoothing = name, 0.3
    config.attack.steps, config.attack.start, config.data.crop_padding = 0, "none", 0
    config.data.extra, config.data.extra_weight = str(tmp_path / "extra.npz"), 0.4
    experiment = build(config)
    order, state = experiment.order(0), experiment.init()
    rows = np.asarray(experiment.chosen(0, order))
    pool, labels = (np.asarray(a) for a in experiment.on_devices())
    counts = np.where(rows < len(experiment.splits.train), 1.0, 0.4)
    assert {0.4, 1.0} == set(counts)
    logits, _ = experiment.classifier.apply(
        state.params, {}, data.as_float(jnp.asarray(pool[rows])), mode="batch"
    )
    losses = nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)),
        torch.tensor(labels[rows], dtype=torch.int64),
        label_smoothing=0.3,
        reduction="none",
    )
    _, metrics = experiment.step(
        state,
        *experiment.on_devices(),
        order,
        experiment.key,
        batch_size=experiment.rows_of(0),
        perturb_weights=False,
    )
    expected = (losses.numpy() * counts).sum() / counts.sum()
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
