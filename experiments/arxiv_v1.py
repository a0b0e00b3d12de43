"""Revisiting Loss Landscape for Adversarial Robustness (arXiv 2020), the first version of AWP.

Tables 1 to 3, the cell of footnote 4 (AWP with FGSM), Figures 1 to 3.
"""

import dataclasses

from experiments import _build as build
from experiments import _panels as panels
from experiments._cells import Cell, Entry, Experiment, Numbers
from experiments._measures import Attacked, Landscape, Made, rise
from experiments._scales import Scale

# The paper does not say which checkpoint it reports; the last is what a plain run ends with.
_NOTE = "the last checkpoint; the paper does not say which it reports"
_METHODS = {"Madry": "at", "TRADES": "trades", "MART": "mart", "RST": "rst"}
_LAST = Attacked(build.PGD, "last")
_GAMMAS = ("0.001", "0.002", "0.005", "0.01", "0.02")
_RISE = "mean rise of the landscape (nats)"


def _cell(name: str) -> Cell:
    return Cell(name, f"arxiv_v1:{name}")


_AT, _AWP, _TRADES = (_cell(f"cifar10,{method}") for method in ("at", "at-awp", "trades-awp"))


def _last(rows: dict[str, Cell]) -> list[Entry]:
    return [Entry(row, "PGD-20", cell, _LAST, _NOTE) for row, cell in rows.items()]


def _table1(scale: Scale) -> Experiment:
    random = _AT.changed("random", weights__method="random")
    pni = _cell("cifar10,at-pni")
    return Experiment(_last({"Madry": _AT, "Madry+": _AWP, "RWP": random, "PNI": pni}))


def _footnote4(scale: Scale) -> Experiment:
    fgsm = _AWP.changed("fgsm", attack__steps=1, attack__step_size="8/255")
    return Experiment(_last({"Madry+ K1 = 10": _AWP, "Madry+ K1 = 1": fgsm, "Madry": _AT}))


def _model(row: str, column: str) -> Cell:
    data = "mnist" if column.startswith("MNIST") else "cifar10-wrn"
    return _cell(f"{data},{_METHODS[row.removesuffix('+')]}{'-awp' if row.endswith('+') else ''}")


def _attacked(column: str) -> tuple[Attacked, str]:
    return Attacked(build.ATTACKS[column.split()[-1]], "last"), _NOTE


def _table2(scale: Scale) -> Experiment:
    return Experiment(build.table("arxiv_v1", "table2", _model, _attacked))


def _table3(scale: Scale) -> Experiment:
    natural = {"objective__name": "natural", "model__name": "wrn-28-10"}
    surrogate = _cell("cifar10-wrn,at").changed("surrogate", **natural)
    entries, sources = [], [surrogate]
    for entry in build.table("arxiv_v1", "table3", _model, _attacked):
        source = surrogate
        if entry.column.startswith("MNIST"):  # a copy of the model, trained independently
            copy = f"{entry.cell.name},copy"
            source = dataclasses.replace(entry.cell, name=copy, first_seed=1000)
            sources.append(source)
        measure = dataclasses.replace(entry.measure, surrogate=source.name)  # type: ignore[call-arg]
        entries.append(entry._replace(measure=measure))
    return Experiment(entries, also=sources)


def _figure1(scale: Scale) -> Experiment:
    """Landscape and generalisation gaps of Madry, TRADES, MART and RST, WideResNet-28-10."""
    wide = {"model__name": "wrn-28-10", "evaluation__step_size": "0.01"}
    models = [
        (row, _cell(f"cifar10-wrn,{method}").changed("wrn-28-10", **wide), "last")
        for row, method in _METHODS.items()
    ]
    return Experiment(
        panels=[*build.methods_panels(models), build.methods_panels(models, "clean")[0]]
    )


def _figure2(scale: Scale) -> Experiment:
    """Ablation of the optimisation, and loss under perturbed weights."""
    alternations = list(build.sweep(scale, _AWP, "weights__alternations", (1, 2, 3), "A").values())
    steps = list(build.sweep(scale, _AWP, "weights__steps", (1, 5, 10), "K2").values())
    bars = [(cell.last_part, cell, _LAST) for cell in (*alternations, *steps)]
    what = "A (K2 = 1), K2 (A = 1)"
    return Experiment(
        [Entry("A = 1, K2 = 1", "text", alternations[0], _LAST, _NOTE)],
        [
            panels.bars("Optimisation of the perturbation", bars, what, published=51.19),
            build.perturbed("Madry, weights perturbed", _AT, scale, random=(0.005,), awp=0.005),
        ],
    )


def _figure3(scale: Scale) -> Experiment:
    """Size of the perturbation."""
    at, trades = (build.sweep(scale, cell, "weights__gamma", _GAMMAS) for cell in (_AWP, _TRADES))
    l1 = build.sweep(scale, _AWP, "weights__gamma", _GAMMAS, weights__size="l1")
    methods = [build.points("Madry+", at, _LAST), build.points("TRADES+", trades, _LAST)]
    sizes = [build.points("L2", at, _LAST), build.points("L1", l1, _LAST)]
    models = [(f"gamma = {gamma}", cell, "last") for gamma, cell in at.items()]
    columns = {"PGD-20": _LAST, _RISE: Made(rise, (Landscape("last"),))}
    return Experiment(
        [
            Entry(f"Madry+ gamma = {gamma}", column, cell, measure, _NOTE)
            for gamma, cell in at.items()
            for column, measure in columns.items()
        ],
        [
            panels.lines("Methods", methods, "gamma", log=True),
            panels.lines("Size in L1 and in L2", sizes, "gamma", log=True),
            *build.methods_panels([("gamma = 0", _AT, "last"), *models]),
        ],
        summary=_best_gammas,
        summary_note="over the gammas measured",
    )


def _best_gammas(numbers: Numbers) -> Numbers:
    best = build.best_point(numbers, "PGD-20", "best gamma")
    return best | build.best_point(numbers, _RISE, "flattest gamma", -1)
