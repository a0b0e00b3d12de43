"""Real images: adversarial training with AWP learns, on CPU and within a minute or two."""

import pytest

from awp_jax import config as schema
from awp_jax import data, training


def robust_after(config, splits, workdir):
    outcome = training.train(config, workdir, splits=splits, quiet=True)
    assert outcome.finished
    last = [r for r in training.read_metrics(workdir) if r["kind"] == "evaluation"][-1]
    return last["test"]


def first(dataset, n):
    return dataset.select(slice(0, n))
