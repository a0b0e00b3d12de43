"""Adversarial Weight Perturbation Helps Robust Generalization (NeurIPS 2020).

Tables 1 to 5, Figures 1 to 11.
"""

import functools
from typing import Any

from experiments._analyses import Landscape
from experiments._build import (
    ATTACKS,
    SELECTION,
    connection,
    gap,
    highest,
    make,
    methods_panels,
    percents,
    text_entries,
    with_changes,
)
from experiments._cells import Cell, Entry, Experiment
from experiments._measures import Attacked, BestEpoch
from experiments._panels import Bars, Curves, Lines, Panel
from experiments._scales import Scale
from experiments._values import paper_values
from experiments._weight_panels import Contour, Histograms, Landscapes, Perturbed

_make = functools.partial(make, "neurips2020")
_DATA = {"SVHN": "svhn", "CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
_NORMS = {"Linf": "linf", "L2": "l2"}
_PGD = "pgd-20"
_AT, _AWP = "cifar10,linf,at", "cifar10,linf,at-awp"
# The figures' axes span these; the points in between are not printed.
_GAMMAS = (0.001, 0.002, 0.005, 0.01, 0.02)
_WIDE_GAMMAS = (0.0001, *_GAMMAS)
_RANDOM_GAMMAS = (0.0001, 0.001, 0.01, 0.1, 0.3, 0.6, 1.0, 2.0)
_GAMMA_NOTE = (
    "The gammas are chosen from the range of the figure's axis; the text does not list them."
)


def _cell(name: str, seeds: int = 1, **changes: Any) -> Cell:
    pairs = tuple((key.replace("__", "."), value) for key, value in changes.items())
    return Cell(name, f"neurips2020:{name}", pairs, seeds)


def _best_and_last(row: str, column: str, cell: str, attack: str) -> list[Entry]:
    return [
        Entry(row, f"{column} best", cell, Attacked(attack, "best"), SELECTION),
        Entry(row, f"{column} last", cell, Attacked(attack, "last")),
    ]


def _table1(scale: Scale) -> Experiment:
    cells, entries = [], []
    for norm in _NORMS:
        for method in ("AT", "AT-AWP"):
            for column, data in _DATA.items():
                name = f"{data},{_NORMS[norm]},{method.lower()}"
                cells.append(_cell(name, seeds=5))
                entries += _best_and_last(f"{norm} {method}", column, name, _PGD)
    return _make("table1", scale, cells, entries=entries)


def _table2(scale: Scale) -> Experiment:
    rows = paper_values("neurips2020")["tables"]["table2"]["rows"]
    cells, entries = [], []
    for row in rows:
        name = f"table2,{row.lower()}"
        cells.append(_cell(name, seeds=5))
        for column, attack in ATTACKS.items():
            if column != "FA":
                measure = Attacked(attack)
                entries.append(Entry(row, column, name, highest(measure, scale), _HIGHEST))
                entries.append(Entry(row, f"{column}, validation", name, measure, SELECTION))
    return _make("table2", scale, cells, entries=entries)


_HIGHEST = (
    "the highest over the checkpoints that stay in the second half of training, attack by attack, "
    "on the test set, as the paper has it"
)


def _table3(scale: Scale) -> Experiment:
    cells, entries = [], []
    for column, data in _DATA.items():
        for norm in _NORMS:
            for method in ("AT", "AT-AWP"):
                name = f"{data},{_NORMS[norm]},{method.lower()}"
                cells.append(_cell(name, seeds=5))
                row = f"{column} {norm} {method}"
                entries += _best_and_last(row, "robust", name, _PGD)
                entries += _best_and_last(row, "natural", name, "clean")
    return _make("table3", scale, cells, entries=entries)


_REGULARISED = {
    "AT": "at",
    "+L1 regularization": "at-l1",
    "+L2 regularization": "at-l2",
    "+Cutout": "at-cutout",
    "+Mixup": "at-mixup",
    "AT-AWP": "at-awp",
}


def _regularisation(table: str, norm: str, scale: Scale) -> Experiment:
    cells, entries = [], []
    for row, method in _REGULARISED.items():
        name = f"cifar10,{norm},{method}"
        cells.append(_cell(name, seeds=5))
        entries += _best_and_last(row, "robust", name, _PGD)
        entries += _best_and_last(row, "natural", name, "clean")
    notes = (
        "AT-AWP has gamma 0.01, as in Table 1, whose numbers the table repeats; the text says "
        "0.005.",
    )
    return _make(table, scale, cells, entries=entries, notes=notes)


def _figure1(scale: Scale) -> Experiment:
    methods = (
        ("AT", _AT, "last"),
        ("AT-ES", _AT, "best"),
        ("TRADES", "cifar10,linf,trades", "last"),
        ("MART", "cifar10,linf,mart", "last"),
        ("RST", "cifar10,linf,rst", "last"),
    )
    last = {p: Attacked(_PGD, "last", p) for p in ("train", "test")}
    said = {
        "AT robust train last": (_AT, last["train"]),
        "AT robust test last": (_AT, last["test"]),
        "AT robust gap last": (_AT, gap(_PGD)),
        "AT best epoch": (_AT, BestEpoch()),
    }
    return _make(
        "figure1",
        scale,
        [_cell(cell) for _, cell, _ in methods],
        entries=text_entries("neurips2020", "figure1", said),
        panels=[*connection(_AT, "AT", scale), *methods_panels(methods, _PGD)],
        title="Weight loss landscape and robust generalisation gap of AT and its variants",
        notes=("The paper tests with PGD-10 here; this uses PGD-20 as everywhere.",),
    )


def _ablation(scale: Scale, *values: tuple[str, tuple[int, ...]]) -> list[Cell]:
    base = _cell(_AWP)
    return [
        with_changes(base, f"{key.rpartition('.')[2]}={v}", **{key.replace(".", "__"): v})
        for key, points in values
        for v in scale.sweep(points)
    ]


def _gamma_cells(scale: Scale, method: str, gammas: tuple[float, ...], **more: str) -> list[Cell]:
    base = _cell(f"cifar10,linf,{method}")
    label = "".join(f",{v}" for v in more.values())
    return [
        with_changes(base, f"gamma={g:g}{label}", weights__gamma=f"{g:g}", **more)
        for g in scale.sweep(gammas)
    ]


def _sweep(scale: Scale, gammas: tuple[float, ...], cells: list[Cell], part: str = "test") -> Any:
    points = zip(scale.sweep(gammas), cells, strict=True)
    return tuple((g, cell.name, Attacked(_PGD, "best", part)) for g, cell in points)


def _figure2(scale: Scale) -> Experiment:
    steps = _ablation(scale, ("weights.steps", (1, 5, 10)))
    alternations = _ablation(scale, ("weights.alternations", (1, 2, 3)))
    at, trades = (_gamma_cells(scale, m, _GAMMAS) for m in ("at-awp", "trades-awp"))
    l1 = _gamma_cells(scale, "at-awp", _GAMMAS, weights__size="l1")
    best = Attacked(_PGD)

    def bars(title: str, cells: list[Cell], what: str) -> Bars:
        known = tuple((c.name.rpartition("=")[2], c.name, best) for c in cells)
        return Bars(title, known, what, published=55.39)

    series = tuple(
        (label, _sweep(scale, _GAMMAS, cells))
        for label, cells in (("AT-AWP", at), ("TRADES-AWP", trades), ("AT-AWP, L1 size", l1))
    )
    models = ((f"gamma = {c.name.rpartition('=')[2]}", c.name, "last") for c in at)
    panels: list[Panel] = [
        bars("Weight steps (A = 1)", steps, "K2"),
        bars("Alternations (K2 = 1)", alternations, "A"),
        Lines("Size of the perturbation", series, "gamma", log=True),
        *methods_panels((("gamma = 0", _AT, "last"), *models), _PGD),
    ]
    return _make(
        "figure2",
        scale,
        [_cell(_AT), *steps, *alternations, *at, *trades, *l1],
        entries=[Entry("A = 1, K2 = 1", "text", steps[0].name, best, SELECTION)],
        panels=panels,
        notes=(_GAMMA_NOTE,),
        title="Ablation of AWP on CIFAR-10",
    )


def _figure3(scale: Scale) -> Experiment:
    awp = _gamma_cells(scale, "at-awp", _WIDE_GAMMAS)
    random = _gamma_cells(scale, "at", _RANDOM_GAMMAS, weights__method="random")
    regularised = {k: _cell(f"cifar10,linf,{m}") for k, m in _REGULARISED.items()}
    pairs = (("AWP", _WIDE_GAMMAS, awp), ("random", _RANDOM_GAMMAS, random))
    series = tuple(
        (f"{label}, {part}", _sweep(scale, gammas, cells, part))
        for label, gammas, cells in pairs
        for part in ("test", "train")
    )
    # Panel b compares AWP of 0.005 (what comes nearest, in a thinned sweep).
    one = [c for c in awp if c.name.endswith("=0.005")] or awp[-1:]
    curves = [
        (f"{label}, gamma = {c.name.split('gamma=')[1].split(',')[0]}", c.name, Landscape())
        for label, cells in (("AWP", one), ("random", random))
        for c in cells
    ]
    panels: list[Panel] = [
        Perturbed(
            "AT, weights perturbed", _AT, tuple(percents(scale)), random=(0.3, 0.6, 1.0), awp=0.005
        ),
        Landscapes("Landscape by method", (("AT", _AT, Landscape()), *curves)),
        Lines("Robustness against gamma", series, "gamma", log=True),
        Curves("Regularisation", tuple((k, c.name) for k, c in regularised.items())),
    ]
    return _make(
        "figure3",
        scale,
        [_cell(_AT), _cell(_AWP), *awp, *random, *regularised.values()],
        entries=[
            Entry("AT", "text", _AT, Attacked(_PGD), SELECTION),
            Entry("AT-AWP", "text", _AWP, Attacked(_PGD), SELECTION),
        ],
        panels=panels,
        notes=(_GAMMA_NOTE,),
        title="AWP against random weight perturbation and other regularisation",
    )


def _figure4(scale: Scale) -> Experiment:
    return _make(
        "figure4",
        scale,
        [_cell(_AT), _cell(_AWP)],
        panels=[Histograms("Weights of one layer", (("AT", _AT), ("AT-AWP", _AWP)))],
        title="Distribution of weights of AT and AT-AWP",
    )


def _points(scale: Scale) -> list[str]:
    """The epochs 100, 140 and 200 of 200 (the nearest that stay)."""
    return [p for p in ("50%", "70%", "100%") if int(p[:-1]) in scale.percents]


def _figure5(scale: Scale) -> Experiment:
    panels = [
        Landscapes(f"AT, {p} of the epochs", ((p, _AT, Landscape(p, 10)),), each=True)
        for p in _points(scale)
    ]
    title = "1-D landscapes along ten random directions"
    return _make("figure5", scale, [_cell(_AT)], panels=panels, title=title)


def _figure6(scale: Scale) -> Experiment:
    panels = [Contour(f"AT, {p} of the epochs", _AT, Landscape(p, dims=2)) for p in _points(scale)]
    title = "2-D landscapes |g(a, b) - g(0, 0)|"
    return _make("figure6", scale, [_cell(_AT)], panels=panels, title=title)


def _connections(figure: str, title: str, scale: Scale, cells: dict[str, Cell]) -> Experiment:
    panels = [p for what, cell in cells.items() for p in connection(cell.name, what, scale)]
    return _make(figure, scale, cells.values(), panels=panels, title=title)


def _figure7(scale: Scale) -> Experiment:
    at = _cell(_AT)
    cyclic = {"schedule__name": "cyclic", "optimizer__learning_rate": 0.2, "schedule__peak": 0.4}
    cells = {
        "cosine": with_changes(at, "cosine", schedule__name="cosine"),
        "cyclic": with_changes(at, "cyclic", **cyclic),
    }
    return _connections("figure7", "Learning rate schedules", scale, cells)


def _figure8(scale: Scale) -> Experiment:
    at = _cell(_AT)
    cells = {
        "VGG-19": with_changes(at, "vgg-19", model__name="vgg-19"),
        "WideResNet-34-10": with_changes(at, "wrn-34-10", model__name="wrn-34-10"),
    }
    return _connections("figure8", "Architectures", scale, cells)


def _figure9(scale: Scale) -> Experiment:
    cells = {"CIFAR-100": _cell("cifar100,linf,at"), "SVHN": _cell("svhn,linf,at")}
    return _connections("figure9", "Data sets", scale, cells)


def _figure10(scale: Scale) -> Experiment:
    return _connections("figure10", "The L2 ball", scale, {"L2": _cell("cifar10,l2,at")})


def _figure11(scale: Scale) -> Experiment:
    cells: list[Cell] = []
    panels: list[Panel] = []
    for norm, what in (("linf", "Linf"), ("l2", "L2")):
        own = {label: _cell(f"cifar10,{norm},{m}") for label, m in _REGULARISED.items()}
        cells += own.values()
        series = tuple((label, cell.name) for label, cell in own.items())
        panels += [
            Curves(f"{what}: robust", series, "robust_accuracy"),
            Curves(f"{what}: natural", series, "clean_accuracy"),
        ]
    title = "Learning curves of AT, AT-AWP and other regularisation"
    return _make("figure11", scale, cells, panels=panels, title=title)


EXPERIMENTS = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": functools.partial(_regularisation, "table4", "linf"),
    "table5": functools.partial(_regularisation, "table5", "l2"),
    "figure1": _figure1,
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
    "figure6": _figure6,
    "figure7": _figure7,
    "figure8": _figure8,
    "figure9": _figure9,
    "figure10": _figure10,
    "figure11": _figure11,
}
