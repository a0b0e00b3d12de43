"""Revisiting Loss Landscape for Adversarial Robustness (arXiv 2020), the first version of AWP.

Tables 1 to 3, the cell of footnote 4 (AWP with FGSM), Figures 1 to 3.
"""

import dataclasses
import functools
from typing import Any

from experiments._analyses import Landscape, Rise
from experiments._build import (
    ATTACKS,
    best_point,
    make,
    methods_panels,
    percents,
    white_box,
    with_changes,
)
from experiments._cells import Cell, Entry, Experiment, Numbers
from experiments._measures import Attacked
from experiments._panels import Bars, Lines, Panel
from experiments._scales import Scale
from experiments._values import paper_values
from experiments._weight_panels import Perturbed

_make = functools.partial(make, "arxiv_v1")
# The paper does not say which checkpoint it reports; the last is what a plain run ends with.
_LAST = "the last checkpoint; the paper does not say which it reports"
_METHODS = {"Madry": "at", "TRADES": "trades", "MART": "mart", "RST": "rst"}
_AT, _AWP = "cifar10,at", "cifar10,at-awp"
_GAMMAS = (0.001, 0.002, 0.005, 0.01, 0.02)
_GAMMA_NOTE = (
    "The gammas are chosen from the range of the figure's axis; the text does not list them."
)
_PGD = "pgd-20"
_RISE = "mean rise of the landscape (nats)"


def _cell(name: str, **changes: Any) -> Cell:
    pairs = tuple((key.replace("__", "."), value) for key, value in changes.items())
    return Cell(name, f"arxiv_v1:{name}", pairs)


def _method(row: str) -> str:
    return _METHODS[row.removesuffix("+")] + ("-awp" if row.endswith("+") else "")


def _fgsm(awp: Cell) -> Cell:
    """AWP with one step of FGSM as the input attack."""
    return with_changes(awp, "fgsm", attack__steps=1, attack__step_size="8/255")


def _table1(scale: Scale) -> Experiment:
    random = with_changes(_cell(_AT), "random", weights__method="random")
    pni = _cell("cifar10,at-pni")
    rows = {"Madry": _cell(_AT), "Madry+": _cell(_AWP), "RWP": random, "PNI": pni}
    entries = [
        Entry(row, "PGD-20", cell.name, Attacked(_PGD, "last"), _LAST) for row, cell in rows.items()
    ]
    return _make("table1", scale, rows.values(), entries=entries)


def _footnote4(scale: Scale) -> Experiment:
    awp = _cell(_AWP)
    rows = {"Madry+ K1 = 10": awp, "Madry+ K1 = 1": _fgsm(awp), "Madry": _cell(_AT)}
    entries = [
        Entry(row, "PGD-20", cell.name, Attacked(_PGD, "last"), _LAST) for row, cell in rows.items()
    ]
    notes = ("K1 = 1: uniform start and one step of 8/255; the footnote says FGSM and no more.",)
    return _make("footnote4", scale, rows.values(), entries=entries, notes=notes)


def _table2(scale: Scale) -> Experiment:
    known = paper_values("arxiv_v1")["tables"]["table2"]
    cells, entries = [], []
    for row, numbers in known["rows"].items():
        for data, name in (("MNIST", "mnist"), ("CIFAR-10", "cifar10-wrn")):
            pairs = zip(known["columns"], numbers, strict=True)
            columns = [c for c, n in pairs if c.startswith(data) and n is not None]
            if columns:
                cell = _cell(f"{name},{_method(row)}")
                cells.append(cell)
                found = white_box(columns, row, cell.name, checkpoint="last")
                entries += [e._replace(note=_LAST) for e in found]
    return _make("table2", scale, cells, entries=entries)


def _table3(scale: Scale) -> Experiment:
    known = paper_values("arxiv_v1")["tables"]["table3"]
    natural = {"objective__name": "natural", "model__name": "wrn-28-10"}
    surrogate = with_changes(_cell("cifar10-wrn,at"), "surrogate", **natural)
    cells, entries = [surrogate], []
    for row, numbers in known["rows"].items():
        for data, name in (("MNIST", "mnist"), ("CIFAR-10", "cifar10-wrn")):
            pairs = zip(known["columns"], numbers, strict=True)
            columns = [c for c, n in pairs if c.startswith(data) and n is not None]
            if not columns:
                continue
            cell, source = _cell(f"{name},{_method(row)}"), surrogate
            if data == "MNIST":  # a copy of the model, trained independently
                source = dataclasses.replace(cell, name=f"{cell.name},copy", first_seed=1000)
                cells.append(source)
            cells.append(cell)
            entries += [
                Entry(
                    row,
                    c,
                    cell.name,
                    Attacked(ATTACKS[c.split()[-1]], "last", surrogate=source.name),
                    _LAST,
                )
                for c in columns
            ]
    return _make("table3", scale, cells, entries=entries)


