"""Objectives that learn from another model: ARD from a robust teacher, HAT from a standard one."""

import math

import jax
import jax.numpy as jnp

from awp_jax.attacks import cross_entropy, kl_divergence
from awp_jax.objectives._objective import (
    ADVERSARIAL,
    CLEAN,
    HELPER,
    TEACHER,
    Objective,
    attack_cross_entropy,
    weight,
)
from awp_jax.objectives._objectives import trades


def ard(alpha: float = 1.0, temperature: float = 30.0) -> Objective:
    """Adversarially robust distillation (Goldblum et al., AAAI 2020, arXiv:1905.09747).

    ``alpha * t^2 * KL(teacher(x) || student(x'))`` of the logits divided by t, and
    ``(1 - alpha) * CE(student(x), y)`` of those that are not. The attack is that of AT, on the
    student. The teacher is fixed and sees the clean images, as augmented.

    The released ``main.py`` (goldblum/AdversariallyRobustDistillation) takes PyTorch's mean over
    examples and classes, so that its divergence is that of here divided by the number of classes.
    With alpha 1 that is a learning rate of 0.1 and a weight decay of 2e-4 there for 0.01 and 2e-3
    here, with 10 classes. Its student's running statistics move in the attack too, and then by the
    adversarial images before the clean ones; here they move in the loss alone, clean ones first.

    Args:
        alpha: In [0, 1]: the teacher's share of the loss; 1 in the released code, where the labels
            are needed by the attack alone.
        temperature: t, above 0; 30 in the released code.

    Raises:
        ValueError: For other values.
    """
    if not weight(alpha, "alpha") <= 1:
        raise ValueError(f"alpha is {alpha!r}, but a number in [0, 1] was expected.")
    if not 0 < weight(temperature, "temperature") < math.inf:
        raise ValueError(f"temperature is {temperature!r}, but a positive number was expected.")

    def loss(logits, labels):
        taught, robust = logits[TEACHER] / temperature, logits[ADVERSARIAL] / temperature
        # t^2: the gradient of the softened divergence shrinks by it.
        divergence = alpha * temperature**2 * kl_divergence(taught, robust)
        if alpha == 1:
            return divergence
        return divergence + (1 - alpha) * cross_entropy(logits[CLEAN], labels)

    return Objective(
        name="ard",
        # The clean pass moves the running statistics with alpha 1 as well, as released.
        inputs=(CLEAN, ADVERSARIAL),
        loss=loss,
        attack_loss=attack_cross_entropy,
        teacher=CLEAN,
    )


def hat(beta: float = 2.5, helper_weight: float = 0.5, helper_scale: float = 2.0) -> Objective:
    """Helper-based adversarial training (Rade and Moosavi-Dezfooli, ICLR 2022).

    ``CE(x, y) + beta * KL(x || x') + gamma * CE(x + h (x' - x), argmax teacher(x'))``: the helper,
    beyond the adversarial image, gets the class that a standardly trained teacher sees in the
    adversarial one. The attack is that of TRADES. As in ``hat_loss`` of the released
    ``core/utils/hat.py`` (imrahulr/hat), helpers are not clipped to [0, 1], gradients flow through
    both arguments of the KL, and statistics move by clean, adversarial and helper images in turn.

    Label smoothing spreads the labels of the clean images, not those of the helpers.

    Args:
        beta: Weight of the KL, >= 0; 2.5 in the released command for CIFAR-10, 3.5 with more data.
        helper_weight: gamma, >= 0; 0.5 in both.
        helper_scale: h, >= 0; 2 in the released ``train.py``.

    Raises:
        ValueError: For other values.
    """
    pair, helper_weight = trades(beta), weight(helper_weight, "helper_weight")

    def loss(logits, labels):
        seen = jnp.argmax(logits[TEACHER], axis=1)
        return pair.loss(logits, labels) + helper_weight * cross_entropy(logits[HELPER], seen)

    return Objective(
        name="hat",
        inputs=(CLEAN, ADVERSARIAL, HELPER),
        loss=loss,
        attack_loss=pair.attack_loss,
        attack_uses_clean_logits=True,
        attack_batch_norm="running",
        start="gaussian",
        teacher=ADVERSARIAL,
        helper_scale=weight(helper_scale, "helper_scale"),
    )


def helpers(images: jax.Array, adversarial: jax.Array, scale: float) -> jax.Array:
    """Images beyond the adversarial ones, seen from the clean ones: x + h (x' - x)."""
    return images + scale * (adversarial - images)
