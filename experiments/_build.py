"""What the papers' modules are made of: how an experiment is named, and parts that several show."""

import dataclasses
import difflib
import functools
import importlib
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from awp_jax.reporting import correlation
from awp_jax.training import read_config
from experiments import _panels as panels
from experiments._cells import Cell, Entry, Experiment, Numbers
from experiments._measures import Attacked, Landscape, Measure, PerturbedLoss
from experiments._scales import Scale
from experiments._values import paper_numbers, paper_values

PAPERS = ("arxiv_v1", "neurips2020", "ijcai2022", "iccv2021", "comparison")
# Columns of the papers' tables, as attacks of awp_jax.
ATTACKS = {
    "natural": "clean",
    "FGSM": "fgsm",
    "PGD-20": "pgd-20",
    "PGD-100": "pgd-100",
    "CW-inf": "cw-100",
    "SPSA": "spsa",
    "AA": "autoattack",
    "FA": "feature-20",
}
PGD = "pgd-20"
SELECTION = (
    "best: the checkpoint picked on held-out training images (PGD-20); the paper picks on the test "
    "set, attack by attack"
)


def _makers(paper: str) -> dict[str, Callable[..., Experiment]]:
    """``_table1(scale)`` of a paper's module makes the experiment ``PAPER.table1``."""
    inside = vars(importlib.import_module(f"experiments.{paper}")).items()
    return {name[1:]: make for name, make in inside if re.fullmatch(r"_[a-z]+[0-9]+", name)}


def names() -> tuple[str, ...]:
    """All experiments, ``"PAPER.TABLE"``, in the order of the papers."""
    return tuple(f"{paper}.{name}" for paper in PAPERS for name in _makers(paper))


def experiment(name: str, scale: Scale, imported: Sequence[str] = ()) -> Experiment:
    """An experiment, ``"neurips2020.table1"``, at a scale.

    Its title and notes come from ``values/``; the title of a figure is the docstring.
    Run directories of published models go to the figures that have some, see ``takes_imported``.

    Raises:
        ValueError: For an unknown name, with those there are.
    """
    if name not in names():
        lines = [f"  {paper}: {', '.join(_makers(paper))}" for paper in PAPERS]
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown experiment {name!r}.{hint} There are:\n" + "\n".join(lines))
    paper, _, what = name.partition(".")
    make, values = _makers(paper)[what], paper_values(paper)
    more = {"imported": _imported_cells(imported)} if imported and takes_imported(name) else {}
    found = make(scale, **more)
    known = values["tables"].get(what) or values["figures"][what]
    notes = [f"Paper: {known['note']}"] if known.get("note") else []
    notes += [*known.get("our_notes", []), *found.notes, *values.get("our_notes", [])]
    if scale.name != "smoke" and any("svhn" in cell.name for cell in found.cells):
        notes += values.get("svhn_notes", [])
    title = known.get("title") or found.title or str(make.__doc__).rstrip(".")
    return dataclasses.replace(found, paper=paper, name=what, title=title, scale=scale, notes=notes)


def takes_imported(name: str) -> bool:
    """Whether an experiment shows published models beside its own."""
    paper, _, what = name.partition(".")
    return "imported" in inspect.signature(_makers(paper)[what]).parameters


def _imported_cells(directories: Sequence[str]) -> tuple[Cell, ...]:
    """Cells of published models, each named as its directory."""
    found: dict[str, Cell] = {}
    for directory in map(pathlib.Path, directories):
        name = directory.resolve().name
        read_config(directory)  # says what is no run directory
        if name in found:
            raise ValueError(f"--imported names two runs {name!r}: rename one of the directories.")
        found[name] = Cell(f"imported,{name}", "", imported=str(directory))
    return tuple(found.values())


def sweep(
    scale: Scale, cell: Cell, key: str, values: Sequence[Any], label: str = "", **more: Any
) -> dict[Any, Cell]:
    """By value of a config key (``__`` for its dot) the cell that has it; thinned at some scales.

    The names of the cells call the key ``label``, or by its last part. Others have one value.
    """
    label = label or key.rpartition("__")[2].rstrip("_")
    tail = "".join(f",{value}" for value in more.values())
    return {
        value: cell.changed(f"{label}={value}{tail}", **{key: value}, **more)
        for value in scale.sweep(values)
    }


