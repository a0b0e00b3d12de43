"""Relating Adversarially Robust Generalization to Flat Minima (ICCV 2021).

Table 1; Figures 1, 2, 4 to 9. (Figure 3 is an illustration.)
"""

import functools
import importlib
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from awp_jax.reporting import robustness_groups
from experiments import _build as build
from experiments import _panels as panels
from experiments._cells import SUBSTITUTE, Cell, Entry, Experiment, Numbers
from experiments._measures import (
    BEST_EPOCH,
    Attacked,
    Curvature,
    Flatness,
    Landscape,
    Made,
    Measure,
    best_epoch,
    pair,
)
from experiments._scales import Scale
from experiments._values import paper_values

_CHOSEN: dict[str, str] = importlib.import_module("configs.iccv2021").CHOSEN
# Row of Table 1, but for the means over groups: argument of configs/iccv2021.py.
_METHODS = {
    row: re.sub(r"\+|=.*| \(.*", "", row).replace(" ", "-").lower()
    for row in paper_values("iccv2021")["tables"]["table1"]["rows"]
    if row not in ("Good", "Average", "Poor")
}
_EXAMPLES = 1000  # examples of every measurement in the paper
_SUPPLEMENT = (
    "Hyper-parameters that only the paper's supplement lists are not the paper's here but: "
    + "; ".join(f"{method}: {words}" for method, words in _CHOSEN.items())
    + "."
)
_EARLY = (
    "best: picked on held-out training images; the paper picks on the last 500 test images, every "
    "5th epoch"
)
_BOTH = ("train", "test")
_LOSS, _ERROR, _PERCENT = "robust loss (nats)", "robust error (%)", "epoch (% of training)"


def _cell(method: str) -> Cell:
    """One model of a method, under its name."""
    return Cell(method, f"iccv2021:{method}")


_AT, _AWP = _cell("at"), _cell("at-awp")


def _error(part: str = "test", checkpoint: str = "last") -> Attacked:
    """Robust error (RErr), by AutoAttack."""
    return Attacked("autoattack", checkpoint, part, _EXAMPLES, kind="error")


def _loss(part: str = "test", checkpoint: str = "last", kind: str = "loss") -> Attacked:
    """Robust loss (RLoss), by PGD-20 with ten restarts."""
    return Attacked("pgd-20", checkpoint, part, _EXAMPLES, restarts=10, kind=kind)


def _rows(columns: dict[str, Measure]) -> list[Entry]:
    """Table 1's methods; notes say what of a number is not from the paper's text."""
    entries = []
    for row, method in _METHODS.items():
        chosen = [f"{SUBSTITUTE}: {_CHOSEN[method]}"] if method in _CHOSEN else []
        for column, measure in columns.items():
            note = "; ".join([*chosen, _EARLY] if "early" in column else chosen)
            entries.append(Entry(row, column, _cell(method), measure, note))
    return entries


def _against(
    title: str,
    measure: Measure,
    ylabel: str = _LOSS,
    flatness: Flatness | None = None,
    imported: Sequence[Cell] | None = None,
) -> panels.Panel:
    """A measure over flatness, of the methods, and of the published models that a figure has."""
    flatness = flatness or Flatness()
    published = {f"{cell.last_part} (imported)": cell for cell in imported or ()}
    cells = {**{row: _cell(method) for row, method in _METHODS.items()}, **published}
    return panels.scatter(
        title,
        [(label, cell, pair(flatness, measure)) for label, cell in cells.items()],
        f"{flatness.case}-case flatness (nats)",
        ylabel,
        imported=None if imported is None else list(published),
    )


def _path(label: str, cells: Sequence[Cell], checkpoints: Sequence[str], case: str = "average"):
    """Models at several checkpoints, each a joined line."""
    both = {p: pair(Flatness(case, p), _loss("test", p)) for p in checkpoints}
    places = [(cell.name, cell, measure) for cell in cells for measure in both.values()]
    return panels.scatter(label, places, f"{case}-case flatness (nats)", _LOSS, joined=True)


def _robustbench(imported: Sequence[Cell]) -> str:
    """A note on the published models that the paper's figure shows."""
    if not imported:
        return (
            "The models of RobustBench that the paper shows are not among the cells: make run "
            "directories of their checkpoints by 'awp-jax import' and name these by --imported."
        )
    names = ", ".join(cell.imported for cell in imported)
    return f"Published models, measured as they were imported (triangles in the figure): {names}."


