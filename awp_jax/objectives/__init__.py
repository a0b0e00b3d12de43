"""Training objectives: what the input adversary ascends, what the weights ascend and descend."""

from awp_jax.objectives._objectives import (
    ADVERSARIAL,
    CLEAN,
    NAMES,
    ROTATIONS,
    Objective,
    at,
    boosted_cross_entropy,
    check_losses,
    check_soft_labels,
    create,
    mart,
    natural,
    self_supervised,
    smoothed,
    trades,
)

__all__ = [
    "ADVERSARIAL",
    "CLEAN",
    "NAMES",
    "Objective",
    "ROTATIONS",
    "at",
    "boosted_cross_entropy",
    "check_losses",
    "check_soft_labels",
    "create",
    "mart",
    "natural",
    "self_supervised",
    "smoothed",
    "trades",
]
