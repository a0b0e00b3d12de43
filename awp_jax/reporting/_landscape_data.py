"""Landscapes as the files of run directories hold them, and their table."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


class Measured(NamedTuple):
    """What a run directory says of robust accuracy.

    Attributes:
        config: From ``awp_jax.training.read_config``.
        evaluation: What ``awp-jax evaluate`` writes to ``evaluation.json``, or ``None``.
        records: The records of ``metrics.jsonl``.
    """

    config: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    records: Sequence[Mapping[str, Any]]

    def __repr__(self) -> str:
        which = list((self.evaluation or {}).get("checkpoints", {}))
        return f"Measured(checkpoints {which} evaluated, {len(self.records)} records)"


def robust_accuracies(
    runs: Mapping[str, Measured], steps: Mapping[str, Mapping[str, int]]
) -> tuple[dict[str, dict[str, tuple[float, float] | None]], str]:
    """Robust train and test accuracy of checkpoints, all by one attack and from one source.

    An evaluation and a learning curve stand on different images: side by side they would rank runs
    by their source. The source that knows the most checkpoints is taken, an evaluation before a
    learning curve, more steps of PGD before fewer.

    Args:
        runs: By name of the run.
        steps: By name of the run and of the checkpoint, the step that it is of.

    Returns:
        By run and checkpoint ``(train, test)`` in [0, 1], or ``None`` where that source has not
        measured it; and the source in words: attack, radius, numbers of examples.
    """
    sources: dict[tuple[Any, ...], dict[tuple[str, str], Any]] = {}
    for name, run in runs.items():
        for which, step in steps[name].items():
            for source, pair in _measurements(run, step):
                sources.setdefault(source, {})[name, which] = pair
    source = max(sources, key=lambda s: (len(sources[s]), s)) if sources else ()
    pairs = sources.get(source, {})
    found = {
        name: {
            which: (pair[0]["accuracy"], pair[1]["accuracy"])
            if (pair := pairs.get((name, which)))
            else None
            for which in steps[name]
        }
        for name in runs
    }
    if not source:
        return found, "not measured"
    is_evaluation, attack_steps, norm, epsilon = source
    counts = {tuple(part["examples"] for part in pair) for pair in pairs.values()}
    images = " or ".join(f"{train} train, {test} test" for train, test in sorted(counts))
    return found, (
        f"{'evaluation' if is_evaluation else 'learning curve'}, PGD-{attack_steps},\n"
        f"{norm} epsilon {epsilon}; {images} examples"
    )


def _measurements(run: Measured, step: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every source that has measured a step, with its train and its test part."""
    for measured in (run.evaluation or {}).get("checkpoints", {}).values():
        if run.evaluation and measured["step"] == step and {"train", "test"} <= {*measured}:
            for attack in {*measured["train"]} & {*measured["test"]}:
                kind, _, count = attack.partition("-")
                if kind == "pgd" and count.isdecimal():
                    source = (True, int(count), run.evaluation["norm"], run.evaluation["epsilon"])
                    yield source, (measured["train"][attack], measured["test"][attack])
    attack, settings = run.config["attack"], run.config["evaluation"]
    for record in run.records:
        if record["kind"] == "evaluation" and record["step"] == step and "train" in record:
            epsilon = settings["epsilon"] or attack["epsilon"]
            parts = [
                {"accuracy": record[part]["robust_accuracy"], "examples": record[part]["examples"]}
                for part in ("train", "test")
            ]
            yield (False, settings["steps"], attack["norm"], epsilon), parts


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
        A Markdown table: loss and accuracy at the centre, and the mean of ``|g - g(0)|`` over the
        whole grid and over its edge, plus or minus the standard deviation over draws; and a line on
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