def _by_correctness(title: str, methods: Sequence[str], scale: Scale) -> panels.Panel:
    """Robust loss on what is right and what is wrong on clean images, through training."""
    kinds = {"loss": "all", "loss_correct": "right", "loss_wrong": "wrong"}
    series: list[panels.Series] = []
    for method in methods:
        measures: dict[str, Callable[[str], Measure]] = {
            f"{method}, {words}": functools.partial(_loss, "test", kind=kind)
            for kind, words in kinds.items()
        }
        series += build.through_training(measures, _cell(method), scale)
    return panels.lines(title, series, _PERCENT, _LOSS)


def _table1(scale: Scale) -> Experiment:
    columns: dict[str, Measure] = {
        "RErr test": _error("test"),
        "RErr train": _error("train"),
        "flatness average": Flatness("average"),
        "flatness worst": Flatness("worst"),
        "RErr early stopping": _error("test", "best"),
    }
    words = f"mean over rows, some with values {SUBSTITUTE}"
    return Experiment(_rows(columns), summary=_groups, summary_note=words)


def _groups(numbers: Numbers) -> Numbers:
    """Means over good, average and poor methods: split at the 30% and 70% percentiles."""
    errors = {row: n for (row, column), n in numbers.items() if column == "RErr test"}
    if not errors:
        return {}
    names = {run: g.name.capitalize() for g in robustness_groups(errors) for run in g.runs}
    found: dict[tuple[str, str], list[float]] = {}
    for (row, column), number in numbers.items():
        if row in names:
            found.setdefault((names[row], column), []).append(number)
    return {key: float(np.mean(values)) for key, values in found.items()}


def _figure1(scale: Scale, imported: Sequence[Cell] = ()) -> Experiment:
    """Robust generalisation and flatness."""
    panel = _against("Robust loss against flatness", _loss(), imported=imported)
    return Experiment(panels=[panel], notes=[_SUPPLEMENT, _robustbench(imported)])


def _figure2(scale: Scale) -> Experiment:
    """Robust overfitting of AT."""
    series = [("AT", _AT)]
    shown = [
        panels.curves("Robust loss", series, "robust_loss", _BOTH),
        _by_correctness("Robust loss, by clean prediction", ["at"], scale),
        panels.curves("Robust error", series, "robust_error", _BOTH),
    ]
    return Experiment([Entry("AT robust loss test last", "text", _AT, _loss())], shown)


def _figure4(scale: Scale) -> Experiment:
    """Robust loss along ten directions, mean and range."""
    cells = {
        "AT": _AT,
        "batch size 32": _AT.changed("batch-32", batch_size=32),
        "Adam": _cell("adam"),
        "AT-AWP": _AWP,
        "Entropy-SGD": _cell("entropy-sgd"),
    }
    scaled: dict[str, float | None] = {"AT": None, "AT x2": 2.0, "AT x0.5": 0.5}
    top = [(label, _AT, factor) for label, factor in scaled.items()]
    top += [(label, cells[label], None) for label in ("batch size 32", "Adam")]
    bottom = [(label, cells[label], None) for label in ("AT", "AT-AWP", "Entropy-SGD")]
    shown = [
        panels.landscapes(
            f"{what}, {kind} directions",
            [
                (label, cell, Landscape("last", 10, 1, kind, "layer", extent, "test", factor))
                for label, cell, factor in chosen
            ],
        )
        for what, chosen in (("AT, scaled; batch 32; Adam", top), ("AT-AWP, Entropy-SGD", bottom))
        for kind, extent in (("random", 1.0), ("adversarial", 0.005))
    ]
    entries = [
        Entry(f"{label} largest eigenvalue", "text", _AT, Curvature("last", factor))
        for label, factor in scaled.items()
    ]
    entries += [
        Entry(label, f"flatness {case}", _AT, Flatness(case, factor=factor))
        for label, factor in scaled.items()
        for case in ("average", "worst")
    ]
    entries += [Entry(label, "RErr test", cell, _error()) for label, cell in cells.items()]
    return Experiment(entries, shown, [_SUPPLEMENT])


def _figure5(scale: Scale) -> Experiment:
    """Understanding robust overfitting."""
    gammas = build.sweep(scale, _AWP, "weights__gamma", ("0.001", "0.0025", "0.005", "0.01"))
    noise = [(m, _cell(m)) for m in ("at", "label-smoothing", "label-noise")]
    methods = ("at", "at-awp", "trades", "self-supervision", "autoaugment", "weight-decay")
    groups = {
        "Methods": [(m, _cell(m)) for m in methods],
        "AT-AWP by gamma": [(cell.last_part, cell) for cell in gammas.values()],
        "Schedules": [(m, _cell(m)) for m in ("at", "cyclic", "late-multi-step")],
    }
    shown = [
        _by_correctness("AT and MART, by clean prediction", ["at", "mart"], scale),
        panels.curves("Label smoothing and noise: loss", noise, "robust_loss"),
        panels.curves("Label smoothing and noise: error", noise, "robust_error"),
        *(panels.curves(title, cells, "robust_loss", _BOTH) for title, cells in groups.items()),
    ]
    return Experiment(panels=shown, notes=[_SUPPLEMENT])


