"""Robust Weight Perturbation for Adversarial Training (IJCAI 2022): Tables 1, 2; Figures 1, 2."""

import fractions
import functools

from experiments import _build as build
from experiments import _panels as panels
from experiments._cells import Cell, Entry, Experiment
from experiments._measures import Attacked
from experiments._scales import Scale

_RUNS = 5  # the paper does not say; AWP's tables, whose settings it takes, have five
# Figure 2a's axis is not printed in the text, but for 1.7 (the best), 0 (AT) and infinity (AWP).
_C_MIN = (0.5, 1.1, 1.4, 1.7, 2.0, 2.3, 3.0)
_RANGES = {
    "Unit loss ranges": tuple((low, low + 1.0) for low in range(5)),
    "Growing loss ranges": tuple((0.0, high / 2) for high in range(1, 7)),
}
_SIZES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")
_BEST = Attacked(build.PGD)


def _cell(name: str, seeds: int = 1) -> Cell:
    return Cell(name, f"ijcai2022:{name}", (), seeds)


_AT, _AWP, _RWP = (_cell(f"cifar10,linf,{method}") for method in ("at", "at-awp", "at-rwp"))


def _table1(scale: Scale) -> Experiment:
    def cell(row: str, column: str) -> Cell:
        return _cell(build.cell_name(column.split()[0], *row.split()), _RUNS)

    return Experiment(build.table("ijcai2022", "table1", cell, build.best_or_last))


def _table2(scale: Scale) -> Experiment:
    entries = build.table(
        "ijcai2022",
        "table2",
        lambda row, _: _cell(f"table2,{row.lower()}", _RUNS),
        lambda column: (Attacked(build.ATTACKS[column]), build.SELECTION),
    )
    return Experiment(entries)


def _bars(title: str, xlabel: str, cells: dict[str, Cell]) -> panels.Panel:
    return panels.bars(title, [(label, cell, _BEST) for label, cell in cells.items()], xlabel)


def _bars_and_curves(title: str, xlabel: str, cells: dict[str, Cell]) -> list[panels.Panel]:
    curves = panels.curves(f"{title}: test robustness", list(cells.items()))
    return [_bars(f"{title}: best checkpoint", xlabel, cells), curves]


def _figure1(scale: Scale) -> Experiment:
    """Robust overfitting, and what the size and the loss range of the perturbation do."""
    sizes = {"0": _AT}
    for text in _SIZES:
        gamma = f"{0.01 * float(fractions.Fraction(text)):g}"
        sizes[text] = _AWP.changed(f"gamma={gamma}", weights__gamma=gamma)
    few = dict(scale.sweep(list(sizes.items())))
    shown = [panels.curves("AT", [("AT", _AT)], parts=("train", "test"))]
    shown += _bars_and_curves("Size of the perturbation", "gamma / 0.01", few)
    for title, ranges in _RANGES.items():
        known = {"AT": _AT, "AWP": _AWP}
        for low, high in scale.sweep(ranges):
            known[f"[{low:g}, {high:g})"] = _cell(f"{_AT.name}-lsc-{low:g}-{high:g}")
        shown += _bars_and_curves(title, "range (nats)", known)
    return Experiment(panels=shown)


def _figure2(scale: Scale) -> Experiment:
    """Ablation of RWP on CIFAR-10."""
    by_c_min = {f"{c:g}": _cell(f"{_RWP.name}-c-{c:g}") for c in scale.sweep(_C_MIN)}
    by_steps = build.sweep(scale, _RWP, "weights__steps", range(1, 11), "K2")
    known = {"AT": _AT, **by_c_min, "AWP": _AWP}
    shown = [
        _bars("Minimum loss value", "c_min (nats)", known),
        _bars("Weight steps", "K2", {str(steps): cell for steps, cell in by_steps.items()}),
        panels.curves("Learning curves", [("AT", _AT), ("AWP", _AWP), ("RWP", _RWP)]),
    ]
    rows = [(f"c_min = {c}", cell) for c, cell in by_c_min.items()]
    return Experiment(
        [Entry(row, "PGD-20", cell, _BEST, build.SELECTION) for row, cell in rows],
        shown,
        summary=functools.partial(build.best_point, column="PGD-20", name="best c_min"),
        summary_note="over the values of c_min measured",
    )
