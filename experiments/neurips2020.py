"""Adversarial Weight Perturbation Helps Robust Generalization (NeurIPS 2020).

Tables 1 to 5, Figures 1 to 11.
"""

from collections.abc import Callable
from typing import Any

from experiments import _build as build
from experiments import _panels as panels
from experiments._cells import Cell, Entry, Experiment
from experiments._measures import BEST_EPOCH, Attacked, Landscape, Measure, gap, highest
from experiments._scales import Scale
from experiments._values import paper_values

_NORMS = {"Linf": "linf", "L2": "l2"}
_BEST = Attacked(build.PGD)
# The figures' axes span these; the points in between are not printed.
_GAMMAS = ("0.001", "0.002", "0.005", "0.01", "0.02")
_WIDE_GAMMAS = ("0.0001", *_GAMMAS)
_RANDOM_GAMMAS = ("0.0001", "0.001", "0.01", "0.1", "0.3", "0.6", "1", "2")
_REGULARISED = {
    "AT": "at",
    "+L1 regularization": "at-l1",
    "+L2 regularization": "at-l2",
    "+Cutout": "at-cutout",
    "+Mixup": "at-mixup",
    "AT-AWP": "at-awp",
}
_HIGHEST = (
    "the highest over the checkpoints that stay in the second half of training, attack by attack, "
    "on the test set, as the paper has it"
)


def _cell(name: str, seeds: int = 1) -> Cell:
    return Cell(name, f"neurips2020:{name}", (), seeds)


_AT, _AWP, _TRADES = (_cell(f"cifar10,linf,{method}") for method in ("at", "at-awp", "trades-awp"))


def _table(name: str, cell: Callable[[str, str], str]) -> Callable[..., Experiment]:
    def five_runs(row: str, column: str) -> Cell:
        return _cell(cell(row, column), seeds=5)

    entries = build.table("neurips2020", name, five_runs, build.best_or_last)
    return lambda scale: Experiment(entries)


_table1 = _table("table1", lambda row, column: build.cell_name(column.split()[0], *row.split()))


def _table2(scale: Scale) -> Experiment:
    compared = ("best", *(f"{percent}%" for percent in scale.compared), "last")
    entries = []
    for row in paper_values("neurips2020")["tables"]["table2"]["rows"]:
        cell = _cell(f"table2,{row.lower()}", seeds=5)
        for column, attack in build.ATTACKS.items():
            if column != "FA":
                measure = Attacked(attack)
                entries.append(Entry(row, column, cell, highest(measure, compared), _HIGHEST))
                entries.append(Entry(row, f"{column}, validation", cell, measure, build.SELECTION))
    return Experiment(entries)


_table3 = _table("table3", lambda row, _: build.cell_name(*row.split()))
_table4 = _table("table4", lambda row, _: f"cifar10,linf,{_REGULARISED[row]}")
_table5 = _table("table5", lambda row, _: f"cifar10,l2,{_REGULARISED[row]}")


def _figure1(scale: Scale) -> Experiment:
    """Weight loss landscape and robust generalisation gap of AT and its variants."""
    others = {name: _cell(f"cifar10,linf,{name.lower()}") for name in ("TRADES", "MART", "RST")}
    models = [("AT", _AT, "last"), ("AT-ES", _AT, "best")]
    models += [(name, cell, "last") for name, cell in others.items()]
    said: dict[str, Measure] = {
        "AT robust train last": Attacked(build.PGD, "last", "train"),
        "AT robust test last": Attacked(build.PGD, "last", "test"),
        "AT robust gap last": gap(build.PGD),
        "AT best epoch": BEST_EPOCH,
    }
    return Experiment(
        [Entry(row, "text", _AT, measure) for row, measure in said.items()],
        [*build.connection(_AT, "AT", scale), *build.methods_panels(models)],
    )


def _figure2(scale: Scale) -> Experiment:
    """Ablation of AWP on CIFAR-10."""
    steps = build.sweep(scale, _AWP, "weights__steps", (1, 5, 10))
    alternations = build.sweep(scale, _AWP, "weights__alternations", (1, 2, 3))
    at, trades = (build.sweep(scale, cell, "weights__gamma", _GAMMAS) for cell in (_AWP, _TRADES))
    l1 = build.sweep(scale, _AWP, "weights__gamma", _GAMMAS, weights__size="l1")

    def bars(title: str, cells: dict[Any, Cell], what: str) -> panels.Panel:
        known = [(str(value), cell, _BEST) for value, cell in cells.items()]
        return panels.bars(title, known, what, published=55.39)

    labelled = {"AT-AWP": at, "TRADES-AWP": trades, "AT-AWP, L1 size": l1}
    series = [build.points(label, cells, _BEST) for label, cells in labelled.items()]
    models = [(f"gamma = {gamma}", cell, "last") for gamma, cell in at.items()]
    return Experiment(
        [Entry("A = 1, K2 = 1", "text", steps[1], _BEST, build.SELECTION)],
        [
            bars("Weight steps (A = 1)", steps, "K2"),
            bars("Alternations (K2 = 1)", alternations, "A"),
            panels.lines("Size of the perturbation", series, "gamma", log=True),
            *build.methods_panels([("gamma = 0", _AT, "last"), *models]),
        ],
    )


