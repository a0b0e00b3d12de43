"""Relating Adversarially Robust Generalization to Flat Minima (ICCV 2021).

Table 1; Figures 1, 2, 4 to 9. (Figure 3 is an illustration.)
"""

import functools
from typing import Any

import numpy as np

from awp_jax.reporting import robustness_groups
from experiments import _iccv2021 as common
from experiments._analyses import Curvature, Flatness, Landscape
from experiments._build import correlations, make, percents, with_changes
from experiments._cells import SUBSTITUTE, Cell, Entry, Experiment, Numbers
from experiments._measures import BestEpoch, Difference, Measure
from experiments._panels import Curves, Lines, Panel, Scatter
from experiments._scales import Scale
from experiments._weight_panels import Landscapes

_make = functools.partial(make, "iccv2021")


def _table1(scale: Scale) -> Experiment:
    columns: dict[str, Measure] = {
        "RErr test": common.error("test"),
        "RErr train": common.error("train"),
        "flatness average": Flatness("average"),
        "flatness worst": Flatness("worst"),
        "RErr early stopping": common.error("test", "best"),
    }
    entries = [
        Entry(
            row,
            column,
            method,
            measure,
            common.note(method, common.EARLY if "early" in column else ""),
        )
        for row, method in common.METHODS.items()
        for column, measure in columns.items()
    ]
    notes = (common.GROUPS, common.AVERAGE)
    return _make(
        "table1",
        scale,
        common.cells(),
        entries=entries,
        notes=notes,
        summary=_groups,
        summary_note=f"mean over rows, some with values {SUBSTITUTE}",
    )


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


def _figure1(scale: Scale, imported: tuple[Cell, ...] = ()) -> Experiment:
    panel = common.against(
        common.loss(),
        Flatness(),
        "Robust loss against flatness",
        "robust loss (nats)",
        "average",
        imported,
    )
    notes = (common.SUPPLEMENT, common.robustbench(imported))
    title = "Robust generalisation and flatness"
    cells = (*common.cells(), *imported)
    return _make("figure1", scale, cells, panels=[panel], notes=notes, title=title)


def _figure2(scale: Scale) -> Experiment:
    series = (("AT", common.AT),)
    panels: list[Panel] = [
        Curves("Robust loss", series, "robust_loss", ("train", "test")),
        common.by_correctness("Robust loss, by clean prediction", (common.AT,), scale),
        Curves("Robust error", series, "robust_error", ("train", "test")),
    ]
    entries = [Entry("AT robust loss test last", "text", common.AT, common.loss())]
    title = "Robust overfitting of AT"
    return _make(
        "figure2", scale, [common.cell(common.AT)], entries=entries, panels=panels, title=title
    )


def _figure4(scale: Scale) -> Experiment:
    at = common.cell(common.AT)
    cells = {
        "AT": at,
        "batch size 32": with_changes(at, "batch-32", batch_size=32),
        "Adam": common.cell("adam"),
        "AT-AWP": common.cell("at-awp"),
        "Entropy-SGD": common.cell("entropy-sgd"),
    }
    scaled: dict[str, float | None] = {"AT": None, "AT x2": 2.0, "AT x0.5": 0.5}
    top = [(label, at, factor) for label, factor in scaled.items()]
    top += [(label, cells[label], None) for label in ("batch size 32", "Adam")]
    bottom = [(label, cells[label], None) for label in ("AT", "AT-AWP", "Entropy-SGD")]
    panels = [
        Landscapes(
            f"{what}, {kind} directions",
            tuple(
                (label, c.name, Landscape("last", 10, 1, kind, "layer", extent, "test", factor))
                for label, c, factor in chosen
            ),
        )
        for what, chosen in (("AT, scaled; batch 32; Adam", top), ("AT-AWP, Entropy-SGD", bottom))
        for kind, extent in (("random", 1.0), ("adversarial", 0.005))
    ]
    entries = [
        Entry(f"{label} largest eigenvalue", "text", common.AT, Curvature("last", factor))
        for label, factor in scaled.items()
    ]
    entries += [
        Entry(label, f"flatness {case}", common.AT, Flatness(case, factor=factor))
        for label, factor in scaled.items()
        for case in ("average", "worst")
    ]
    entries += [
        Entry(label, "RErr test", c.name, common.error("test")) for label, c in cells.items()
    ]
    notes = (
        "x2 and x0.5: the same function with other weights. With BatchNorm each convolution is "
        "scaled with the running statistics behind it; without, hidden layers are scaled and the "
        "last one divided. Landscapes and flatness must not change, eigenvalues do.",
        "Eigenvalue: of the Hessian of the robust loss on test images in all weights, adversarial "
        "examples held; the text does not say of which examples.",
        common.SUPPLEMENT,
    )
    title = "Robust loss along ten directions, mean and range"
    return _make(
        "figure4", scale, cells.values(), entries=entries, panels=panels, notes=notes, title=title
    )


