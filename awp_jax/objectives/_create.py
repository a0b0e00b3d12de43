"""Objectives by name, and labels that are no single class."""

import dataclasses
from typing import Any

import jax

from awp_jax import checks
from awp_jax.objectives._decoupled import ikl
from awp_jax.objectives._objective import Objective, weight
from awp_jax.objectives._objectives import at, mart, natural, trades
from awp_jax.objectives._taught import ard, hat


def smoothed(objective: Objective, amount: float) -> Objective:
    """An objective on smoothed labels (Szegedy et al. 2016, section 7).

    The loss gets ``(1 - amount) * one_hot(y) + amount / classes``; the attack keeps the labels
    (Pang et al., "Bag of tricks for adversarial training", ICLR 2021). In expectation this is the
    distribution of ``awp_jax.data.with_label_noise`` of the same amount.

    Args:
        objective: One whose loss is linear in the distribution of labels: all but MART.
        amount: In [0, 1); 0 for no smoothing.

    Raises:
        ValueError: For an amount out of range, or MART.
    """
    if not 0 <= amount < 1:
        raise ValueError(f"label_smoothing is {amount!r}, but a number in [0, 1) was expected.")
    if not amount:
        return objective
    check_soft_labels(objective.name, "label_smoothing")

    def loss(logits, labels):
        classes = logits[objective.inputs[0]].shape[1]
        dtype = logits[objective.inputs[0]].dtype
        sharp = labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes, dtype=dtype)
        return objective.loss(logits, (1 - amount) * sharp + amount / classes)

    # The attack keeps the sharp labels, so its gradient is not that of what weights ascend.
    return dataclasses.replace(objective, loss=loss, attacks_its_loss=False)


def check_soft_labels(name: str, option: str) -> None:
    """Raises ``ValueError`` for an objective that needs one class per example."""
    if name == "mart":
        raise ValueError(
            f"{option} gives an example several classes, but MART compares its probability of one "
            "class: use natural, at or trades."
        )


NAMES = ("natural", "at", "trades", "mart", "ard", "hat", "ikl")


def create(
    name: Any,
    *,
    beta: float = 6.0,
    lambda_: float = 5.0,
    alpha: float = 1.0,
    temperature: float = 30.0,
    helper_weight: float = 0.5,
    helper_scale: float = 2.0,
    difference_weight: float = 20.0,
    soft_weight: float = 4.0,
    class_temperature: float = 4.0,
    label_smoothing: float = 0.0,
    rotation_weight: float = 0.0,
    gradient_alignment: float = 0.0,
) -> Objective:
    """An objective by name.

    Args:
        name: One of ``NAMES``; or an ``Objective`` of your own, which only the last three change.
        beta: For TRADES and HAT (2.5 in its release).
        lambda_: For MART.
        alpha: For ARD.
        temperature: For ARD.
        helper_weight: For HAT.
        helper_scale: For HAT.
        difference_weight: For IKL.
        soft_weight: For IKL.
        class_temperature: For IKL.
        label_smoothing: See ``smoothed``.
        rotation_weight: Of the self-supervised loss (Hendrycks et al.: 0.5); 0 for none.
        gradient_alignment: lambda of GradAlign (released: 0.2 for 8/255); 0 for none.

    Returns:
        The objective.

    Raises:
        ValueError: For an unknown name (says which are known) or a value out of range.
    """
    if not isinstance(name, Objective):
        checks.choice(name, NAMES, "objective")
    # Called only by name: a bad beta does not matter to MART.
    known = {
        "natural": natural,
        "at": at,
        "trades": lambda: trades(beta),
        "mart": lambda: mart(lambda_),
        "ard": lambda: ard(alpha, temperature),
        "hat": lambda: hat(beta, helper_weight, helper_scale),
        "ikl": lambda: ikl(difference_weight, soft_weight, class_temperature),
    }
    plain = name if isinstance(name, Objective) else known[name]()
    objective = smoothed(plain, label_smoothing)
    if gradient_alignment:
        lambda_ = weight(gradient_alignment, "gradient_alignment")
        objective = dataclasses.replace(objective, gradient_alignment=lambda_)
    if not rotation_weight:
        return objective
    rotation_weight = weight(rotation_weight, "rotation_weight")
    # Weights ascend the rotations as well, which the attack knows nothing of.
    return dataclasses.replace(objective, rotation_weight=rotation_weight, attacks_its_loss=False)
