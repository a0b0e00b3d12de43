"""Which attacks AutoAttack runs, and in which order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from awp_jax import checks
from awp_jax.attacks._apgd import APGD, APGDTargeted
from awp_jax.attacks._fab import FAB, FABTargeted
from awp_jax.attacks._square import Square

# fra31/auto-attack, autoattack.py.
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
NAMES = VERSIONS["plus"]


def ensemble(
    version: str = "standard",
    *,
    norm: str = "linf",
    epsilon: Any = 8 / 255,
    attacks: Iterable[Any] | None = None,
) -> list[tuple[str, Callable]]:
    """The attacks of a version of AutoAttack, with their published settings.

    Args:
        version: ``"standard"``: APGD-CE, APGD-T, FAB-T, Square with 5000 queries. ``"plus"``: all
            six, five restarts of APGD-CE, APGD-DLR and FAB. ``"rand"``: APGD-CE and APGD-DLR with
            the gradient of 20 random passes, for ``logits_fn(images, key)``. ``"custom"``: the
            ``attacks``.
        norm: ``"linf"`` or ``"l2"``.
        epsilon: Radius in pixel units.
        attacks: For ``"custom"``: names out of ``apgd-ce``, ``apgd-dlr``, ``apgd-t``, ``fab``,
            ``fab-t``, ``square``, and ``(name, attack)`` pairs. Otherwise a selection of names.

    Returns:
        ``[(name, attack), ...]`` in the order in which they run.

    Raises:
        ValueError: For unknown names and an empty selection.
    """
    checks.choice(version, (*VERSIONS, "custom"), "version")
    restarts, eot = (5 if version == "plus" else 1), (20 if version == "rand" else 0)
    common = {"epsilon": epsilon, "norm": norm}
    known: dict[str, Callable] = {
        "apgd-ce": APGD(**common, restarts=restarts, eot=eot),
        "apgd-dlr": APGD(**common, restarts=restarts, eot=eot, loss="dlr"),
        "fab": FAB(**common, restarts=restarts),
        "square": Square(**common),
        "apgd-t": APGDTargeted(**common, eot=eot),
        "fab-t": FABTargeted(**common),
    }
    allowed = VERSIONS.get(version, NAMES)
    if isinstance(attacks, str):
        attacks = [name.strip() for name in attacks.split(",") if name.strip()]
    chosen = list(VERSIONS.get(version, ()) if attacks is None else attacks)
    if not chosen:
        raise ValueError(f"No attacks were selected; known: {', '.join(allowed)}.")
    plan = []
    for entry in chosen:
        if isinstance(entry, str):
            entry = (entry, known[checks.choice(entry, allowed, "attack")])
        if not (isinstance(entry, tuple) and len(entry) == 2 and callable(entry[1])):
            raise ValueError(f"{entry!r} is neither a name nor a pair (name, attack).")
        plan.append(entry)
    return plan


def is_random(plan: Sequence[tuple[str, Callable]]) -> bool:
    random = [bool(getattr(attack, "eot", 0)) for _, attack in plan]
    if any(random) != all(random):
        raise ValueError("Attacks with eot, for logits_fn(images, key), and without do not mix.")
    return any(random)
