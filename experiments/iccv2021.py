"""Relating Adversarially Robust Generalization to Flat Minima (ICCV 2021).

Table 1; Figures 1, 2, 4 to 9. (Figure 3 is an illustration.)
"""

import functools
import importlib
from typing import Any

import numpy as np

from awp_jax.reporting import robustness_groups
from experiments._analyses import Curvature, Flatness, Landscape
from experiments._build import correlations, make, percents, with_changes
from experiments._cells import Cell, Entry, Experiment, Numbers
from experiments._measures import Attacked, BestEpoch, Difference, Measure
from experiments._panels import Curves, Lines, Panel, Scatter
from experiments._scales import Scale
from experiments._weight_panels import Landscapes

_make = functools.partial(make, "iccv2021")
CHOSEN: dict[str, str] = importlib.import_module("configs.iccv2021").CHOSEN
# Row of Table 1: argument of configs/iccv2021.py.
_METHODS = {
    "+Unlabeled": "unlabeled",
    "Cyclic": "cyclic",
    "AutoAugment": "autoaugment",
    "AT-AWP": "at-awp",
    "Label noise": "label-noise",
    "Weight clipping": "weight-clipping",
    "TRADES": "trades",
    "Self-supervision": "self-supervision",
    "Weight decay": "weight-decay",
    "Entropy-SGD": "entropy-sgd",
    "MiSH": "mish",
    "Late multi-step": "late-multi-step",
    "SiLU": "silu",
    "Weight averaging": "weight-averaging",
    "Larger epsilon=9/255": "larger-epsilon",
    "MART": "mart",
    "GeLU": "gelu",
    "Label smoothing": "label-smoothing",
    "AT (baseline)": "at",
}
_AT = "at"
_N = 1000  # examples of every measurement in the paper
_SUPPLEMENT = (
    "Hyper-parameters that only the paper's supplement lists are not the paper's here but: "
    + "; ".join(f"{method}: {words}" for method, words in CHOSEN.items())
    + "."
)
_GROUPS = (
    "Good, Average, Poor: means over the methods measured, split at the 30% and 70% percentiles of "
    "our own test errors, not at the paper's 57% and 60%."
)
_AVERAGE = (
    "Weight averaging: the last checkpoint is the average of weights; the best one is that of the "
    "weights themselves."
)
_EARLY = (
    "best: picked on held-out training images; the paper picks on the last 500 test images, every "
    "5th epoch"
)


def _cell(method: str) -> Cell:
    return Cell(method, f"iccv2021:{method}")


def _cells() -> list[Cell]:
    return [_cell(method) for method in _METHODS.values()]


def _error(part: str, checkpoint: str = "last") -> Attacked:
    return Attacked("autoattack", checkpoint, part, _N, kind="error")


def _loss(part: str = "test", checkpoint: str = "last", kind: str = "loss") -> Attacked:
    return Attacked("pgd-20", checkpoint, part, _N, restarts=10, kind=kind)


def _table1(scale: Scale) -> Experiment:
    columns: dict[str, Measure] = {
        "RErr test": _error("test"),
        "RErr train": _error("train"),
        "flatness average": Flatness("average"),
        "flatness worst": Flatness("worst"),
        "RErr early stopping": _error("test", "best"),
    }
    entries = [
        Entry(row, column, method, measure, _note(method, _EARLY if "early" in column else ""))
        for row, method in _METHODS.items()
        for column, measure in columns.items()
    ]
    notes = (_GROUPS, _AVERAGE)
    return _make("table1", scale, _cells(), entries=entries, notes=notes, summary=_groups)


def _note(method: str, more: str = "") -> str:
    """What of the row is not from the paper's text."""
    known = CHOSEN.get(method)
    chosen = f"in place of the paper's supplement: {known}" if known else ""
    return "; ".join(text for text in (chosen, more) if text)


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


