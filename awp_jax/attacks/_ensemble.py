"""Which attacks AutoAttack runs, and in which order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from awp_jax import checks
from awp_jax.attacks._apgd import APGD, APGDTargeted
from awp_jax.attacks._fab import FAB, FABTargeted
from awp_jax.attacks._in_ball import OF_THE_BALL, ball_of, is_l1
from awp_jax.attacks._square import Square
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.balls import InputBall
from awp_jax.typing import Inputs, Radius
from awp_jax.words import known_names

# fra31/auto-attack, autoattack.py.
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
NAMES = VERSIONS["plus"]


@known_names
def ensemble(
    version: str = "standard",
    *,
    norm: Any = OF_THE_BALL,
    epsilon: Radius = OF_THE_BALL,
    ball: Any = None,
    attacks: Iterable[Any] | None = None,
) -> list[tuple[str, Callable[..., Any]]]:
    """The attacks of a version of AutoAttack, with their published settings.

    Args:
        version: ``"standard"``: APGD-CE, APGD-T, FAB-T, Square with 5000 queries. ``"plus"``: all
            six, five restarts of APGD-CE, APGD-DLR and FAB. ``"rand"``: APGD-CE and APGD-DLR with
            the gradient of 20 random passes, for ``logits_fn(images, key)``. ``"custom"``: the
            ``attacks``. In L1 ``"standard"`` and ``"custom"`` have ``larger_radii`` in all APGD,
            five restarts of APGD-CE and APGD-DLR, and 5 targets of APGD-T (Croce and Hein, ICML
            2021); ``"plus"`` and ``"rand"`` are the same in all norms, as released.
        norm, epsilon: Short for ``ball=InputBall(norm, epsilon)``.
        ball: What they move in.
        attacks: For ``"custom"``: names out of ``apgd-ce``, ``apgd-dlr``, ``apgd-t``, ``fab``,
            ``fab-t``, ``square``, and ``(name, attack)`` pairs. Otherwise a selection of names.

    Returns:
        ``[(name, attack), ...]`` in the order in which they run.

    Raises:
        ValueError: For unknown names, an empty selection, and an attack that has no meaning in the
            ball.

    Example:
        >>> from awp_jax.attacks import ensemble
        >>> [name for name, attack in ensemble("standard", epsilon="8/255")]
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """
    checks.choice(version, (*VERSIONS, "custom"), "version")
    common = {"ball": ball_of(epsilon, norm, ball)}
    restarts, eot = (5 if version == "plus" else 1), (20 if version == "rand" else 0)
    untargeted: dict[str, Any] = {**common, "restarts": restarts, "eot": eot}
    targeted: dict[str, Any] = {**common, "eot": eot}
    if is_l1(common["ball"]) and version in ("standard", "custom"):
        untargeted |= {"restarts": 5, "larger_radii": True}
        targeted |= {"targets": 5, "larger_radii": True}
    # Made when asked for: some refuse a ball that others take.
    known: dict[str, Callable[[], Callable[..., Any]]] = {
        "apgd-ce": lambda: APGD(**untargeted),
        "apgd-dlr": lambda: APGD(**untargeted, loss="dlr"),
        "fab": lambda: FAB(**common, restarts=restarts),
        "square": lambda: Square(**common),
        "apgd-t": lambda: APGDTargeted(**targeted),
        "fab-t": lambda: FABTargeted(**common),
    }
    allowed = VERSIONS.get(version, NAMES)
    if isinstance(attacks, str):
        attacks = [name.strip() for name in attacks.split(",") if name.strip()]
    chosen = list(VERSIONS.get(version, ()) if attacks is None else attacks)
    if not chosen:
        raise ValueError(f"No attacks were selected; known: {', '.join(allowed)}.")
    if attacks is None and not isinstance(common["ball"], InputBall) and "square" in chosen:
        raise ValueError(
            f"Version {version!r} holds FAB and Square, which need an InputBall: in a ball of your "
            "own name attacks that need none, such as attacks=['apgd-ce', 'apgd-t']."
        )
    plan = []
    for entry in chosen:
        if isinstance(entry, str):
            entry = (entry, known[checks.choice(entry, allowed, "attack")]())
        if not (isinstance(entry, tuple) and len(entry) == 2 and callable(entry[1])):
            raise ValueError(f"{entry!r} is neither a name nor a pair (name, attack).")
        plan.append(entry)
    return plan


def runnable(
    plan: Sequence[tuple[str, Callable[..., Any]]], images: Inputs, classes: int
) -> tuple[list[tuple[str, Callable[..., Any]]], list[tuple[str, str]]]:
    """Which attacks of a plan are defined for these images and classes, and why others are not.

    Args:
        plan: From ``ensemble``.
        images: ``[examples, ...]``, or their shape and dtype.
        classes: Number of classes.

    Returns:
        The attacks that are, and ``(name, reason)`` of the others.
    """
    left, out = [], []
    for name, attack in plan:
        reason = None
        if isinstance(attack, APGD) and attack.loss == "dlr" and classes < 3:
            reason = f"the DLR loss needs at least 3 classes, not {classes}"
        elif isinstance(attack, SteppedAttack):
            try:
                attack.check(images)
            except ValueError as error:
                reason = str(error).rstrip(".")
        if reason is None:
            left.append((name, attack))
        else:
            out.append((name, reason))
    return left, out


def is_random(plan: Sequence[tuple[str, Callable[..., Any]]]) -> bool:
    """Whether the attacks are for ``logits_fn(images, key)``; all have to be, or none."""
    random = [bool(getattr(attack, "eot", 0)) for _, attack in plan]
    if any(random) != all(random):
        raise ValueError("Attacks with eot, for logits_fn(images, key), and without do not mix.")
    return any(random)
