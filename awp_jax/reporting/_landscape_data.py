"""Landscapes as the files of run directories hold them, and their table."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from awp_jax.files import read_arrays, read_json
from awp_jax.reporting._tables import markdown_table

HOWS = ("anew", "centre", "none")


def read_landscape(workdir: str | pathlib.Path, name: str = "landscape") -> dict[str, Any]:
    """What ``awp-jax landscape`` wrote to a run directory.

    Args:
        workdir: The run directory.
        name: Of the files.

    Returns:
        The values of NAME.json, and of NAME.npz ``axis`` ``[points]`` and, in each entry of
        ``checkpoints``, for each way of making examples (``"anew"``, ``"centre"``, ``"none"``)
        ``loss`` (nats) and ``accuracy``, ``[draws, points]`` or ``[draws, points, points]``.

    Raises:
        ValueError: When there is none, or a file is damaged, or they do not belong together.
    """
    folder = pathlib.Path(workdir)
    plain, packed = folder / f"{name}.json", folder / f"{name}.npz"
    if not plain.is_file():
        raise ValueError(
            f"{folder} has no {plain.name}: run awp-jax landscape --workdir={folder} first."
        )
    found, arrays = read_json(plain), read_arrays(packed)
    try:
        found["axis"] = arrays["axis"]
        for which, measured in found["checkpoints"].items():
            for how in [h for h in HOWS if h in measured]:
                for kind in ("loss", "accuracy"):
                    measured[how][kind] = arrays[f"{which}/{how}/{kind}"]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{plain} or {packed.name} is damaged: {error}.") from None
    return found


def robust_accuracies(
    evaluation: Mapping[str, Any] | None, records: Sequence[Mapping[str, Any]], step: int
) -> tuple[float, float] | None:
    """Robust train and test accuracy at a step, in [0, 1].

    Args:
        evaluation: What ``awp-jax evaluate`` writes to ``evaluation.json``, or ``None``: its last
            PGD is taken.
        records: The records of ``metrics.jsonl``, for steps that were not evaluated.
        step: Of the checkpoint.

    Returns:
        ``(train, test)``, or ``None`` where they were not measured.
    """
    for measured in (evaluation or {}).get("checkpoints", {}).values():
        if measured.get("step") == step and "train" in measured and "test" in measured:
            both = [a for a in measured["train"] if a in measured["test"]]
            attacks = [a for a in both if a.startswith("pgd-")]
            if attacks:
                last = attacks[-1]
                return measured["train"][last]["accuracy"], measured["test"][last]["accuracy"]
    for record in records:
        if record["kind"] == "evaluation" and record["step"] == step and "train" in record:
            return record["train"]["robust_accuracy"], record["test"]["robust_accuracy"]
    return None


def settings_line(settings: Mapping[str, Any]) -> str:
    """Everything that the numbers of a landscape need, as one line."""
    attack = f"{settings['norm']} epsilon {settings['epsilon']}, PGD-{settings['steps']} with step "
    attack += f"{settings['step_size']}"
    attack += f", {settings['restarts']} restarts" if settings["restarts"] > 1 else ""
    return (
        f"{settings['examples']} {settings['set']} examples; "
        f"{'clean loss' if settings['adversarial'] == 'none' else attack}; "
        f"{_directions(settings)}, {settings['normalisation']}-normalised; seed {settings['seed']}"
    )


def _directions(settings: Mapping[str, Any]) -> str:
    draws, adversarial = settings["draws"], settings["directions"] == "adversarial"
    if settings["dims"] == 1:
        words = f"{draws} {settings['directions']} direction{'s' * (draws > 1)}"
        return f"{words} (band: one standard deviation)" if draws > 1 else words
    kind = "an adversarial and a random direction" if adversarial else "random directions"
    return f"{draws} pairs of {kind}, their mean" if draws > 1 else f"a pair of {kind}"


def landscape_table(landscapes: Mapping[str, Mapping[str, Any]]) -> str:
    """How far the loss changes around checkpoints, one row each.

    Args:
        landscapes: By name of the run, from ``read_landscape``.

    Returns:
        A Markdown table: loss and accuracy at the centre, and the mean of |g - g(0)| over the whole
        grid and over its edge, plus or minus the standard deviation over draws; and a line on
        attack, examples and directions.
    """
    header = ["run", "checkpoint", "epoch", "examples made", "loss g(0)", "accuracy"]
    header += ["mean change", "at the edge", "seconds"]
    rows = []
    notes: dict[str, None] = {}
    for name, found in landscapes.items():
        for which, measured in found["checkpoints"].items():
            for how in [h for h in HOWS if h in measured]:
                s = measured[how]
                row = [name, which, f"{measured['epoch']:g}", how, f"{s['centre_loss']:.3f}"]
                row += [f"{100 * s['centre_accuracy']:.2f}"]
                spread = len(s["loss"]) > 1
                row += [_with_spread(s, kind, spread) for kind in ("mean_change", "edge_change")]
                rows.append([*row, f"{measured['seconds']:.1f}"])
        line = f"{settings_line(found['settings'])}; {found['data']}, {found['model']}; "
        notes[f"{line}{found['device']}"] = None
    return "\n".join(
        [
            markdown_table(header, rows),
            "",
            "Losses in nats, accuracy in percent; change: the mean of |g - g(0)|. "
            + "\n".join(notes)
            + ".",
        ]
    )


def _with_spread(summary: Mapping[str, Any], kind: str, spread: bool) -> str:
    value = f"{summary[kind]:.3f}"
    return f"{value} ± {summary[kind + '_spread']:.3f}" if spread else value
