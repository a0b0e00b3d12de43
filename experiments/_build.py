"""What the papers' modules are made of: the same tables and panels with other cells."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from awp_jax.reporting import correlation
from awp_jax.training import read_config
from experiments._analyses import Landscape
from experiments._cells import Cell, Entry, Experiment, Numbers
from experiments._measures import Attacked, Difference, Highest, Measure
from experiments._panels import Curves, GapBars, Panel
from experiments._scales import Scale
from experiments._values import paper_values
from experiments._weight_panels import Landscapes

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
SELECTION = (
    "best: the checkpoint picked on held-out training images (PGD-20); the paper picks on the test "
    "set, attack by attack"
)
# Papers whose numbers are of AWP's released code: where it and they, or this project, differ.
_AWP_CODE = ("neurips2020", "ijcai2022")
_STATISTICS = (
    "The attacks of AT use batch statistics and leave the running ones alone; the released code "
    "moves these at every pass, as attack.batch_norm 'released' does."
)
_SVHN = (
    "SVHN: learning rate 0.01, no augmentation, weights perturbed from epoch 5 on, as the released "
    "code has it; the papers' texts say 0.1 and shifts and flips."
)


def make(
    paper: str,
    name: str,
    scale: Scale,
    cells: Iterable[Cell],
    *,
    entries: Iterable[Entry] = (),
    panels: Sequence[Panel] = (),
    notes: Sequence[str] = (),
    caution: str = "",
    title: str = "",
    summary: Callable[[Numbers], Numbers] | None = None,
    summary_note: str = "mean over rows",
) -> Experiment:
    """An experiment; its title and the paper's note come from ``values/``.

    Args:
        paper: Of its values.
        name: ``"table1"``, ...
        scale: Of the experiment.
        cells: Those that the same name stands for twice are taken once.
        entries: Of the table.
        panels: Of the figure.
        notes: Beside the paper's own.
        caution: See ``Experiment``.
        title: For a figure.
        summary: See ``Experiment``.
        summary_note: See ``Experiment``.
    """
    values = paper_values(paper)
    known = values["tables"].get(name) or values["figures"][name]
    unique = {cell.name: cell for cell in cells}
    note = known.get("note")
    if paper in _AWP_CODE:
        svhn = scale.name != "smoke" and any("svhn" in name for name in unique)
        notes = (*notes, _STATISTICS, *([_SVHN] if svhn else []))
    return Experiment(
        paper,
        name,
        title or known["title"],
        scale,
        tuple(unique.values()),
        tuple(entries),
        tuple(panels),
        (*([f"Paper: {note}"] if note else []), *notes),
        caution,
        summary,
        summary_note,
    )


def text_entries(
    paper: str, figure: str, cells: Mapping[str, tuple[str, Measure]]
) -> tuple[Entry, ...]:
    """Entries for numbers that the running text gives beside a figure."""
    known = paper_values(paper)["figures"][figure]["values"]
    return tuple(Entry(key, "text", *cells[key]) for key in known if key in cells)


def white_box(columns: Iterable[str], row: str, cell: str, **options: Any) -> list[Entry]:
    """A row of a white-box table: one attack per column, on the best checkpoint."""
    return [Entry(row, c, cell, Attacked(ATTACKS[c.split()[-1]], **options)) for c in columns]


def percents(scale: Scale, low: int = 0, high: int = 100) -> list[str]:
    """Checkpoints that stay, from above ``low`` to ``high`` percent of the epochs."""
    return [f"{p}%" for p in scale.percents if low < p <= high]


def highest(measure: Attacked, scale: Scale) -> Highest:
    """Over the best, the last, and checkpoints of the second half of training."""
    return Highest(measure, ("best", *(f"{p}%" for p in scale.compared), "last"))


def gap(attack: str, checkpoint: str = "last") -> Difference:
    """The robust generalisation gap: train minus test, in points."""
    train = Attacked(attack, checkpoint, "train")
    return Difference(train, Attacked(attack, checkpoint, "test"))


def connection(cell: str, what: str, scale: Scale) -> list[Panel]:
    """Learning curve, and landscapes of the first and the second half of training.

    Figures 1a and 7 to 10 of AWP (NeurIPS 2020).
    """
    early, late = percents(scale, 0, 50), percents(scale, 50, 100)
    return [
        Curves(f"{what}: learning curve", ((what, cell),), parts=("train", "test"), gap=True),
        Landscapes(
            f"{what}: landscape, first half",
            tuple((p, cell, Landscape(p)) for p in early),
            sequence=True,
        ),
        Landscapes(
            f"{what}: landscape, second half",
            tuple((p, cell, Landscape(p)) for p in late),
            sequence=True,
        ),
    ]


def methods_panels(
    cells: Sequence[tuple[str, str, str]], attack: str, part: str = "train"
) -> list[Panel]:
    """Generalisation gap and landscape across methods.

    Args:
        cells: (label, cell, checkpoint).
        attack: By which robustness is measured.
        part: Images of the landscape.
    """
    return [
        GapBars(_gap_title(attack), tuple(cells), attack),
        Landscapes(
            "Weight loss landscape",
            tuple((label, cell, Landscape(c, part=part)) for label, cell, c in cells),
        ),
    ]


def _gap_title(attack: str) -> str:
    return f"{'Standard' if attack == 'clean' else 'Robust'} generalisation gap"


def with_changes(cell: Cell, label: str, **changes: Any) -> Cell:
    """A cell with other values; ``__`` in a keyword is the dot of the config key."""
    pairs = tuple((key.replace("__", "."), value) for key, value in changes.items())
    return Cell(f"{cell.name},{label}", cell.config, (*cell.changes, *pairs), cell.seeds)


def correlations(numbers: Numbers, of: str) -> Numbers:
    """Pearson's and Spearman's coefficients of a column with those called ``flatness ...``."""
    columns: dict[str, dict[str, float]] = {}
    for (row, column), number in numbers.items():
        columns.setdefault(column, {})[row] = number
    found: Numbers = {}
    for name, values in columns.items():
        rows = [row for row in columns.get(of, {}) if row in values]
        both = [[columns[of][row] for row in rows], [values[row] for row in rows]]
        if not name.startswith("flatness ") or (known := correlation(*both)) is None:
            continue
        case = name.removeprefix("flatness ")
        found[f"Pearson {case}", "text"] = known.pearson
        found[f"Spearman {case}", "text"] = known.spearman
    return found


def best_point(numbers: Numbers, column: str, name: str, sign: int = 1) -> Numbers:
    """At which value of a sweep (rows ``KEY = VALUE``) a column is highest, or lowest.

    Args:
        numbers: Of the table.
        column: That is compared.
        name: Of the row to make.
        sign: 1 for the highest, -1 for the lowest.
    """
    points = [(sign * v, row.rpartition("= ")[2]) for (row, c), v in numbers.items() if c == column]
    return {(name, "text"): float(max(points)[1])} if points else {}


def imported_cells(directories: Sequence[str]) -> tuple[Cell, ...]:
    """Cells of published models, each named as its directory.

    Args:
        directories: Run directories that ``awp-jax import`` has made.

    Raises:
        ValueError: When one is no run directory, or two have the same name.
    """
    names = [pathlib.Path(directory).resolve().name for directory in directories]
    for directory, name in zip(directories, names, strict=True):
        read_config(pathlib.Path(directory))
        if names.count(name) > 1:
            raise ValueError(f"--imported names two runs {name!r}: rename one of the directories.")
    return tuple(
        Cell(f"imported,{name}", "", imported=directory)
        for directory, name in zip(directories, names, strict=True)
    )


def command(cell: Cell, seed: int) -> str:
    """The ``awp-jax train`` arguments that a cell at the paper's settings stands for."""
    file, _, argument = cell.config.partition(":")
    words = [f"--config=configs/{file}.py:{argument}"]
    for key, value in (*cell.changes, ("seed", seed)):
        shown = value if isinstance(value, str) else json.dumps(value)
        words.append(f"--config.{key}={shown}")
    return " ".join(words)