def _figure1(scale: Scale) -> Experiment:
    cells = {
        row: with_changes(
            _cell(f"cifar10-wrn,{m}"),
            "wrn-28-10",
            model__name="wrn-28-10",
            evaluation__step_size="0.01",
        )
        for row, m in _METHODS.items()
    }
    methods = tuple((row, cell.name, "last") for row, cell in cells.items())
    panels = [*methods_panels(methods, _PGD), *methods_panels(methods, "clean")[:1]]
    title = "Landscape and generalisation gaps of Madry, TRADES, MART and RST, WideResNet-28-10"
    return _make("figure1", scale, cells.values(), panels=panels, title=title)


def _figure2(scale: Scale) -> Experiment:
    awp, last = _cell(_AWP), Attacked(_PGD, "last")
    alternations = [
        with_changes(awp, f"A={a}", weights__alternations=a) for a in scale.sweep((1, 2, 3))
    ]
    steps = [with_changes(awp, f"K2={k}", weights__steps=k) for k in scale.sweep((1, 5, 10))]
    bars = tuple((c.name.rpartition(",")[2], c.name, last) for c in (*alternations, *steps))
    through = tuple(percents(scale))
    panels: list[Panel] = [
        Bars("Optimisation of the perturbation", bars, "A (K2 = 1), K2 (A = 1)", published=51.19),
        Perturbed("Madry, weights perturbed", _AT, through, random=(0.005,), awp=0.005),
    ]
    entries = [Entry("A = 1, K2 = 1", "text", alternations[0].name, last, _LAST)]
    title = "Ablation of the optimisation, and loss under perturbed weights"
    cells = [_cell(_AT), *alternations, *steps]
    return _make("figure2", scale, cells, entries=entries, panels=panels, title=title)


def _figure3(scale: Scale) -> Experiment:
    def gammas(method: str, **more: str) -> list[Cell]:
        label = "".join(f",{v}" for v in more.values())
        return [
            with_changes(
                _cell(f"cifar10,{method}"), f"gamma={g:g}{label}", weights__gamma=f"{g:g}", **more
            )
            for g in scale.sweep(_GAMMAS)
        ]

    def points(cells: list[Cell]) -> Any:
        pairs = zip(scale.sweep(_GAMMAS), cells, strict=True)
        return tuple((g, cell.name, Attacked(_PGD, "last")) for g, cell in pairs)

    at, trades = gammas("at-awp"), gammas("trades-awp")
    l1 = gammas("at-awp", weights__size="l1")
    models = tuple((f"gamma = {c.name.rpartition('=')[2]}", c.name, "last") for c in at)
    panels: list[Panel] = [
        Lines("Methods", (("Madry+", points(at)), ("TRADES+", points(trades))), "gamma", log=True),
        Lines("Size in L1 and in L2", (("L2", points(at)), ("L1", points(l1))), "gamma", log=True),
        *methods_panels((("gamma = 0", _AT, "last"), *models), _PGD),
    ]
    cells = [_cell(_AT), *at, *trades, *l1]
    columns = {"PGD-20": Attacked(_PGD, "last"), _RISE: Rise(Landscape("last"))}
    entries = [
        Entry(f"Madry+ gamma = {g:g}", column, cell.name, measure, _LAST)
        for g, cell in zip(scale.sweep(_GAMMAS), at, strict=True)
        for column, measure in columns.items()
    ]
    return _make(
        "figure3",
        scale,
        cells,
        entries=entries,
        panels=panels,
        notes=(_GAMMA_NOTE,),
        title="Size of the perturbation",
        summary=_best_gammas,
        summary_note="over the gammas measured",
    )


def _best_gammas(numbers: Numbers) -> Numbers:
    best = best_point(numbers, "PGD-20", "best gamma")
    return best | best_point(numbers, _RISE, "flattest gamma", -1)


EXPERIMENTS = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "footnote4": _footnote4,
    "figure1": _figure1,
    "figure2": _figure2,
    "figure3": _figure3,
}
