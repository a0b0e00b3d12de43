"""Robust Weight Perturbation for Adversarial Training (IJCAI 2022): Tables 1, 2; Figures 1, 2."""

import functools
from typing import Any

from experiments._build import ATTACKS, SELECTION, best_point, make, white_box, with_changes
from experiments._cells import Cell, Entry, Experiment
from experiments._measures import Attacked
from experiments._panels import Bars, Curves
from experiments._scales import Scale
from experiments._values import paper_values

_make = functools.partial(make, "ijcai2022")
_PGD = "pgd-20"
_RUNS = 5  # the paper does not say; AWP's tables, whose settings it takes, have five
_RUNS_NOTE = "The number of runs is not stated in the paper; five are made, as in AWP's tables."
_AT, _AWP, _RWP = (f"cifar10,linf,{m}" for m in ("at", "at-awp", "at-rwp"))
# Figure 2a's axis is not printed in the text, but for 1.7 (the best), 0 (AT) and infinity (AWP).
_C_MIN = (0.5, 1.1, 1.4, 1.7, 2.0, 2.3, 3.0)
_RANGES = tuple((low, low + 1.0) for low in range(5))
_WIDTHS = tuple((0.0, high / 2) for high in range(1, 7))


def _cell(name: str, seeds: int = 1) -> Cell:
    return Cell(name, f"ijcai2022:{name}", (), seeds)


def _table1(scale: Scale) -> Experiment:
    data = {"SVHN": "svhn", "CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
    cells, entries = [], []
    for norm in ("Linf", "L2"):
        for method in ("AT", "AT-AWP", "AT-RWP"):
            for column, name in data.items():
                cell = _cell(f"{name},{norm.lower()},{method.lower()}", _RUNS)
                cells.append(cell)
                for which, note in (("best", SELECTION), ("last", "")):
                    measure = Attacked(_PGD, which)
                    row = f"{norm} {method}"
                    entries.append(Entry(row, f"{column} {which}", cell.name, measure, note))
    return _make("table1", scale, cells, entries=entries, notes=(_RUNS_NOTE,))


def _table2(scale: Scale) -> Experiment:
    known = paper_values("ijcai2022")["tables"]["table2"]
    cells, entries = [], []
    for row in known["rows"]:
        cell = _cell(f"table2,{row.lower()}", _RUNS)
        cells.append(cell)
        entries += [e._replace(note=SELECTION) for e in white_box(known["columns"], row, cell.name)]
    assert set(known["columns"]) <= set(ATTACKS)
    return _make("table2", scale, cells, entries=entries, notes=(_RUNS_NOTE,))


def _bars_and_curves(title: str, xlabel: str, cells: list[tuple[str, Cell]]) -> tuple[Bars, Curves]:
    bars = tuple((label, cell.name, Attacked(_PGD)) for label, cell in cells)
    return (
        Bars(f"{title}: best checkpoint", bars, xlabel),
        Curves(f"{title}: test robustness", tuple((label, cell.name) for label, cell in cells)),
    )


def _figure1(scale: Scale) -> Experiment:
    at, awp = _cell(_AT), _cell(_AWP)
    sizes = [("0", at)]
    for text, factor in (
        ("1/8", 0.125),
        ("1/4", 0.25),
        ("1/2", 0.5),
        ("1", 1.0),
        ("2", 2.0),
        ("4", 4.0),
        ("8", 8.0),
    ):
        gamma = f"{0.01 * factor:g}"
        sizes.append((text, with_changes(awp, f"gamma={gamma}", weights__gamma=gamma)))
    sizes = list(scale.sweep(sizes))
    groups = {"Unit loss ranges": _RANGES, "Growing loss ranges": _WIDTHS}
    panels: list[Any] = [
        Curves("AT", (("AT", at.name),), parts=("train", "test")),
        *_bars_and_curves("Size of the perturbation", "gamma / 0.01", sizes),
    ]
    cells = [at, awp, *(cell for _, cell in sizes)]
    for title, ranges in groups.items():
        known = [("AT", at), ("AWP", awp)]
        known += [
            (f"[{low:g}, {high:g})", _cell(f"{_AT}-lsc-{low:g}-{high:g}"))
            for low, high in scale.sweep(ranges)
        ]
        cells += [cell for _, cell in known]
        panels += _bars_and_curves(title, "range (nats)", known)
    title = "Robust overfitting, and what the size and the loss range of the perturbation do"
    return _make("figure1", scale, cells, panels=panels, title=title)


def _figure2(scale: Scale) -> Experiment:
    at, awp, rwp = _cell(_AT), _cell(_AWP), _cell(_RWP)
    by_c_min = [("AT", at)]
    by_c_min += [(f"{c:g}", _cell(f"{_RWP}-c-{c:g}")) for c in scale.sweep(_C_MIN)]
    by_c_min += [("AWP", awp)]
    by_steps = [
        (str(k), with_changes(rwp, f"K2={k}", weights__steps=k))
        for k in scale.sweep(tuple(range(1, 11)))
    ]
    best = Attacked(_PGD)
    panels = [
        Bars("Minimum loss value", tuple((t, c.name, best) for t, c in by_c_min), "c_min (nats)"),
        Bars("Weight steps", tuple((t, c.name, best) for t, c in by_steps), "K2"),
        Curves("Learning curves", (("AT", _AT), ("AWP", _AWP), ("RWP", _RWP))),
    ]
    cells = [at, awp, rwp, *(c for _, c in by_c_min), *(c for _, c in by_steps)]
    notes = ("The values of c_min are chosen around 1.7; the text does not list the figure's.",)
    title = "Ablation of RWP on CIFAR-10"
    entries = [
        Entry(f"c_min = {c:g}", "PGD-20", f"{_RWP}-c-{c:g}", best, SELECTION)
        for c in scale.sweep(_C_MIN)
    ]
    return _make(
        "figure2",
        scale,
        cells,
        entries=entries,
        panels=panels,
        notes=notes,
        title=title,
        summary=functools.partial(best_point, column="PGD-20", name="best c_min"),
        summary_note="over the values of c_min measured",
    )


EXPERIMENTS = {
    "table1": _table1,
    "table2": _table2,
    "figure1": _figure1,
    "figure2": _figure2,
}
