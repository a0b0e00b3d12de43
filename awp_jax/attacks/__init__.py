"""Input attacks: pure functions ``attack(logits_fn, key, images, labels) -> AttackResult``."""

from awp_jax.attacks._apgd import APGD, APGDTargeted
from awp_jax.attacks._apgd_steps import checkpoints
from awp_jax.attacks._autoattack import autoattack, run_stage, start_state
from awp_jax.attacks._autoattack_result import AutoAttackResult, AutoAttackState, Row
from awp_jax.attacks._ensemble import ensemble
from awp_jax.attacks._fab import FAB, FABTargeted
from awp_jax.attacks._feature import FeatureAttack
from awp_jax.attacks._in_ball import InBall
from awp_jax.attacks._losses import (
    LOSSES,
    HingedMargin,
    cross_entropy,
    dlr,
    kl_divergence,
    largest_wrong,
    margin,
    targeted_dlr,
    targeted_margin,
)
from awp_jax.attacks._minimum_norm import DDN, FMN
from awp_jax.attacks._mixed_nuts import MixedNUTS
from awp_jax.attacks._models import (
    SmallestLoss,
    WorstOfModels,
    every_model_fooled,
    mean_of_models,
    stacked_models,
    worst_of_models,
)
from awp_jax.attacks._nearest import NearestResult
from awp_jax.attacks._pgd import CW, FGSM, FGSMRS, NFGSM, PGD
from awp_jax.attacks._result import AttackResult
from awp_jax.attacks._spsa import SPSA
from awp_jax.attacks._square import Square
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.attacks._told import Progress
from awp_jax.attacks._transfer import transfer

__all__ = [
    "APGD",
    "APGDTargeted",
    "AttackResult",
    "AutoAttackResult",
    "AutoAttackState",
    "CW",
    "DDN",
    "FAB",
    "FABTargeted",
    "FGSM",
    "FGSMRS",
    "FMN",
    "FeatureAttack",
    "HingedMargin",
    "InBall",
    "LOSSES",
    "MixedNUTS",
    "NFGSM",
    "NearestResult",
    "PGD",
    "Progress",
    "Row",
    "SPSA",
    "SmallestLoss",
    "Square",
    "SteppedAttack",
    "WorstOfModels",
    "autoattack",
    "checkpoints",
    "cross_entropy",
    "dlr",
    "ensemble",
    "every_model_fooled",
    "kl_divergence",
    "largest_wrong",
    "margin",
    "mean_of_models",
    "run_stage",
    "stacked_models",
    "start_state",
    "targeted_dlr",
    "targeted_margin",
    "transfer",
    "worst_of_models",
]
