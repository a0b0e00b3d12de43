"""Attacks by name, as the command line and the papers' tables write them."""

import re
from typing import Any

from awp_jax import checks
from awp_jax.attacks import FGSM, PGD

_EXAMPLES = ("clean", "fgsm", "pgd-20", "pgd-100", "cw-100")


def attack_by_name(
    name: str,
    *,
    norm: str = "linf",
    epsilon: Any = 8 / 255,
    step_size: Any = None,
    restarts: int = 1,
) -> PGD | None:
    """The attack called ``name``.

    Args:
        name: ``"clean"``; ``"fgsm"``; ``"pgd-N"``: N steps; ``"cw-N"``: N steps of PGD on the CW
            margin (CW-inf of the AWP papers for ``"cw-100"``).
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        epsilon: Radius in pixel units.
        step_size: Of the iterated attacks, pixel units; ``None`` for 2.5 * epsilon / steps.
        restarts: Of the iterated attacks.

    Returns:
        The attack, or ``None`` for ``"clean"``.

    Raises:
        ValueError: For an unknown name.
    """
    if name == "clean":
        return None
    if name == "fgsm":
        return FGSM(epsilon, norm=norm)
    match = re.fullmatch(r"(pgd|cw)-([1-9]\d*)", name)
    if not match:
        checks.choice(name, _EXAMPLES, "attack")
        raise AssertionError("an example is not understood")
    loss = "cross_entropy" if match[1] == "pgd" else "margin"
    return PGD(
        epsilon,
        steps=int(match[2]),
        step_size=step_size,
        norm=norm,
        loss=loss,
        restarts=restarts,
    )