def _against(
    measure: Measure,
    flatness: Measure,
    title: str,
    ylabel: str,
    what: str,
    imported: tuple[Cell, ...] | None = None,
) -> Scatter:
    """Over the methods, and the published models where the paper's figure has them."""
    points = [(row, method, flatness, measure) for row, method in _METHODS.items()]
    names = [_published_name(cell) for cell in imported or ()]
    points += [(n, c.name, flatness, measure) for n, c in zip(names, imported or (), strict=True)]
    return Scatter(
        title,
        tuple(points),
        f"{what}-case flatness (nats)",
        ylabel,
        imported=tuple(names),
        wants_imported=imported is not None,
    )


def _published_name(cell: Cell) -> str:
    return f"{cell.name.rpartition(',')[2]} (imported)"


def _robustbench(imported: tuple[Cell, ...]) -> str:
    if not imported:
        return (
            "The models of RobustBench that the paper shows are not among the cells: make run "
            "directories of their checkpoints by 'awp-jax import' and name these by --imported."
        )
    names = ", ".join(cell.imported for cell in imported)
    return f"Published models, measured as they were imported (triangles in the figure): {names}."


def _figure1(scale: Scale, imported: tuple[Cell, ...] = ()) -> Experiment:
    panel = _against(
        _loss(),
        Flatness(),
        "Robust loss against flatness",
        "robust loss (nats)",
        "average",
        imported,
    )
    notes = (_SUPPLEMENT, _robustbench(imported))
    title = "Robust generalisation and flatness"
    cells = (*_cells(), *imported)
    return _make("figure1", scale, cells, panels=[panel], notes=notes, title=title)


def _by_correctness(title: str, methods: tuple[str, ...], scale: Scale) -> Lines:
    """Robust loss on what is right and what is wrong on clean images, through training."""
    kinds = {"loss": "all", "loss_correct": "right", "loss_wrong": "wrong"}
    series = tuple(
        (
            f"{method}, {words}",
            tuple((int(p[:-1]), method, _loss("test", p, kind)) for p in percents(scale)),
        )
        for method in methods
        for kind, words in kinds.items()
    )
    return Lines(title, series, "epoch (% of training)", "robust loss (nats)")


def _figure2(scale: Scale) -> Experiment:
    series = (("AT", _AT),)
    panels: list[Panel] = [
        Curves("Robust loss", series, "robust_loss", ("train", "test")),
        _by_correctness("Robust loss, by clean prediction", (_AT,), scale),
        Curves("Robust error", series, "robust_error", ("train", "test")),
    ]
    entries = [Entry("AT robust loss test last", "text", _AT, _loss())]
    title = "Robust overfitting of AT"
    return _make("figure2", scale, [_cell(_AT)], entries=entries, panels=panels, title=title)


def _figure4(scale: Scale) -> Experiment:
    at = _cell(_AT)
    cells = {
        "AT": at,
        "batch size 32": with_changes(at, "batch-32", batch_size=32),
        "Adam": _cell("adam"),
        "AT-AWP": _cell("at-awp"),
        "Entropy-SGD": _cell("entropy-sgd"),
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
        Entry(f"{label} largest eigenvalue", "text", _AT, Curvature("last", factor))
        for label, factor in scaled.items()
    ]
    entries += [
        Entry(label, f"flatness {case}", _AT, Flatness(case, factor=factor))
        for label, factor in scaled.items()
        for case in ("average", "worst")
    ]
    entries += [Entry(label, "RErr test", c.name, _error("test")) for label, c in cells.items()]
    notes = (
        "x2 and x0.5: the same function with other weights. With BatchNorm each convolution is "
        "scaled with the running statistics behind it; without, hidden layers are scaled and the "
        "last one divided. Landscapes and flatness must not change, eigenvalues do.",
        "Eigenvalue: of the Hessian of the robust loss on test images in all weights, adversarial "
        "examples held; the text does not say of which examples.",
        _SUPPLEMENT,
    )
    title = "Robust loss along ten directions, mean and range"
    return _make(
        "figure4", scale, cells.values(), entries=entries, panels=panels, notes=notes, title=title
    )


def _figure5(scale: Scale) -> Experiment:
    awp = _cell("at-awp")
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
        _by_correctness("AT and MART, by clean prediction", ("at", "mart"), scale),
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
    cells = [*map(_cell, names), *weak]
    return _make("figure5", scale, cells, panels=panels, notes=(_SUPPLEMENT,), title=title)