def _figure3(scale: Scale) -> Experiment:
    """AWP against random weight perturbation and other regularisation."""
    awp = build.sweep(scale, _AWP, "weights__gamma", _WIDE_GAMMAS)
    random = build.sweep(scale, _AT, "weights__gamma", _RANDOM_GAMMAS, weights__method="random")
    regularised = [(label, _cell(f"cifar10,linf,{m}")) for label, m in _REGULARISED.items()]
    series = [
        build.points(f"{label}, {part}", cells, Attacked(build.PGD, "best", part))
        for label, cells in (("AWP", awp), ("random", random))
        for part in ("test", "train")
    ]
    # Panel b compares AWP of 0.005 (what comes nearest, in a thinned sweep).
    one = "0.005" if "0.005" in awp else list(awp)[-1]
    curves = [("AT", _AT, Landscape()), (f"AWP, gamma = {one}", awp[one], Landscape())]
    curves += [(f"random, gamma = {gamma}", c, Landscape()) for gamma, c in random.items()]
    said = {"AT": _AT, "AT-AWP": _AWP}
    return Experiment(
        [Entry(row, "text", cell, _BEST, build.SELECTION) for row, cell in said.items()],
        [
            build.perturbed("AT, weights perturbed", _AT, scale, random=(0.3, 0.6, 1.0), awp=0.005),
            panels.landscapes("Landscape by method", curves),
            panels.lines("Robustness against gamma", series, "gamma", log=True),
            panels.curves("Regularisation", regularised),
        ],
    )


def _figure4(scale: Scale) -> Experiment:
    """Distribution of weights of AT and AT-AWP."""
    cells = [("AT", _AT), ("AT-AWP", _AWP)]
    return Experiment(panels=[panels.histograms("Weights of one layer", cells)])


def _points(scale: Scale) -> list[tuple[str, str]]:
    """The epochs 100, 140 and 200 of 200 (the nearest that stay), with titles."""
    stay = [p for p in ("50%", "70%", "100%") if p in scale.percents_in()]
    return [(p, f"AT, {p} of the epochs") for p in stay]


def _figure5(scale: Scale) -> Experiment:
    """1-D landscapes along ten random directions."""
    curves = {title: [(p, _AT, Landscape(p, 10))] for p, title in _points(scale)}
    return Experiment(panels=[panels.landscapes(*each, each=True) for each in curves.items()])


def _figure6(scale: Scale) -> Experiment:
    """2-D landscapes |g(a, b) - g(0, 0)|."""
    shown = [panels.contour(title, _AT, Landscape(p, dims=2)) for p, title in _points(scale)]
    return Experiment(panels=shown)


def _connections(title: str, cells: dict[str, Cell]) -> Callable[..., Experiment]:
    def make(scale: Scale) -> Experiment:
        shown = [build.connection(cell, what, scale) for what, cell in cells.items()]
        return Experiment(panels=sum(shown, []), title=title)

    return make


_CYCLIC = {"schedule__name": "cyclic", "optimizer__learning_rate": 0.2, "schedule__peak": 0.4}
_figure7 = _connections(
    "Learning rate schedules",
    {
        "cosine": _AT.changed("cosine", schedule__name="cosine"),
        "cyclic": _AT.changed("cyclic", **_CYCLIC),
    },
)
_figure8 = _connections(
    "Architectures",
    {
        "VGG-19": _AT.changed("vgg-19", model__name="vgg-19"),
        "WideResNet-34-10": _AT.changed("wrn-34-10", model__name="wrn-34-10"),
    },
)
_figure9 = _connections(
    "Data sets", {"CIFAR-100": _cell("cifar100,linf,at"), "SVHN": _cell("svhn,linf,at")}
)
_figure10 = _connections("The L2 ball", {"L2": _cell("cifar10,l2,at")})


def _figure11(scale: Scale) -> Experiment:
    """Learning curves of AT, AT-AWP and other regularisation."""
    shown = []
    for what, norm in _NORMS.items():
        series = [(label, _cell(f"cifar10,{norm},{m}")) for label, m in _REGULARISED.items()]
        shown += [
            panels.curves(f"{what}: robust", series),
            panels.curves(f"{what}: natural", series, "clean_accuracy"),
        ]
    return Experiment(panels=shown)
