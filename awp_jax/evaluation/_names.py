"""Attacks by name, as the command line and the papers' tables write them."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from awp_jax import checks
from awp_jax.attacks import FGSM, PGD, SPSA, ensemble

_EXAMPLES = (
    "clean",
    "fgsm",
    "pgd-20",
    "pgd-100",
    "cw-100",
    "spsa",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "fab",
    "fab-t",
    "square",
)
_PATTERN = re.compile(
    r"(?P<plain>clean|fgsm)|(?P<pgd>pgd|cw)-(?P<steps>[1-9]\d*)"
    r"|(?P<stepped>spsa|apgd-ce|apgd-dlr|apgd-t|fab|fab-t|square)(-(?P<count>[1-9]\d*))?"
)
_ENSEMBLES = {"autoattack": "standard", "rand": "rand", "plus": "plus"}
# The columns of AWP (NeurIPS 2020), Table 2.
_PAPER = ("fgsm", "pgd-20", "pgd-100", "cw-100", "spsa", "autoattack")


def attack_by_name(
    name: str,
    *,
    norm: str = "linf",
    epsilon: Any = 8 / 255,
    step_size: Any = None,
    restarts: int = 1,
) -> Callable | None:
    """The attack called ``name``.

    Args:
        name: ``"clean"``; ``"fgsm"``; ``"pgd-N"``: N steps; ``"cw-N"``: N steps of PGD on the CW
            margin (CW-inf of the AWP papers for ``"cw-100"``); ``"spsa"``, ``"apgd-ce"``,
            ``"apgd-dlr"``, ``"apgd-t"``, ``"fab"``, ``"fab-t"`` and ``"square"`` with published
            settings, or with N steps (queries) as ``"square-N"``.
        norm: ``"linf"``, ``"l2"`` or, for FGSM, PGD and CW, ``"l1"``.
        epsilon: Radius in pixel units.
        step_size: Of PGD and CW, pixel units; ``None`` for 2.5 * epsilon / steps.
        restarts: Of PGD and CW.

    Returns:
        The attack, or ``None`` for ``"clean"``.

    Raises:
        ValueError: For an unknown name, or a norm that the attack has not.
    """
    match = _PATTERN.fullmatch(name)
    if not match:
        checks.choice(name, _EXAMPLES, "attack")
        raise AssertionError("an example is not understood")
    if match["plain"]:
        return None if name == "clean" else FGSM(epsilon, norm=norm)
    if match["pgd"]:
        return PGD(
            epsilon,
            steps=int(match["steps"]),
            step_size=step_size,
            norm=norm,
            loss="cross_entropy" if match["pgd"] == "pgd" else "margin",
            restarts=restarts,
        )
    radius = float(checks.radius(epsilon, "epsilon", norm))
    changes: dict[str, Any] = {"steps": int(match["count"])} if match["count"] else {}
    kind = match["stepped"]
    if kind == "spsa":
        return SPSA(radius, norm=norm, **changes)
    checks.choice(norm, ("linf", "l2"), f"norm of {kind}")
    attack: Any = dict(ensemble("custom", norm=norm, epsilon=radius, attacks=[kind]))[kind]
    return dataclasses.replace(attack, **changes)


def attacks_by_name(names: Iterable[str], **settings: Any) -> dict[str, Any]:
    """The attacks of a selection, in its order, clean first.

    Args:
        names: As in ``attack_by_name``; ``"autoattack"``, ``"plus"`` and ``"rand"`` for a version
            of AutoAttack; ``"paper"`` for the columns of Table 2 of AWP (NeurIPS 2020): FGSM,
            PGD-20, PGD-100, CW-100, SPSA, AutoAttack.
        **settings: ``norm``, ``epsilon``, ``step_size`` and ``restarts`` of ``attack_by_name``.

    Returns:
        By name: ``None`` for clean, an attack, or for AutoAttack a list of ``(name, attack)``.

    Raises:
        ValueError: For an unknown name, or a norm that an attack has not.
    """
    flat = [n for name in names for n in (_PAPER if name == "paper" else (name,))]
    norm, epsilon = settings.get("norm", "linf"), settings.get("epsilon", 8 / 255)
    found: dict[str, Any] = {"clean": None}
    for name in flat:
        if name in _ENSEMBLES:
            checks.choice(norm, ("linf", "l2"), f"norm of {name}")
            radius = float(checks.radius(epsilon, "epsilon", norm))
            found[name] = ensemble(_ENSEMBLES[name], norm=norm, epsilon=radius)
            continue
        if not _PATTERN.fullmatch(name):
            checks.choice(name, (*_EXAMPLES, *_ENSEMBLES, "paper"), "attack")
        found[name] = attack_by_name(name, **settings)
    return found