def _best_percent(records: list[dict[str, Any]]) -> float:
    return 100 * best_epoch(records) / records[-1]["epoch"]


def _figure6(scale: Scale) -> Experiment:
    """Flatness throughout training."""
    measures: dict[str, Callable[[str], Measure]] = {
        "test robust loss": functools.partial(_loss, "test"),
        "train robust loss": functools.partial(_loss, "train"),
        "average-case flatness": functools.partial(Flatness, "average"),
        "worst-case flatness": functools.partial(Flatness, "worst"),
    }
    percents = scale.percents_in()
    others = [_cell(m) for m in ("at", "self-supervision", "at-awp", "unlabeled")]
    shown = [
        panels.lines(
            "AT",
            build.through_training(measures, _AT, scale),
            _PERCENT,
            "robust loss, flatness (nats)",
            right=build.through_training({"Hessian eigenvalue": Curvature}, _AT, scale),
            right_label="largest eigenvalue of the Hessian",
            upright=[("best epoch", _AT, Made(_best_percent, BEST_EPOCH.of))],
        ),
        *(_path(f"AT: {case} case", [_AT], percents, case) for case in ("average", "worst")),
        _path("Methods through training", others, percents),
    ]
    entries = [Entry("AT best epoch", "text", _AT, BEST_EPOCH, _EARLY)]
    return Experiment(entries, shown, [_SUPPLEMENT])


def _figure7(scale: Scale) -> Experiment:
    """Flatness across hyper-parameters."""
    sweeps = {
        "at-awp": ("weights__gamma", ("0.001", "0.0025", "0.005", "0.01", "0.02")),
        "trades": ("objective__beta", (1.0, 3.0, 6.0, 9.0)),
        "mart": ("objective__lambda_", (1.0, 3.0, 6.0, 9.0)),
        "at": ("optimizer__weight_decay", (0.0005, 0.001, 0.005, 0.01, 0.05)),
    }
    places = []
    for method, (key, values) in sweeps.items():
        label = f"{method}, {key.partition('__')[2].rstrip('_').replace('_', ' ')}"
        for cell in build.sweep(scale, _cell(method), key, values).values():
            places.append((label, cell, pair(Flatness(), _loss())))
    x = "average-case flatness (nats)"
    panel = panels.scatter("Hyper-parameters", places, x, _LOSS, joined=True)
    return Experiment(panels=[panel])


def _figure8(scale: Scale) -> Experiment:
    """Robustness and flatness."""
    average, worst = Flatness("average"), Flatness("worst")
    columns = {"robust loss": _loss(), "flatness average": average, "flatness worst": worst}
    both = pair(_loss(), _error())
    models = [(row, _cell(method), both) for row, method in _METHODS.items()]
    shown = [
        panels.scatter("Robust error against robust loss", models, _LOSS, _ERROR),
        _against("Robust loss, average case", _loss()),
        _against("Robust error, average case", _error(), _ERROR),
        _against("Robust loss, worst case", _loss(), flatness=worst),
    ]
    summary = functools.partial(build.correlations, of="robust loss")
    words = "correlation with robust loss over the rows measured, some with values " + SUBSTITUTE
    return Experiment(_rows(columns), shown, summary=summary, summary_note=words)


def _figure9(scale: Scale, imported: Sequence[Cell] = ()) -> Experiment:
    """Robust generalisation and early stopping."""
    train_gap = Made(operator.sub, (_loss("test"), _loss("train")))
    last_best = Made(operator.sub, (_loss("test"), _loss("test", "best")))
    change = "difference of robust loss (nats)"
    stopped = [_cell(m) for m in ("at", "trades", "mart", "at-awp", "weight-decay")]
    shown = [
        _against("Flatness on train", _loss(), flatness=Flatness("average", "last", "train")),
        _against("Test minus train", train_gap, change, imported=imported),
        _against("Last minus best", last_best, change),
        _path("Last, joined to best (early stopping)", stopped, ("last", "best")),
    ]
    return Experiment(panels=shown, notes=[_SUPPLEMENT, _EARLY, _robustbench(imported)])
