"""``evaluation.json``: what is there when another selection of attacks comes to it."""

import itertools
import pathlib
from typing import Any

from awp_jax.files import read_json
from awp_jax.training import WorkdirError

EVALUATION = "evaluation.json"
# What results must have in common to stand in one file.
_SAME: tuple[str, ...] = ("method", "seed", "norm", "epsilon", "step_size", "restarts", "eot")
_SAME += ("selection", "device", "data", "model", "dtype", "surrogate")


def read_evaluation(workdir: pathlib.Path) -> dict[str, Any] | None:
    """``evaluation.json`` of a run directory, or ``None`` when there is none.

    Raises:
        WorkdirError: When it is damaged.
    """
    path = workdir / EVALUATION
    if not path.exists():
        return None
    found = read_json(path, WorkdirError)
    if not isinstance(found.get("checkpoints"), dict):
        raise WorkdirError(f"{path} is damaged: an object with checkpoints was expected.")
    return found


def with_earlier(workdir: pathlib.Path, result: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A result together with the earlier one of the same settings, images and weights.

    An earlier one of others is renamed to ``evaluation-N.json``, so that no measurement is lost.

    Args:
        workdir: The run directory.
        result: From ``evaluate_run``.

    Returns:
        What ``evaluation.json`` shall hold, and a sentence for a person where one was renamed.
    """
    try:
        earlier = read_evaluation(workdir)
        if earlier is None:
            return result, ""
        difference = _difference(earlier, result)
        if not difference:
            return _merged(earlier, result), ""
        reason = f"{difference}."
    except WorkdirError as error:
        reason = str(error)
    names = (workdir / f"evaluation-{number}.json" for number in itertools.count(1))
    other = next(name for name in names if not name.exists())
    (workdir / EVALUATION).rename(other)
    return result, f"Earlier results are now in {other}: {reason}"


def _difference(earlier: dict[str, Any], result: dict[str, Any]) -> str:
    """Why the two cannot stand in one file; empty where they can."""
    for key in _SAME:
        if earlier.get(key) != result.get(key):
            return f"{key} was {earlier.get(key)!r} and is {result.get(key)!r}"
    for which, measured in result["checkpoints"].items():
        for name, before in earlier["checkpoints"].items():
            same = before.get("digest") == measured["digest"]
            if name == which and not same:
                return f"the {which} checkpoint was another"
            for part, found in _sets(measured).items() if same else ():
                counts = [s["clean"]["examples"] for s in (before.get(part, found), found)]
                if counts[0] != counts[1]:
                    return f"they are of {counts[0]} {part} examples and not of {counts[1]}"
    return ""


def _sets(measured: dict[str, Any]) -> dict[str, Any]:
    return {part: found for part, found in measured.items() if isinstance(found, dict)}


def _merged(earlier: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
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