def _through_training(measures: dict[str, Any], cells: tuple[str, ...], scale: Scale) -> Any:
    return tuple(
        (
            label if len(cells) == 1 else f"{cell}, {label}",
            tuple((int(p[:-1]), cell, measure(p)) for p in percents(scale)),
        )
        for cell in cells
        for label, measure in measures.items()
    )


def _figure6(scale: Scale) -> Experiment:
    flatness: dict[str, Any] = {
        "average-case flatness": lambda p: Flatness("average", p),
        "worst-case flatness": lambda p: Flatness("worst", p),
    }
    losses: dict[str, Any] = {
        "test robust loss": lambda p: _loss("test", p),
        "train robust loss": lambda p: _loss("train", p),
    }
    x = "epoch (% of training)"
    others = ("at", "self-supervision", "at-awp", "unlabeled")

    def path(cell: str, case: str) -> tuple:
        return tuple((cell, cell, Flatness(case, p), _loss("test", p)) for p in percents(scale))

    panels: list[Panel] = [
        Lines(
            "AT",
            _through_training(losses | flatness, (_AT,), scale),
            x,
            "robust loss, flatness (nats)",
            right=_through_training({"Hessian eigenvalue": Curvature}, (_AT,), scale),
            right_label="largest eigenvalue of the Hessian",
            upright=("best epoch", _AT, BestEpoch(percent=True)),
        ),
        *(
            Scatter(
                f"AT: {case} case",
                path(_AT, case),
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
        _SUPPLEMENT,
    )
    title = "Flatness throughout training"
    cells = [_cell(name) for name in others]
    entries = [Entry("AT best epoch", "text", _AT, BestEpoch(), _EARLY)]
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
            cell = with_changes(_cell(method), f"{short}={value}", **{key: value})
            cells.append(cell)
            label = f"{method}, {short.replace('_', ' ')}"
            points.append((label, cell.name, Flatness(), _loss()))
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
            tuple((row, m, _loss(), _error("test")) for row, m in _METHODS.items()),
            loss,
            error,
        ),
        _against(_loss(), average, "Robust loss, average case", loss, "average"),
        _against(_error("test"), average, "Robust error, average case", error, "average"),
        _against(_loss(), worst, "Robust loss, worst case", loss, "worst"),
    ]
    title = "Robustness and flatness"
    columns = {"robust loss": _loss(), "flatness average": average, "flatness worst": worst}
    return _make(
        "figure8",
        scale,
        _cells(),
        entries=[
            Entry(row, column, method, measure, _note(method))
            for row, method in _METHODS.items()
            for column, measure in columns.items()
        ],
        panels=panels,
        notes=("The paper's coefficients are over all its models, not these rows."),
        title=title,
        summary=functools.partial(correlations, of="robust loss"),
        summary_note="correlation with robust loss over the rows measured",
    )


def _figure9(scale: Scale, imported: tuple[Cell, ...] = ()) -> Experiment:
    flat, loss = Flatness(), "robust loss (nats)"
    train_gap = Difference(_loss("test"), _loss("train"))
    last_best = Difference(_loss("test"), _loss("test", "best"))
    chosen = ("at", "trades", "mart", "at-awp", "weight-decay")
    stopped = tuple(
        (m, m, Flatness("average", checkpoint), _loss("test", checkpoint))
        for m in chosen
        for checkpoint in ("last", "best")
    )
    panels = [
        _against(
            _loss(), Flatness("average", "last", "train"), "Flatness on train", loss, "average"
        ),
        _against(
            train_gap,
            flat,
            "Test minus train",
            "difference of robust loss (nats)",
            "average",
            imported,
        ),
        _against(last_best, flat, "Last minus best", "difference of robust loss (nats)", "average"),
        Scatter(
            "Last, joined to best (early stopping)",
            stopped,
            "average-case flatness (nats)",
            loss,
            joined=True,
        ),
    ]
    title = "Robust generalisation and early stopping"
    notes = (_SUPPLEMENT, _EARLY, _robustbench(imported))
    cells = (*_cells(), *imported)
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
