"""Attacks by name, as the command line and the papers' tables write them."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from awp_jax import checks
from awp_jax.attacks import FGSM, PGD, SPSA, FeatureAttack, ensemble
from awp_jax.balls import NORMS
from awp_jax.results import CORRUPTIONS

_EXAMPLES = (
    "clean",
    "fgsm",
    "pgd-20",
    "pgd-100",
    "cw-100",
    "spsa",
    "feature",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "fab",
    "fab-t",
    "square",
)
# What all names look like.
_STEPPED = "spsa|feature|apgd-ce|apgd-dlr|apgd-t|fab|fab-t|square"
_FORMS = ("clean", "fgsm", "pgd-N", "cw-N", *(f"{name}[-N]" for name in _STEPPED.split("|")))
_PATTERN = re.compile(
    r"(?P<plain>clean|fgsm)|(?P<pgd>pgd|cw)-(?P<steps>[1-9]\d*)"
    rf"|(?P<stepped>{_STEPPED})(-(?P<count>[1-9]\d*))?"
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
    eot: int = 0,
) -> Callable | None:
    """The attack called ``name``.

    Args:
        name: ``"clean"``; ``"fgsm"``; ``"pgd-N"``: N steps; ``"cw-N"``: N steps of PGD on the CW
            margin (CW-inf of the AWP papers for ``"cw-100"``); ``"spsa"``,
            ``"feature"`` (for a ``Classifier``'s logits function), ``"apgd-ce"``, ``"apgd-dlr"``,
            ``"apgd-t"``, ``"fab"``, ``"fab-t"`` and ``"square"`` with published settings, or with
            N steps (queries) as ``"square-N"``.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        epsilon: Radius in pixel units.
        step_size: Of PGD and CW, pixel units; ``None`` for 2.5 * epsilon / steps.
        restarts: Of PGD and CW.
        eot: For a randomised model, how many passes each gradient averages over (FGSM, PGD, CW,
            APGD); 0: deterministic.

    Returns:
        The attack, or ``None`` for ``"clean"``.

    Raises:
        ValueError: For an unknown name, a norm that the attack has not, or ``eot`` for an attack
            that cannot average.

    Example:
        >>> from awp_jax.evaluation import attack_by_name
        >>> attack = attack_by_name("pgd-20", epsilon="8/255")
        >>> attack.steps, attack.ball.norm
        (20, 'linf')
    """
    match = _PATTERN.fullmatch(name)
    if not match:
        _unknown(name, _FORMS, _EXAMPLES)
    if name == "clean":
        return None
    if eot:
        _check_randomised(name)
    if match["plain"]:
        # FGSM makes a PGD, whose eot can be set although FGSM itself takes none.
        return dataclasses.replace(FGSM(epsilon, norm=norm), eot=eot)
    if match["pgd"]:
        return PGD(
            epsilon,
            steps=int(match["steps"]),
            step_size=step_size,
            norm=norm,
            loss="cross_entropy" if match["pgd"] == "pgd" else "margin",
            restarts=restarts,
            eot=eot,
        )
    radius = float(checks.radius(epsilon, "epsilon", norm))
    changes: dict[str, Any] = {"steps": int(match["count"])} if match["count"] else {}
    kind = match["stepped"]
    if kind == "spsa":
        return SPSA(radius, norm=norm, **changes)
    if kind == "feature":
        # 1/255 at 8/255 as published, and in proportion for other balls.
        return FeatureAttack(epsilon=radius, norm=norm, step_size=radius / 8, **changes)
    attack: Any = dict(ensemble("custom", norm=norm, epsilon=radius, attacks=[kind]))[kind]
    return dataclasses.replace(attack, **changes, **({"eot": eot} if eot else {}))


def _unknown(name: str, forms: Iterable[str], examples: Iterable[str]) -> NoReturn:
    near = difflib.get_close_matches(name, list(examples), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown attack {name!r}; known: {', '.join(forms)}, where N is a number of steps and "
        f"[-N] may be left out.{hint}"
    )


def _check_randomised(name: str) -> None:
    """Raises unless the attack of that name can average over the passes of a randomised model."""
    if not re.match(r"clean|fgsm|pgd|cw|apgd|rand$", name):
        raise ValueError(
            f"{name} cannot attack a randomised model: it does not average over random passes; "
            "fgsm, pgd-N, cw-N, apgd-ce, apgd-dlr, apgd-t and rand do."
        )


def attacks_by_name(names: Iterable[str], **settings: Any) -> dict[str, Any]:
    """The attacks of a selection, in its order, clean first.

    Args:
        names: As in ``attack_by_name``; ``"autoattack"``, ``"plus"`` and ``"rand"`` for a version
            of AutoAttack; ``"paper"`` for the columns of Table 2 of AWP (NeurIPS 2020): FGSM,
            PGD-20, PGD-100, CW-100, SPSA, AutoAttack.
        **settings: ``norm``, ``epsilon``, ``step_size``, ``restarts`` and ``eot`` of
            ``attack_by_name``.

    Returns:
        By name: ``None`` for clean, an attack, or for AutoAttack a list of ``(name, attack)``.

    Raises:
        ValueError: For an unknown name, or a norm that an attack has not.
    """
    flat = [n for name in names for n in (_PAPER if name == "paper" else (name,))]
    norm, epsilon = settings.get("norm", "linf"), settings.get("epsilon", 8 / 255)
    eot = settings.get("eot", 0)
    found: dict[str, Any] = {"clean": None}
    for name in flat:
        if name in _ENSEMBLES:
            checks.choice(norm, NORMS, "norm")
            radius = float(checks.radius(epsilon, "epsilon", norm))
            plan = ensemble(_ENSEMBLES[name], norm=norm, epsilon=radius)
            if eot:
                _check_randomised(name)
                # The number asked for, in place of the 20 of `rand`.
                replace: Any = dataclasses.replace
                plan = [(stage, replace(attack, eot=eot)) for stage, attack in plan]
            found[name] = plan
            continue
        if name == CORRUPTIONS:
            raise ValueError(
                f"{CORRUPTIONS} are no attack in a ball: awp_jax.evaluation.corruption_accuracy, "
                "Run.evaluate and awp-jax evaluate measure them."
            )
        if not _PATTERN.fullmatch(name):
            whole = (*_ENSEMBLES, "paper", CORRUPTIONS)
            _unknown(name, (*_FORMS, *whole), (*_EXAMPLES, *whole))
        found[name] = attack_by_name(name, **settings)
    return found
