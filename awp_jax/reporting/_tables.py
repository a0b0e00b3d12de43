"""Tables from evaluation results."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from awp_jax.panels import bars
from awp_jax.results import CORRUPTIONS

_NAMES = {
    "clean": "natural",
    "autoattack": "AutoAttack",
    "plus": "AutoAttack plus",
    "rand": "AutoAttack rand",
    "feature": "feature attack",
    "square": "Square",
    CORRUPTIONS: "corruptions",
}
# What is measured beside attacks: no robust accuracy, and no part of the union.
NO_ATTACK = ("clean", CORRUPTIONS)


def attack_label(attack: str) -> str:
    """How a column of that attack is headed."""
    name, source, surrogate = attack.partition(" from ")
    kind, dash, steps = name.partition("-")
    known = _NAMES.get(name) or (_NAMES[kind] + dash + steps if kind in _NAMES else name.upper())
    return known + source + surrogate


def _states(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was measured, by checkpoint; those that are the same state once: "best, last"."""
    names: dict[int, list[str]] = {}
    for which, measured in result["checkpoints"].items():
        # An average has the step of the last state and is another one.
        names.setdefault(measured.get("digest", measured["step"]), []).append(which)
    return {", ".join(w): result["checkpoints"][w[0]] for w in names.values()}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns.

    Args:
        header: Names of the columns.
        rows: Cells as text.

    Returns:
        The table, without a newline at its end.

    Example:
        >>> from awp_jax.reporting import markdown_table
        >>> print(markdown_table(["run", "robust"], [["at", "50.1"], ["at-awp", "55.4"]]))
        | run    | robust |
        |--------|--------|
        | at     | 50.1   |
        | at-awp | 55.4   |
    """
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def evaluation_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies of runs, one row per run and checkpoint, with everything that a number needs.

    Args:
        results: By name of the run, what ``awp-jax evaluate`` writes to ``evaluation.json``.

    Returns:
        A Markdown table in percent, and a line on attack, epsilon, seed, examples and device. The
        robust generalisation gap is robust train minus robust test accuracy of the last PGD
        named, or of the last attack. "best" is the checkpoint that selection picked.
    """
    header: list[str] = []
    rows = []
    notes: dict[str, dict[str, None]] = {}
    for name, result in results.items():
        for which, measured in _states(result).items():
            sets = [s for s in ("train", "validation", "test") if s in measured]
            attacks = list(dict.fromkeys(a for s in sets for a in measured[s]))
            # The gap of the papers is that of PGD; another attack only where PGD was not run.
            of_all = [
                a for a in attacks if a != CORRUPTIONS and all(a in measured[s] for s in sets)
            ]
            reference = next((a for a in reversed(of_all) if a.startswith("pgd-")), of_all[-1])
            columns = {"run": name, "method": result["method"], "checkpoint": which}
            columns["epoch"] = f"{measured['epoch']:g}"
            columns["examples"] = " / ".join(str(measured[s]["clean"]["examples"]) for s in sets)
            for s in sets:
                for a in (a for a in attacks if a in measured[s]):
                    columns[f"{attack_label(a)} {s}"] = f"{100 * measured[s][a]['accuracy']:.2f}"
                loss = measured[s][reference]["loss"]
                if loss is not None:  # AutoAttack has none
                    columns[f"robust loss {s}"] = f"{loss:.3f}"
            if "train" in measured and "test" in measured and reference != "clean":
                gap = (
                    measured["train"][reference]["accuracy"]
                    - measured["test"][reference]["accuracy"]
                )
                columns["robust gap"] = f"{100 * gap:.2f}"
            header = _merged(header, list(columns))
            rows.append(columns)
            counts = ", ".join(f"{measured[s]['clean']['examples']} {s}" for s in sets)
            passes = f"{result['eot']} random passes averaged; " if result.get("eot") else ""
            note = (
                f"seed {result['seed']}; {result['norm']} epsilon {result['epsilon']}, step "
                f"{result['step_size']}, {result['restarts']} restart(s); {counts} examples; "
                f"{passes}gap and robust loss: {attack_label(reference)}; "
                + (
                    ""
                    if result["method"] == "imported"
                    else f"best chosen on {result['selection']}; "
                )
                + f"{result['data']}, {result['model']}; "
                f"{result['device']}"
            )
            notes.setdefault(note, {})[name] = None
    if len({row["examples"] for row in rows}) == 1:  # the line below says it
        header.remove("examples")
    body = markdown_table(header, [[row.get(h, "") for h in header] for row in rows])
    # Which run a line is about matters only where there are several.
    several = len(notes) > 1
    lines = [f"{', '.join(runs)}: {note}" if several else note for note, runs in notes.items()]
    return "\n".join([body, "", "Accuracies in percent. " + ".\n".join(lines) + "."])


