"""Tables of flatness: every number, differences, groups and correlations."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from awp_jax.reporting._tables import markdown_table

Results = Mapping[str, Mapping[str, Any]]
SETS = ("test", "validation", "train")
_WEAK = "(!)"


class Correlation(NamedTuple):
    """How two numbers go together over models.

    Attributes:
        pearson: Coefficient of Pearson, in [-1, 1].
        pearson_p: Its p-value.
        spearman: Rank coefficient of Spearman, in [-1, 1].
        spearman_p: Its p-value.
        models: How many.
    """

    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float
    models: int


def correlation(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """Pearson's and Spearman's coefficients, by ``scipy.stats``.

    Args:
        first: One number per model.
        second: Another.

    Returns:
        The coefficients; ``None`` for fewer than 3 models, or numbers that are all the same.
    """
    from scipy import stats  # slow to import

    if len(first) < 3 or min(np.ptp(first), np.ptp(second)) == 0:
        return None
    pearson, spearman = stats.pearsonr(first, second), stats.spearmanr(first, second)
    return Correlation(
        float(pearson.statistic),
        float(pearson.pvalue),
        float(spearman.statistic),
        float(spearman.pvalue),
        len(first),
    )


def main_checkpoint(result: Mapping[str, Any]) -> str:
    """The checkpoint that stands for a run: the last (no early stopping), else the latest."""
    checkpoints = result["checkpoints"]
    return (
        "last" if "last" in checkpoints else max(checkpoints, key=lambda w: _epoch(checkpoints, w))
    )


def _epoch(checkpoints: Mapping[str, Any], which: str) -> float:
    return checkpoints[which]["epoch"]


def main_set(results: Results) -> str:
    """The first of test, validation and train that every run was measured on.

    Raises:
        ValueError: When there is none.
    """
    for name in SETS:
        if all(name in r["checkpoints"][main_checkpoint(r)] for r in results.values()):
            return name
    raise ValueError("The runs were measured on different sets: measure them on the same.")


def flatness_report(results: Results) -> str:
    """All tables of flatness as Markdown text, with what the numbers need.

    Args:
        results: By name of the run, what ``awp-jax flatness`` writes to ``flatness.json``.

    Returns:
        The measures by run, checkpoint and set; test minus train and last minus best; for three
        runs or more, the groups and the correlations of Stutz et al. (ICCV 2021), Table 1.
    """
    parts = [flatness_table(results), *_differences(results)]
    if len(results) >= 3:
        parts += [group_table(results), _correlations(results)]
    return "\n\n".join(parts)


def flatness_table(results: Results) -> str:
    """One row per run, checkpoint and set.

    Args:
        results: As in ``flatness_report``.

    Returns:
        A Markdown table and the settings below it.
    """
    rows, notes = [], dict[str, None]()
    for name, result in results.items():
        for which, measured in result["checkpoints"].items():
            for part in (s for s in SETS if s in measured):
                rows.append(_row(name, result, which, part, measured))
        notes[settings_note(result)] = None
    header = list(dict.fromkeys(column for row in rows for column in row))
    body = markdown_table(header, [[row.get(column, "") for column in header] for row in rows])
    explained = "Losses and flatness in nats (lower is flatter), errors in percent."
    if any(cell.endswith(_WEAK) for row in rows for cell in row.values()):
        explained += (
            f" {_WEAK}: below zero, so the joint ascent found less than the reference, and the "
            "worst case is higher: raise --steps or --restarts."
        )
    return "\n".join([body, "", f"{explained} " + " ".join(f"{note}." for note in notes)])


def _row(name, result, which, part, measured) -> dict[str, str]:
    found = measured[part]
    row = {
        "run": name,
        "method": result["method"],
        "checkpoint": which,
        "epoch": f"{measured['epoch']:g}",
        "set": part,
        f"loss PGD-{result['steps']}": f"{found['loss_single']:.4f}",
        f"worst of {result['restarts']}": f"{found['loss']:.4f}",
        "robust error": f"{100 * found['error']:.2f}",
        "average": f"{found['average']:.4f}",
        "worst case": _worst_case(found["worst_case"]),
    }
    if "clean" in found:
        clean = found["clean"]
        row["clean loss"] = f"{clean['loss']:.4f}"
        row["clean average"] = f"{clean['average']:.4f}"
        row["clean worst case"] = _worst_case(clean["worst_case"])
    if "hessian" in found:
        top = found["hessian"]["eigenvalues"][0]
        row["top eigenvalue"] = "not converged" if top is None else f"{top:.4g}"
    return row


def _worst_case(value: float) -> str:
    return f"{value:.4f}" + (f" {_WEAK}" if value < 0 else "")


def settings_note(result: Mapping[str, Any]) -> str:
    """Everything that the numbers of a run's flatness need, as one line."""
    sets = next(iter(result["checkpoints"].values()))
    counts = ", ".join(f"{sets[s]['examples']} {s}" for s in SETS if s in sets)
    shared = "one nu for all batches" if result["shared_across_batches"] else "nu per batch"
    return (
        f"Seed {result['seed']}; {result['norm']} epsilon {result['epsilon']}, step "
        f"{result['step_size']}, {result['steps']} steps; average case xi {result['xi']:g}, "
        f"{result['draws']} draws; worst case xi {result['worst_xi']:g}, {result['restarts']} "
        f"restarts, {shared} of {result['batch_size']}; {counts} examples; {result['data']}, "
        f"{result['model']}; {result['device']}"
    )


