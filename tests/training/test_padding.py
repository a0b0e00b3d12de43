"""A batch filled up with examples that do not count gives the numbers of the batch alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_net import TinyNet

from awp_jax import models, objectives
from awp_jax.training import TrainingAttack, TrainState, WeightPerturbation, make_train_step

SHAPE, REAL, ROWS = (8, 8, 1), 5, 12


def in_float64(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def steps(objective, adversarial=None, dtype=np.float64, attack=None, weights=None):
    """State and metrics after a step on the examples alone, and on them and padding."""
    network = functools.partial(TinyNet, classes=10)
    classifier = models.from_network(network, name="tiny", image_shape=SHAPE, num_classes=10)
    optimizer = optax.sgd(0.1, momentum=0.9)
    params, batch_stats = classifier.init(jax.random.key(0))
    state = TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))
    state = in_float64(state) if dtype == np.float64 else state
    random = np.random.default_rng(0)
    images = random.random((ROWS, *SHAPE)).astype(dtype)
    labels = random.integers(0, 10, ROWS).astype(np.int32)
    step = make_train_step(
        classifier,
        objective,
        optimizer,
        attack=attack or TrainingAttack("0.1", steps=2, step_size=0.05),
        weights=weights or WeightPerturbation("awp", 0.02),
    )
    step, key = jax.jit(step), jax.random.key(1)
    found = []
    for rows, mask in ((REAL, None), (ROWS, np.arange(ROWS) < REAL)):
        stored = None if adversarial is None else adversarial(images[:rows])
        found.append(step(state, images[:rows], labels[:rows], key, adversarial=stored, mask=mask))
    return found


def assert_close(found, tolerance):
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


CASES = {
    "at": (objectives.at(), {}),
    "trades": (objectives.trades(), {}),
    "rwp": (objectives.at(), {"weights": WeightPerturbation("rwp", 0.02, c_min=2.4, steps=2)}),
    "lsc": (objectives.at(), {"weights": WeightPerturbation("awp", 0.02, loss_range=(2.0, 2.5))}),
    "shared": (objectives.at(), {"weights": WeightPerturbation("awp", 0.02, shared_backward=True)}),
    "released": (
        objectives.at(),
        {"attack": TrainingAttack("0.1", steps=2, step_size=0.05, batch_norm="released")},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_padding_changes_no_number_in_float64(x64, name):
    objective, options = CASES[name]
    assert_close(steps(objective, **options), 1e-12)


@pytest.mark.parametrize("objective", [objectives.at(), objectives.trades()])
def test_padding_changes_nothing_but_rounding_in_float32(objective):
    # From the same adversarial images: the sign of a gradient may flip by rounding.
    def shifted(images):
        return np.clip(images + np.float32(0.05), 0, 1)

    assert_close(steps(objective, shifted, np.float32), 1e-6)
