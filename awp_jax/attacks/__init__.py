"""Input attacks: pure functions ``attack(logits_fn, key, images, labels) -> AttackResult``."""

from awp_jax.attacks._losses import LOSSES as LOSSES
from awp_jax.attacks._losses import cross_entropy as cross_entropy
from awp_jax.attacks._losses import kl_divergence as kl_divergence
from awp_jax.attacks._losses import largest_wrong as largest_wrong
from awp_jax.attacks._losses import margin as margin
from awp_jax.attacks._pgd import FGSM as FGSM
from awp_jax.attacks._pgd import PGD as PGD
from awp_jax.attacks._result import AttackResult as AttackResult