def _figure5(scale: Scale) -> Experiment:
    awp = common.cell("at-awp")
    weak = [
        with_changes(awp, f"gamma={g}", weights__gamma=g)
        for g in scale.sweep(("0.001", "0.0025", "0.005", "0.01"))
    ]
    both = ("train", "test")
    groups = {
        "Methods": ("at", "at-awp", "trades", "self-supervision", "autoaugment", "weight-decay"),
        "Schedules": ("at", "cyclic", "late-multi-step"),
    }
    panels: list[Panel] = [
        common.by_correctness("AT and MART, by clean prediction", ("at", "mart"), scale),
    ]
    noise = tuple((m, m) for m in ("at", "label-smoothing", "label-noise"))
    panels += [
        Curves("Label smoothing and noise: loss", noise, "robust_loss"),
        Curves("Label smoothing and noise: error", noise, "robust_error"),
    ]
    for title, methods in groups.items():
        panels.append(Curves(title, tuple((m, m) for m in methods), "robust_loss", both))
    series = tuple((c.name.rpartition(",")[2], c.name) for c in weak)
    panels.insert(4, Curves("AT-AWP by gamma", series, "robust_loss", both))
    names = dict.fromkeys(["at", "mart", *(m for m, _ in noise), *sum(groups.values(), ())])
    title = "Understanding robust overfitting"
    cells = [*map(common.cell, names), *weak]
    return _make("figure5", scale, cells, panels=panels, notes=(common.SUPPLEMENT,), title=title)


def _figure6(scale: Scale) -> Experiment:
    flatness: dict[str, Any] = {
        "average-case flatness": lambda p: Flatness("average", p),
        "worst-case flatness": lambda p: Flatness("worst", p),
    }
    losses: dict[str, Any] = {
        "test robust loss": lambda p: common.loss("test", p),
        "train robust loss": lambda p: common.loss("train", p),
    }
    x = "epoch (% of training)"
    others = ("at", "self-supervision", "at-awp", "unlabeled")

    def path(cell: str, case: str) -> tuple:
        return tuple(
            (cell, cell, Flatness(case, p), common.loss("test", p)) for p in percents(scale)
        )

    panels: list[Panel] = [
        Lines(
            "AT",
            common.through_training(losses | flatness, (common.AT,), scale),
            x,
            "robust loss, flatness (nats)",
            right=common.through_training({"Hessian eigenvalue": Curvature}, (common.AT,), scale),
            right_label="largest eigenvalue of the Hessian",
            upright=("best epoch", common.AT, BestEpoch(percent=True)),
        ),
        *(
            Scatter(
                f"AT: {case} case",
                path(common.AT, case),
                f"{case}-case flatness (nats)",
                "robust loss (nats)",
                joined=True,
            )
            for case in ("average", "worst")
        ),
        Scatter(
            "Methods through training",
            tuple(point for cell in others for point in path(cell, "average")),
            "average-case flatness (nats)",
            "robust loss (nats)",
            joined=True,
        ),
    ]
    notes = (
        "Eigenvalue: the largest of the Hessian of the robust loss on test images in all weights, "
        "adversarial examples held; the text does not say of which examples.",
        common.SUPPLEMENT,
    )
    title = "Flatness throughout training"
    cells = [common.cell(name) for name in others]
    entries = [Entry("AT best epoch", "text", common.AT, BestEpoch(), common.EARLY)]
    return _make("figure6", scale, cells, entries=entries, panels=panels, notes=notes, title=title)


