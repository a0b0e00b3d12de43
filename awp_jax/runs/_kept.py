"""``evaluation.json``: every evaluation of a run, the widest first."""

import pathlib
from collections.abc import Mapping
from typing import Any

from awp_jax.files import read_json
from awp_jax.training import WorkdirError

EVALUATION = "evaluation.json"
OTHERS = "others"
# What results must have in common to be one evaluation.
SAME: tuple[str, ...] = ("method", "seed", "norm", "epsilon", "step_size", "restarts", "eot")
SAME += ("selection", "device", "data", "model", "dtype", "surrogate")


def read_evaluation(workdir: pathlib.Path) -> dict[str, Any] | None:
    """``evaluation.json`` of a run directory, or ``None`` when there is none.

    Returns:
        The widest evaluation; the others are under ``"others"``, where there are some.

    Raises:
        WorkdirError: When it is damaged.
    """
    path = workdir / EVALUATION
    if not path.exists():
        return None
    found = read_json(path, WorkdirError)
    for one in [found, *found.get(OTHERS, [])]:
        if not isinstance(one, dict) or not isinstance(one.get("checkpoints"), dict):
            raise WorkdirError(f"{path} is damaged: an object with checkpoints was expected.")
    return found


def with_earlier(
    earlier: Mapping[str, Any] | None, result: dict[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """A result together with the earlier ones; a narrow one never takes the place of a wide one.

    First stands what says most of the run as it is: of its present weights, crafted on itself, in
    float32, within its own radius, on the most examples, by the most attacks, the latest.

    Args:
        earlier: From ``read_evaluation``.
        result: From ``evaluate_run``.
        config: Of the run: what its own radius is.

    Returns:
        What ``evaluation.json`` shall hold; the evaluation that ``result`` became a part of; and a
        sentence for a person where that is not the first.
    """
    kept: list[dict[str, Any]] = []
    if earlier is not None:
        first = {key: value for key, value in earlier.items() if key != OTHERS}
        kept = [*reversed(earlier.get(OTHERS, [])), first]
    same = next((one for one in kept if not _difference(one, result)), None)
    mine = result if same is None else _merged(same, result)
    kept = [one | _superseded(one, result) for one in kept if one is not same] + [mine]
    ranked = sorted(kept, key=lambda one: _width(one, config))[::-1]  # sorted keeps the order
    whole = ranked[0] | ({OTHERS: ranked[1:]} if ranked[1:] else {})
    words = ""
    if ranked[0] is not mine:
        words = (
            f"{EVALUATION} keeps this beside a wider evaluation, which tables and figures show: "
            f"{_difference(ranked[0], result)}."
        )
    return whole, mine, words


def _width(one: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Any, ...]:
    own = config["evaluation"]["epsilon"] or config["attack"]["epsilon"]
    measured: dict[str, Any] = next(iter(one["checkpoints"].values()), {})
    sets = _sets(measured).values()
    return (
        not one.get("superseded"),
        one.get("surrogate") is None,
        one.get("dtype") == "float32",
        one["epsilon"] == own,
        sum(found["clean"]["examples"] for found in sets),
        len({attack for found in sets for attack in found}),
    )


def _superseded(one: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, bool]:
    """A mark on what was measured before the run went on."""
    ours = result["checkpoints"]
    other = any(
        measured["digest"] != ours[which]["digest"]
        for which, measured in one["checkpoints"].items()
        if which in ours
    )
    return {"superseded": True} if other else {}


def _difference(earlier: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Why the two are not one evaluation; empty where they are."""
    for key in SAME:
        if earlier.get(key) != result.get(key):
            return f"{key} is {earlier.get(key)!r} there and {result.get(key)!r} here"
    for which, measured in result["checkpoints"].items():
        for name, before in earlier["checkpoints"].items():
            same = before.get("digest") == measured["digest"]
            if name == which and not same:
                return f"the {which} checkpoint is another"
            for part, found in _sets(measured).items() if same else ():
                counts = [s["clean"]["examples"] for s in (before.get(part, found), found)]
                if counts[0] != counts[1]:
                    return f"it is of {counts[0]} {part} examples and this of {counts[1]}"
    return ""


def _sets(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {part: found for part, found in measured.items() if isinstance(found, dict)}


def _merged(earlier: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The attacks of both; where both have one, that of ``result``."""
    checkpoints, unions = {**earlier["checkpoints"]}, {**earlier.get("unions", {})}
    for name, measured in result["checkpoints"].items():
        # Best and last are often the same weights: what one has, the other gets.
        same = [w for w, m in checkpoints.items() if m.get("digest") == measured["digest"]]
        found: dict[str, Any] = {}
        for one in [*(checkpoints[which] for which in same), measured]:
            found |= {part: found.get(part, {}) | rows for part, rows in _sets(one).items()}
        together: dict[str, Any] = {}
        for union in [*(unions.get(which, {}) for which in same), result["unions"][name]]:
            # Examples are not kept, so the union of all is not known: that of more attacks stays.
            together |= {part: _wider(new, together.get(part)) for part, new in union.items()}
        for which in [*same, name]:
            checkpoints[which], unions[which] = {**measured, **found}, together
    return {**result, "checkpoints": checkpoints, "unions": unions}


def _wider(new: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    return old if old is not None and len(old["attacks"]) > len(new["attacks"]) else new
