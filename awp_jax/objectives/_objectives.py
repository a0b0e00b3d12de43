"""What is ascended and what is descended: natural training, AT, TRADES and MART."""

from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.attacks import cross_entropy, kl_divergence, largest_wrong
from awp_jax.objectives._objective import (
    ADVERSARIAL,
    CLEAN,
    Objective,
    attack_cross_entropy,
    weight,
)


def natural() -> Objective:
    """Ordinary training on clean images: cross-entropy, no adversary."""
    return Objective(
        name="natural",
        inputs=(CLEAN,),
        loss=lambda logits, labels: cross_entropy(logits[CLEAN], labels),
        attack_loss=None,
    )


def at() -> Objective:
    """Adversarial training (Madry et al. 2018; AWP eq. 1): cross-entropy on adversarial images.

    The attack uses batch statistics and starts uniformly in the ball (Rice et al. 2020,
    ``train_cifar.py``, which AT-AWP builds on).
    """
    return Objective(
        name="at",
        inputs=(ADVERSARIAL,),
        loss=lambda logits, labels: cross_entropy(logits[ADVERSARIAL], labels),
        attack_loss=attack_cross_entropy,
        attacks_its_loss=True,
    )


def trades(beta: float = 6.0) -> Objective:
    """TRADES (Zhang et al. 2019; AWP eq. 2): CE(clean) + beta * KL(clean || adversarial).

    The attack ascends the KL in evaluation mode from x + 0.001 * N(0, 1) (released ``trades.py``).
    Gradients of the weights flow through both arguments of the KL.

    Args:
        beta: Weight of the KL, >= 0; 6 for CIFAR-10 and 1 for MNIST in the released code.

    Example:
        >>> from awp_jax import objectives
        >>> objectives.trades(beta=6.0).name
        'trades'
    """
    beta = weight(beta, "beta")

    def loss(logits, labels):
        # No stop_gradient on either side, as released: the KL moves the clean logits as well.
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
    # 1.0001 keeps the logarithm finite at probability 1; the released code adds 1e-12 as well.
    wrong = largest_wrong(jax.nn.softmax(logits), labels)
    return cross_entropy(logits, labels) - jnp.log(1.0001 - wrong + 1e-12)


def mart(lambda_: float = 5.0) -> Objective:
    """MART (Wang et al. 2020; AWP eq. 3).

    ``BCE(adversarial) + lambda * KL(clean || adversarial) * (1.0000001 - p_clean[y])``; nothing is
    detached. The attack ascends cross-entropy in evaluation mode from x + 0.001 * N(0, 1).

    Args:
        lambda_: Weight of the KL, >= 0; 6 for WideResNet, 5 for ResNet-18 in the released code.
    """
    lambda_ = weight(lambda_, "lambda")

    def loss(logits, labels):
        # By way of the log-softmax; 1.0000001, as released, leaves the KL a weight above 0 where
        # the model is sure, in float32 too.
        label_probability = jnp.exp(-cross_entropy(logits[CLEAN], labels))
        divergence = kl_divergence(logits[CLEAN], logits[ADVERSARIAL])
        misclassified = lambda_ * divergence * (1.0000001 - label_probability)
        return boosted_cross_entropy(logits[ADVERSARIAL], labels) + misclassified

    return Objective(
        name="mart",
        inputs=(CLEAN, ADVERSARIAL),
        loss=loss,
        attack_loss=attack_cross_entropy,
        attack_batch_norm="running",
        start="gaussian",
    )


ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


def self_supervised(
    classifier: Any,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    mode: str,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """How well an auxiliary head tells rotations apart (Hendrycks et al., NeurIPS 2019, section 3).

    The cross-entropy of each image's four rotations, averaged. The paper adds it, weighted by 0.5,
    to the loss of the images that the attack on the class made.

    Args:
        classifier: Made with ``auxiliary=ROTATIONS``.
        params: Its parameters.
        batch_stats: Its statistics.
        images: float ``[batch, size, size, channels]``, square.
        mode: As in ``Classifier.apply``.
        key: For dropout, one typed key.

    Returns:
        ``(losses [batch] in nats, new statistics)``.

    Raises:
        ValueError: For images that are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"Rotations need square images, not of shape {images.shape[1:]}.")
    batch = images.shape[0]
    # By turn, then by image: the reshape at the end takes it apart in this order.
    rotated = jnp.concatenate([jnp.rot90(images, turns, (1, 2)) for turns in range(ROTATIONS)])
    turns = jnp.repeat(jnp.arange(ROTATIONS), batch)
    logits, batch_stats = classifier.auxiliary(params, batch_stats, rotated, mode=mode, key=key)
    return cross_entropy(logits, turns).reshape(ROTATIONS, batch).mean(0), batch_stats