def _differences(results: Results) -> list[str]:
    rows = []
    for name, result in results.items():
        found = result["differences"]
        gaps = found["test_minus_train"]
        # Through training there may be hundreds: the figures show them.
        shown = [w for w in gaps if not w.startswith("epoch-")] or list(gaps)
        pairs = [(f"test minus train, {w}", gaps[w]) for w in shown]
        pairs += [(f"last minus best, {s}", d) for s, d in found["last_minus_best"].items()]
        for label, d in pairs:
            numbers = [f"{d[key]:+.4f}" for key in ("loss", "average", "worst_case")]
            rows.append([name, label, *numbers, f"{100 * d['error']:+.2f}"])
    header = ["run", "difference", "robust loss", "average", "worst case", "robust error (points)"]
    return [markdown_table(header, rows)] if rows else []


class Group(NamedTuple):
    """Models of like robustness.

    Attributes:
        name: ``"good"``, ``"average"`` or ``"poor"``.
        low: Least robust error of the group, in [0, 1]; below it the group before.
        high: Where the next group begins.
        runs: Names.
    """

    name: str
    low: float
    high: float
    runs: list[str]


def robustness_groups(errors: Mapping[str, float]) -> list[Group]:
    """Splits models at the 30% and 70% percentiles of robust error (Stutz et al., Table 1).

    Args:
        errors: Robust error in [0, 1] by name of the run.

    Returns:
        Good: below the 30% percentile; average: from it to below the 70% percentile; poor: the
        rest. A group may be empty.
    """
    values = list(errors.values())
    cuts = [0.0, *(float(c) for c in np.percentile(values, [30, 70])), float("inf")]
    return [
        Group(name, low, high, [n for n, e in errors.items() if low <= e < high])
        for name, low, high in zip(("good", "average", "poor"), cuts, cuts[1:], strict=False)
    ]


def group_table(results: Results) -> str:
    """Models by robust error, and the means of good, average and poor ones.

    As Table 1 of Stutz et al. (ICCV 2021), but with robust error against PGD (worst of the
    restarts) in place of AutoAttack.

    Args:
        results: As in ``flatness_report``.

    Returns:
        A Markdown table: robust error on test and train (and the difference), both flatness
        measures on test, robust error of the best checkpoint (and the difference).
    """
    part = main_set(results)
    rows = {name: _group_row(result, part) for name, result in results.items()}
    header = ["run", f"robust error {part}", "robust error train", "average", "worst case"]
    header.append("robust error best")
    errors = {name: row["error"] for name, row in rows.items()}
    lines = [_group_line(name, [rows[name]]) for name in sorted(errors, key=lambda n: errors[n])]
    for group in robustness_groups(errors):
        label = f"{group.name} (mean of {len(group.runs)})"
        lines.append(_group_line(label, [rows[name] for name in group.runs]))
    cuts = [100 * group.low for group in robustness_groups(errors)[1:]]
    note = (
        f"Sorted by robust error against PGD; split at its 30% and 70% percentiles, {cuts[0]:.2f}% "
        f"and {cuts[1]:.2f}%."
    )
    return f"{markdown_table(header, lines)}\n\n{note}"


def _group_row(result: Mapping[str, Any], part: str) -> dict[str, float]:
    measured = result["checkpoints"][main_checkpoint(result)]
    row = {name: measured[part][name] for name in ("error", "average", "worst_case")}
    if part != "train" and "train" in measured:
        row["train"] = measured["train"]["error"]
    best = result["checkpoints"].get("best", {})
    if part in best:
        row["best"] = best[part]["error"]
    return row


def _group_line(label: str, rows: Sequence[Mapping[str, float]]) -> list[str]:
    def mean(name):
        known = [row[name] for row in rows if name in row]
        return float(np.mean(known)) if known else None

    def percent(name):
        value = mean(name)
        return "" if value is None else f"{100 * value:.2f} ({100 * (value - mean('error')):+.2f})"

    def number(name, form, factor=1.0):
        value = mean(name)
        return "" if value is None else format(factor * value, form)

    return [
        label,
        number("error", ".2f", 100),
        percent("train"),
        number("average", ".4f"),
        number("worst_case", ".4f"),
        percent("best"),
    ]


def points(results: Results, part: str, name: str) -> list[float]:
    """A measure of every run's main checkpoint on one set."""
    return [float(r["checkpoints"][main_checkpoint(r)][part][name]) for r in results.values()]


def _correlations(results: Results) -> str:
    part = main_set(results)
    rows = []
    for label, other in (("average case", "average"), ("worst case", "worst_case")):
        found = correlation(points(results, part, "loss"), points(results, part, other))
        pair = f"robust loss, {label} flatness ({part})"
        if found is None:
            rows.append([pair, "", "", "", "", str(len(results))])
            continue
        numbers = [f"{found.pearson:.3f}", f"{found.pearson_p:.2g}"]
        numbers += [f"{found.spearman:.3f}", f"{found.spearman_p:.2g}"]
        rows.append([pair, *numbers, str(found.models)])
    return markdown_table(["over runs", "Pearson", "p", "Spearman", "p", "models"], rows)