def falls_after_best(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How much robust test accuracy each run lost from its checkpoint "best" to its "last".

    Args:
        results: As in ``evaluation_table``.

    Returns:
        A sentence for each PGD, the answer to whether training overfitted; empty where no run has
        both.
    """
    changes: dict[str, list[str]] = {}  # runs may have been measured under several
    for name, result in results.items():
        states = _states(result)  # where both are one state, neither has a name of its own
        best, last = (states.get(which, {}).get("test", {}) for which in ("best", "last"))
        attack = next((a for a in reversed(best) if a.startswith("pgd-") and a in last), "")
        if attack:
            change = 100 * (last[attack]["accuracy"] - best[attack]["accuracy"])
            changes.setdefault(attack, []).append(f"{name} {change:+.1f}")
    return "\n".join(
        f"{attack_label(attack)} test accuracy from best to last checkpoint, points: "
        f"{', '.join(told)}."
        for attack, told in changes.items()
    )


def _merged(header: list[str], columns: list[str]) -> list[str]:
    """All columns of both, those that only the second has behind what they follow there."""
    found = list(header)
    for place, column in enumerate(columns):
        if column not in found:
            before = found.index(columns[place - 1]) if place else -1
            found.insert(before + 1, column)
    return found


def accuracy_panel(axes: Any, result: Mapping[str, Any]) -> None:
    """Draws accuracies as bars: for each attack one of every checkpoint and set.

    Args:
        axes: Matplotlib axes.
        result: What ``awp-jax evaluate`` writes to ``evaluation.json``.
    """
    rows = {
        f"{which}, {part}": measured[part]
        for which, measured in _states(result).items()
        for part in ("train", "validation", "test")
        if part in measured
    }
    _bars(axes, rows)


def comparison_panel(axes: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws accuracies of runs as bars: for each attack one of every run.

    Args:
        axes: Matplotlib axes.
        results: By name of the run, what ``awp-jax evaluate`` writes to ``evaluation.json``; drawn
            is ``best``, or else the first checkpoint, on the test set, or else the first set.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    for name, result in results.items():
        states = result["checkpoints"]
        which = "best" if "best" in states else next(iter(states))
        sets = [part for part in ("test", "validation", "train") if part in states[which]]
        rows[f"{name} ({which}, {sets[0]})"] = states[which][sets[0]]
    _bars(axes, rows)


def _bars(axes: Any, rows: Mapping[str, Mapping[str, Any]]) -> None:
    attacks = list(dict.fromkeys(name for row in rows.values() for name in row))
    groups = {
        label: [100 * row[a]["accuracy"] if a in row else float("nan") for a in attacks]
        for label, row in rows.items()
    }
    bars(axes, groups, [attack_label(a) for a in attacks], "accuracy (%)", "{:.1f}")
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))


def attack_table(result: Mapping[str, Any]) -> str:
    """What each attack did, one row per attack, with those of AutoAttack below it.

    Args:
        result: What ``awp-jax evaluate`` writes to ``evaluation.json``.

    Returns:
        A Markdown table: accuracy left, examples that were right and were broken, median steps (or
        queries) to success over these, robust loss in nats (the highest over restarts; over all,
        and over those that are right and wrong on clean images), seconds; last all attacks
        together, where there was one. Columns in which nothing was measured are left out, and
        checkpoints that are the same state share their rows.
    """
    header = ["checkpoint", "set", "attack", "accuracy", "broke", "median steps"]
    header += ["loss", "loss if right", "loss if wrong", "seconds"]
    rows = []
    for which, measured in _states(result).items():
        for part, union in result["unions"][which.partition(",")[0]].items():
            for name, found in measured[part].items():
                rows.append(_attack_row(which, part, name, found))
                for stage in found.get("stages", ())[1:]:
                    rows.append(_attack_row(which, part, f"- {stage['name']}", stage))
                for corruption, by_severity in found.get("by_severity", {}).items():
                    mean = {"accuracy": sum(by_severity) / len(by_severity)}
                    rows.append(_attack_row(which, part, f"- {corruption}", mean))
            attacks = [attack for attack in measured[part] if attack not in NO_ATTACK]
            together = union.get("attacks", attacks)
            if not together:  # the row of clean images once more
                continue
            name = "all attacks" if set(together) == set(attacks) else ", ".join(together)
            name += f" together (strongest: {union['strongest']})"
            rows.append(_attack_row(which, part, name, union))
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return markdown_table([header[i] for i in used], [[row[i] for i in used] for row in rows])


def _attack_row(which: str, part: str, name: str, found: Mapping[str, Any]) -> list[str]:
    def cell(key: str, form: str) -> str:
        value = found.get(key)
        return "" if value is None else format(value, form)

    forms = {"broke": "d", "median_steps": "g", "loss": ".3f", "loss_correct": ".3f"}
    forms |= {"loss_wrong": ".3f", "seconds": ".1f"}
    accuracy = f"{100 * found['accuracy']:.2f}"
    return [which, part, name, accuracy, *(cell(key, form) for key, form in forms.items())]
