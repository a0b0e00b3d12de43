"""What the tables and figures of the ICCV 2021 paper share: its methods, measures and notes."""

import importlib
from typing import Any

from experiments._build import percents
from experiments._cells import SUBSTITUTE, Cell
from experiments._measures import Attacked, Measure
from experiments._panels import Lines, Scatter
from experiments._scales import Scale

CHOSEN: dict[str, str] = importlib.import_module("configs.iccv2021").CHOSEN
# Row of Table 1: argument of configs/iccv2021.py.
METHODS = {
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
AT = "at"
_EXAMPLES = 1000  # examples of every measurement in the paper
SUPPLEMENT = (
    "Hyper-parameters that only the paper's supplement lists are not the paper's here but: "
    + "; ".join(f"{method}: {words}" for method, words in CHOSEN.items())
    + "."
)
GROUPS = (
    "Good, Average, Poor: means over the methods measured, split at the 30% and 70% percentiles of "
    "our own test errors, not at the paper's 57% and 60%."
)
AVERAGE = (
    "Weight averaging: the last checkpoint is the average of weights; the best one is that of the "
    "weights themselves."
)
EARLY = (
    "best: picked on held-out training images; the paper picks on the last 500 test images, every "
    "5th epoch"
)


def cell(method: str) -> Cell:
    """One model of a method, under its name."""
    return Cell(method, f"iccv2021:{method}")


def cells() -> list[Cell]:
    """Those of Table 1."""
    return [cell(method) for method in METHODS.values()]


def error(part: str, checkpoint: str = "last") -> Attacked:
    """Robust error (RErr), by AutoAttack."""
    return Attacked("autoattack", checkpoint, part, _EXAMPLES, kind="error")


def loss(part: str = "test", checkpoint: str = "last", kind: str = "loss") -> Attacked:
    """Robust loss (RLoss), by PGD-20 with ten restarts."""
    return Attacked("pgd-20", checkpoint, part, _EXAMPLES, restarts=10, kind=kind)


def note(method: str, more: str = "") -> str:
    """What of the row is not from the paper's text."""
    known = CHOSEN.get(method)
    chosen = f"{SUBSTITUTE}: {known}" if known else ""
    return "; ".join(text for text in (chosen, more) if text)


def against(
    measure: Measure,
    flatness: Measure,
    title: str,
    ylabel: str,
    what: str,
    imported: tuple[Cell, ...] | None = None,
) -> Scatter:
    """Over the methods, and the published models where the paper's figure has them."""
    points = [(row, method, flatness, measure) for row, method in METHODS.items()]
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


def robustbench(imported: tuple[Cell, ...]) -> str:
    """A note on the published models that the paper's figure shows."""
    if not imported:
        return (
            "The models of RobustBench that the paper shows are not among the cells: make run "
            "directories of their checkpoints by 'awp-jax import' and name these by --imported."
        )
    names = ", ".join(cell.imported for cell in imported)
    return f"Published models, measured as they were imported (triangles in the figure): {names}."


def by_correctness(title: str, methods: tuple[str, ...], scale: Scale) -> Lines:
    """Robust loss on what is right and what is wrong on clean images, through training."""
    kinds = {"loss": "all", "loss_correct": "right", "loss_wrong": "wrong"}
    series = tuple(
        (
            f"{method}, {words}",
            tuple((int(p[:-1]), method, loss("test", p, kind)) for p in percents(scale)),
        )
        for method in methods
        for kind, words in kinds.items()
    )
    return Lines(title, series, "epoch (% of training)", "robust loss (nats)")


def through_training(measures: dict[str, Any], cells: tuple[str, ...], scale: Scale) -> Any:
    """Series of measures over the checkpoints that stay, for ``Lines``."""
    return tuple(
        (
            label if len(cells) == 1 else f"{cell}, {label}",
            tuple((int(p[:-1]), cell, measure(p)) for p in percents(scale)),
        )
        for cell in cells
        for label, measure in measures.items()
    )