def _figure7(scale: Scale) -> Experiment:
    sweeps = {
        "at-awp": ("weights__gamma", ("0.001", "0.0025", "0.005", "0.01", "0.02")),
        "trades": ("objective__beta", (1.0, 3.0, 6.0, 9.0)),
        "mart": ("objective__lambda_", (1.0, 3.0, 6.0, 9.0)),
        "at": ("optimizer__weight_decay", (0.0005, 0.001, 0.005, 0.01, 0.05)),
    }
    cells, points = [], []
    for method, (key, values) in sweeps.items():
        for value in scale.sweep(values):
            short = key.rpartition("__")[2].rstrip("_")
            cell = with_changes(common.cell(method), f"{short}={value}", **{key: value})
            cells.append(cell)
            label = f"{method}, {short.replace('_', ' ')}"
            points.append((label, cell.name, Flatness(), common.loss()))
    panel = Scatter(
        "Hyper-parameters",
        tuple(points),
        "average-case flatness (nats)",
        "robust loss (nats)",
        joined=True,
    )
    notes = ("The paper's hyper-parameters are in its supplement; these are chosen around them.",)
    title = "Flatness across hyper-parameters"
    return _make("figure7", scale, cells, panels=[panel], notes=notes, title=title)


def _figure8(scale: Scale) -> Experiment:
    loss, error = "robust loss (nats)", "robust error (%)"
    average, worst = Flatness("average"), Flatness("worst")
    panels = [
        Scatter(
            "Robust error against robust loss",
            tuple(
                (row, m, common.loss(), common.error("test")) for row, m in common.METHODS.items()
            ),
            loss,
            error,
        ),
        common.against(common.loss(), average, "Robust loss, average case", loss, "average"),
        common.against(
            common.error("test"), average, "Robust error, average case", error, "average"
        ),
        common.against(common.loss(), worst, "Robust loss, worst case", loss, "worst"),
    ]
    title = "Robustness and flatness"
    columns = {"robust loss": common.loss(), "flatness average": average, "flatness worst": worst}
    return _make(
        "figure8",
        scale,
        common.cells(),
        entries=[
            Entry(row, column, method, measure, common.note(method))
            for row, method in common.METHODS.items()
            for column, measure in columns.items()
        ],
        panels=panels,
        notes=("The paper's coefficients are over all its models, not these rows.",),
        title=title,
        summary=functools.partial(correlations, of="robust loss"),
        summary_note="correlation with robust loss over the rows measured, some with values "
        + SUBSTITUTE,
    )


def _figure9(scale: Scale, imported: tuple[Cell, ...] = ()) -> Experiment:
    flat, loss = Flatness(), "robust loss (nats)"
    train_gap = Difference(common.loss("test"), common.loss("train"))
    last_best = Difference(common.loss("test"), common.loss("test", "best"))
    chosen = ("at", "trades", "mart", "at-awp", "weight-decay")
    stopped = tuple(
        (m, m, Flatness("average", checkpoint), common.loss("test", checkpoint))
        for m in chosen
        for checkpoint in ("last", "best")
    )
    panels = [
        common.against(
            common.loss(),
            Flatness("average", "last", "train"),
            "Flatness on train",
            loss,
            "average",
        ),
        common.against(
            train_gap,
            flat,
            "Test minus train",
            "difference of robust loss (nats)",
            "average",
            imported,
        ),
        common.against(
            last_best, flat, "Last minus best", "difference of robust loss (nats)", "average"
        ),
        Scatter(
            "Last, joined to best (early stopping)",
            stopped,
            "average-case flatness (nats)",
            loss,
            joined=True,
        ),
    ]
    title = "Robust generalisation and early stopping"
    notes = (common.SUPPLEMENT, common.EARLY, common.robustbench(imported))
    cells = (*common.cells(), *imported)
    return _make("figure9", scale, cells, panels=panels, notes=notes, title=title)


EXPERIMENTS = {
    "table1": _table1,
    "figure1": _figure1,
    "figure2": _figure2,
    "figure4": _figure4,
    "figure5": _figure5,
    "figure6": _figure6,
    "figure7": _figure7,
    "figure8": _figure8,
    "figure9": _figure9,
}
