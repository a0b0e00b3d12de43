"""How much an attack has to compute, so that the time left can be told."""

from typing import Any

from awp_jax.attacks import SPSA, Square


def work(attack: Any) -> float:
    """Passes through the model for one example, about: a gradient counts as two, a look as one.

    Args:
        attack: An attack, a list of ``(name, attack)``, or ``None`` for clean images.
    """
    if attack is None:
        return 1.0
    if isinstance(attack, list):
        return sum(work(stage) for _, stage in attack)
    runs = getattr(attack, "restarts", 1) * max(getattr(attack, "targets", 0), 1)
    passes: float = 2 * max(getattr(attack, "eot", 0), 1)
    if isinstance(attack, Square):
        passes = 1
    if isinstance(attack, SPSA):
        passes = attack.samples
    return 1.0 + runs * passes * getattr(attack, "steps", 1)
