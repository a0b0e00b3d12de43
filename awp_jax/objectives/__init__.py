"""Training objectives: what the input adversary ascends, what the weights ascend and descend."""

from awp_jax.objectives._create import NAMES, check_soft_labels, create, smoothed
from awp_jax.objectives._decoupled import decoupled_kl, ikl, logit_differences
from awp_jax.objectives._objective import (
    ADVERSARIAL,
    CLASS_MEANS,
    CLEAN,
    HELPER,
    TEACHER,
    Objective,
    check_losses,
)
from awp_jax.objectives._objectives import (
    ROTATIONS,
    at,
    boosted_cross_entropy,
    mart,
    natural,
    self_supervised,
    trades,
)
from awp_jax.objectives._taught import ard, hat, helpers

__all__ = [
    "ADVERSARIAL",
    "CLASS_MEANS",
    "CLEAN",
    "HELPER",
    "NAMES",
    "Objective",
    "ROTATIONS",
    "TEACHER",
    "ard",
    "at",
    "boosted_cross_entropy",
    "check_losses",
    "check_soft_labels",
    "create",
    "decoupled_kl",
    "hat",
    "helpers",
    "ikl",
    "logit_differences",
    "mart",
    "natural",
    "self_supervised",
    "smoothed",
    "trades",
]
