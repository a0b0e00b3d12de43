"""Means and deviations over runs that differ in nothing but their seed."""

import statistics
from collections.abc import Mapping
from typing import Any

from awp_jax.reporting._tables import NO_ATTACK, attack_label, markdown_table

# What runs have in common whose numbers may be averaged.
_SAME = ("method", "norm", "epsilon", "step_size", "restarts", "selection", "data", "model", "eot")


def seed_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean and standard deviation (n - 1) of accuracies over seeds.

    Args:
        results: By name of the run, what ``awp-jax evaluate`` writes to ``evaluation.json``.

    Returns:
        A Markdown table in percent, one row per method and checkpoint, with the robust
        generalisation gap of each attack where train and test were measured; empty where no two
        runs differ in their seed alone.
    """
    groups: dict[tuple, dict[int, Mapping[str, Any]]] = {}
    for result in results.values():
        same = tuple(str(result.get(key)) for key in _SAME)
        groups.setdefault(same, {})[result["seed"]] = result
    rows, header = [], ["method", "checkpoint", "seeds"]
    for same, by_seed in groups.items():
        if len(by_seed) < 2:
            continue
        runs = list(by_seed.values())
        for which in runs[0]["checkpoints"]:
            if not all(which in run["checkpoints"] for run in runs):
                continue
            cells = {"method": same[0], "checkpoint": which, "seeds": str(len(runs))}
            measured = [_accuracies(run["checkpoints"][which]) for run in runs]
            for column in measured[0]:
                values = [m[column] for m in measured if column in m]
                if len(values) == len(runs):
                    mean, deviation = statistics.mean(values), statistics.stdev(values)
                    cells[column] = f"{mean:.2f} ± {deviation:.2f}"
                    header += [] if column in header else [column]
            rows.append(cells)
    if not rows:
        return ""
    return markdown_table(header, [[row.get(name, "") for name in header] for row in rows])


def _accuracies(measured: Mapping[str, Any]) -> dict[str, float]:
    """In percent by column; gaps in points."""
    parts = [part for part in ("train", "validation", "test") if part in measured]
    found = {
        f"{attack_label(attack)} {part}": 100 * values["accuracy"]
        for part in parts
        for attack, values in measured[part].items()
    }
    if "train" in measured and "test" in measured:
        for attack in measured["test"]:
            label = attack_label(attack)
            if attack not in NO_ATTACK and f"{label} train" in found:
                found[f"{label} gap"] = found[f"{label} train"] - found[f"{label} test"]
    return found
