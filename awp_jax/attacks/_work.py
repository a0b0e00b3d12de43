"""How much an attack has to compute, so that the time left can be told."""

from typing import Any

from awp_jax.attacks._fab import FAB
from awp_jax.attacks._spsa import SPSA
from awp_jax.attacks._square import Square
from awp_jax.attacks._stepped import SteppedAttack


def passes_per_step(attack: Any, classes: int = 10) -> float:
    """Passes through the model that one step takes for one example, about.

    A gradient counts as two; FAB looks once more at where it went, and without a target it asks for
    the gradient of every class.
    """
    if isinstance(attack, Square):
        return 1.0
    if isinstance(attack, SPSA):
        return float(attack.samples)
    if isinstance(attack, FAB):
        return 3.0 if attack.targets else 2.0 + classes
    return 2.0 * max(getattr(attack, "eot", 0), 1)


def steps_of(attack: Any, classes: int | None = None) -> int:
    """Steps of all runs on one example; 1 for an attack that does not say.

    Args:
        attack: An attack.
        classes: Number of classes; where it is not known, as many targets as the attack has.
    """
    if isinstance(attack, SteppedAttack):
        known = attack.targets + 1 if classes is None else classes
        return len(attack.runs(known)) * attack.passes
    return getattr(attack, "restarts", 1) * max(getattr(attack, "steps", 1), 1)


def work(attack: Any) -> float:
    """Passes through the model for one example, about: a gradient counts as two, a look as one.

    Args:
        attack: An attack, a list of ``(name, attack)``, or ``None`` for clean images.
    """
    if attack is None:
        return 1.0
    if isinstance(attack, list):
        return sum(work(stage) for _, stage in attack)
    return 1.0 + passes_per_step(attack) * steps_of(attack)