def points(label: str, cells: Mapping[Any, Cell], measure: Measure) -> panels.Series:
    """A series of ``panels.lines`` over a sweep."""
    return label, [(float(value), cell, measure) for value, cell in cells.items()]


def table(
    paper: str,
    name: str,
    cell: Callable[[str, str], Cell],
    measure: Callable[[str], tuple[Measure, str]],
) -> list[Entry]:
    """An entry for every number that a paper's table has.

    The cell is made from row and column, measure and note from the column.
    """
    keys = paper_numbers(paper, name)
    return [Entry(row, column, cell(row, column), *measure(column)) for row, column in keys]


def best_or_last(column: str) -> tuple[Measure, str]:
    """Robust accuracy (or natural, in a column ``natural ...``) of the checkpoint it ends with."""
    what, which = column.split()
    note = SELECTION if which == "best" else ""
    return Attacked("clean" if what == "natural" else PGD, which), note


def cell_name(*words: str) -> str:
    """Of configs: ``"cifar10,linf,at-awp"`` for CIFAR-10, Linf and AT-AWP."""
    return ",".join(word.replace("CIFAR-", "cifar") for word in words).lower()


def connection(cell: Cell, what: str, scale: Scale) -> list[panels.Panel]:
    """Learning curve, and landscapes of the first and the second half of training.

    Figures 1a and 7 to 10 of AWP (NeurIPS 2020).
    """
    both = ("train", "test")
    halves = {"first": scale.percents_in(0, 50), "second": scale.percents_in(50, 100)}
    return [
        panels.curves(f"{what}: learning curve", [(what, cell)], parts=both, gap=True),
        *(
            panels.landscapes(
                f"{what}: landscape, {half} half",
                [(p, cell, Landscape(p)) for p in percents],
                sequence=True,
            )
            for half, percents in halves.items()
        ),
    ]


def methods_panels(models: Sequence[panels.Model], attack: str = PGD) -> list[panels.Panel]:
    """Generalisation gap and landscape across methods."""
    kind = "Standard" if attack == "clean" else "Robust"
    curves = [(label, cell, Landscape(checkpoint)) for label, cell, checkpoint in models]
    return [
        panels.gap_bars(f"{kind} generalisation gap", models, attack),
        panels.landscapes("Weight loss landscape", curves),
    ]


def perturbed(
    title: str, cell: Cell, scale: Scale, random: Sequence[float], awp: float
) -> panels.Panel:
    """Adversarial loss of one model through training, its weights perturbed at random or by AWP."""
    gammas = tuple(dict.fromkeys((0.0, awp, *random)))
    curves = [("not perturbed", "random", 0.0)]
    curves += [(f"random, gamma {gamma:g}", "random", gamma) for gamma in random]
    curves += [(f"AWP, gamma {awp:g}", "adversarial", awp)]
    measures: dict[str, Callable[[str], Measure]] = {
        label: functools.partial(PerturbedLoss, gammas, kind=kind, gamma=gamma)
        for label, kind, gamma in curves
    }
    series = through_training(measures, cell, scale)
    return panels.lines(title, series, "epoch (% of training)", "adversarial loss (nats)")


def through_training(
    measures: Mapping[str, Callable[[str], Measure]], cell: Cell, scale: Scale
) -> list[panels.Series]:
    """By label a measure, made for a checkpoint, over those that stay."""
    return [
        (label, [(int(p[:-1]), cell, measure(p)) for p in scale.percents_in()])
        for label, measure in measures.items()
    ]


def correlations(numbers: Numbers, of: str) -> Numbers:
    """Pearson's and Spearman's coefficients of a column with those called ``flatness ...``."""
    found: Numbers = {}
    for case in ("average", "worst"):
        pair = (of, f"flatness {case}")
        rows = [row for row, column in numbers if column == of and (row, pair[1]) in numbers]
        known = correlation(*([numbers[row, column] for row in rows] for column in pair))
        if known is not None:
            found[f"Pearson {case}", "text"] = known.pearson
            found[f"Spearman {case}", "text"] = known.spearman
    return found


def best_point(numbers: Numbers, column: str, name: str, sign: int = 1) -> Numbers:
    """At which value of a sweep (rows ``KEY = VALUE``) a column is highest, or with -1 lowest."""
    found = [(sign * v, row.rpartition("= ")[2]) for (row, c), v in numbers.items() if c == column]
    return {(name, "text"): float(max(found)[1])} if found else {}
