"""What is ascended and what is descended: natural training, AT, TRADES and MART."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.attacks import cross_entropy, kl_divergence, largest_wrong

CLEAN, ADVERSARIAL = "clean", "adversarial"


@dataclasses.dataclass(frozen=True)
class Objective:
    """One method of adversarial training.

    Attributes:
        name: As in configs.
        inputs: Which images the loss needs a forward pass of: of ``"clean"``, ``"adversarial"``, in
            this order.
        loss: ``(logits by input, labels) -> [batch]``: what the weights descend, and what the
            weight perturbation ascends.
        attack_loss: ``(logits, labels, clean logits or None) -> [batch]``: what the input adversary
            ascends; ``None`` for no attack.
        attack_uses_clean_logits: Whether ``attack_loss`` needs the logits of the clean images.
        attack_batch_norm: The BatchNorm mode of the released attack: ``"batch"`` or ``"running"``.
        start: The released start of the attack, see ``ImageBall.start``.
    """

    name: str
    inputs: tuple[str, ...]
    loss: Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]
    attack_loss: Callable[..., jax.Array] | None
    attack_uses_clean_logits: bool = False
    attack_batch_norm: str = "batch"
    start: str = "uniform"


def natural() -> Objective:
    """Ordinary training on clean images: cross-entropy, no adversary."""
    return Objective(
        name="natural",
        inputs=(CLEAN,),
        loss=lambda logits, labels: cross_entropy(logits[CLEAN], labels),
        attack_loss=None,
    )


def _attack_cross_entropy(logits, labels, clean_logits):
    del clean_logits
    return cross_entropy(logits, labels)


def at() -> Objective:
    """Adversarial training (Madry et al. 2018; AWP eq. 1): cross-entropy on adversarial images.

    The attack uses batch statistics and starts uniformly in the ball (Rice et al. 2020,
    ``train_cifar.py``, which AT-AWP builds on).
    """
    return Objective(
        name="at",
        inputs=(ADVERSARIAL,),
        loss=lambda logits, labels: cross_entropy(logits[ADVERSARIAL], labels),
        attack_loss=_attack_cross_entropy,
    )


def trades(beta: float = 6.0) -> Objective:
    """TRADES (Zhang et al. 2019; AWP eq. 2): CE(clean) + beta * KL(clean || adversarial).

    The attack ascends the KL in evaluation mode from x + 0.001 * N(0, 1) (released ``trades.py``).
    Gradients of the weights flow through both arguments of the KL.

    Args:
        beta: Weight of the KL, >= 0; 6 for CIFAR-10 and 1 for MNIST in the released code.
    """
    beta = _weight(beta, "beta")

    def loss(logits, labels):
        robust = kl_divergence(logits[CLEAN], logits[ADVERSARIAL])
        return cross_entropy(logits[CLEAN], labels) + beta * robust

    return Objective(
        name="trades",
        inputs=(CLEAN, ADVERSARIAL),
        loss=loss,
        attack_loss=lambda logits, labels, clean: kl_divergence(clean, logits),
        attack_uses_clean_logits=True,
        attack_batch_norm="running",
        start="gaussian",
    )


def boosted_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The BCE of MART (AWP eq. 3), with the constants of the released ``mart.py``.

    ``CE - log(1.0001 - max_{k != y} p_k + 1e-12)``, so it stays finite at probability 1.

    Args:
        logits: float ``[batch, classes]``.
        labels: int ``[batch]``.

    Returns:
        ``[batch]``, in nats.
    """
    wrong = largest_wrong(jax.nn.softmax(logits), labels)
    return cross_entropy(logits, labels) - jnp.log(1.0001 - wrong + 1e-12)


def mart(lambda_: float = 5.0) -> Objective:
    """MART (Wang et al. 2020; AWP eq. 3).

    ``BCE(adversarial) + lambda * KL(clean || adversarial) * (1.0000001 - p_clean[y])``; nothing is
    detached. The attack ascends cross-entropy in evaluation mode from x + 0.001 * N(0, 1).

    Args:
        lambda_: Weight of the KL, >= 0; 6 for WideResNet, 5 for ResNet-18 in the released code.
    """
    lambda_ = _weight(lambda_, "lambda")

    def loss(logits, labels):
        label_probability = jnp.exp(-cross_entropy(logits[CLEAN], labels))
        divergence = kl_divergence(logits[CLEAN], logits[ADVERSARIAL])
        misclassified = lambda_ * divergence * (1.0000001 - label_probability)
        return boosted_cross_entropy(logits[ADVERSARIAL], labels) + misclassified

    return Objective(
        name="mart",
        inputs=(CLEAN, ADVERSARIAL),
        loss=loss,
        attack_loss=_attack_cross_entropy,
        attack_batch_norm="running",
        start="gaussian",
    )


def _weight(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name} is {value!r}, but a number of at least 0 was expected.")
    return float(value)


NAMES = ("natural", "at", "trades", "mart")


def create(name: str, *, beta: float = 6.0, lambda_: float = 5.0) -> Objective:
    """An objective by name.

    Args:
        name: ``"natural"``, ``"at"``, ``"trades"`` or ``"mart"``.
        beta: For TRADES.
        lambda_: For MART.

    Returns:
        The objective.

    Raises:
        ValueError: For an unknown name (says which are known) or a negative weight.
    """
    checks.choice(name, NAMES, "objective")
    if name == "trades":
        return trades(beta)
    if name == "mart":
        return mart(lambda_)
    return natural() if name == "natural" else at()
