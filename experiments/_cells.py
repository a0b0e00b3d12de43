"""What an experiment consists of: cells, the entries of its table, the panels of its figure."""

import dataclasses
import hashlib
import importlib
import json
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from awp_jax import config as schema
from awp_jax import files
from awp_jax.training import plain, read_config
from experiments._measures import Measure
from experiments._scales import SCALES, Scale

# (row, column): number
Numbers = dict[tuple[str, str], float]
# In the note of a number whose hyper-parameters are not the paper's.
SUBSTITUTE = "in place of the paper's supplement"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to train a model, for any number of seeds.

    Attributes:
        name: Unique in its experiment; what ``--only`` matches, part by part.
        config: ``"FILE:ARGUMENT"`` of ``configs/``, such as ``"neurips2020:cifar10,linf,at"``.
        changes: Config keys and values laid over it, as ``--config.KEY=VALUE`` does.
        seeds: Runs of the paper.
        first_seed: Of them; another one for an independent copy of another cell's model.
        imported: A run directory that is there already, of a published model (``awp-jax import``);
            it is measured, not trained, and ``config`` and ``changes`` do not count.
    """

    name: str
    config: str
    changes: tuple[tuple[str, Any], ...] = ()
    seeds: int = 1
    first_seed: int = 0
    imported: str = ""

    @property
    def last_part(self) -> str:
        """Of the name: what tells the cell from those beside it."""
        return self.name.rpartition(",")[2]

    def changed(self, label: str, **changes: Any) -> "Cell":
        """With other values; ``__`` in a keyword is the dot of the config key."""
        pairs = tuple((key.replace("__", "."), value) for key, value in changes.items())
        return Cell(f"{self.name},{label}", self.config, (*self.changes, *pairs), self.seeds)

    def paper_config(self, seed: int = 0) -> ConfigDict:
        """The config at the paper's settings."""
        if self.imported:
            return schema.from_dict(read_config(pathlib.Path(self.imported)))
        file, _, argument = self.config.partition(":")
        config = importlib.import_module(f"configs.{file}").get_config(argument)
        config.update_from_flattened_dict({**dict(self.changes), "seed": seed})
        return _validated(config)

    def at(self, scale: Scale, seed: int) -> ConfigDict:
        """The config at a scale, validated."""
        config = self.paper_config(seed)
        return config if self.imported else _validated(scale.apply(config))

    def command(self, seed: int) -> str:
        """The ``awp-jax train`` arguments that it stands for at the paper's settings."""
        file, _, argument = self.config.partition(":")
        words = [f"--config=configs/{file}.py:{argument}"]
        for key, value in (*self.changes, ("seed", seed)):
            shown = value if isinstance(value, str) else json.dumps(value)
            words.append(f"--config.{key}={shown}")
        return " ".join(words)


class Entry(NamedTuple):
    """One number of a table: what is measured on a cell, and what a reader must know of it.

    Row and column are as in ``values/``, or new names for what the paper does not report.
    """

    row: str
    column: str
    cell: Cell
    measure: Measure
    note: str = ""


class Job(NamedTuple):
    """A cell with a seed."""

    cell: Cell
    seed: int

    @property
    def label(self) -> str:
        """For people: ``"linf,at seed 0"``."""
        return f"{self.cell.name} seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One table or figure of one paper, at one scale.

    Attributes:
        entries: Numbers of its table.
        panels: Of its figure.
        notes: What a reader of the results must know.
        also: Cells on which nothing is measured: surrogates.
        caution: One sentence when even the paper's scale differs from the paper.
        summary: From the table's numbers to those of further rows (groups of methods, say).
        summary_note: What these are.
        paper: Name of the paper's module and values.
        name: ``"table1"``, ``"figure2"``, ...
        title: What it shows.
        scale: At which it is.
    """

    entries: Sequence[Entry] = ()
    panels: Sequence[Any] = ()
    notes: Sequence[str] = ()
    also: Sequence[Cell] = ()
    caution: str = ""
    summary: Callable[[Numbers], Numbers] | None = None
    summary_note: str = "mean over rows"
    paper: str = ""
    name: str = ""
    title: str = ""
    scale: Scale = SCALES["paper"]

    @property
    def full_name(self) -> str:
        """``"neurips2020.table1"``."""
        return f"{self.paper}.{self.name}"

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, each once, in the order in which they should run."""
        every = (*self.also, *(cell for cell, _ in self._needs()))
        return tuple({cell.name: cell for cell in every}.values())

    def _needs(self) -> Iterator[tuple[Cell, Measure]]:
        yield from ((entry.cell, entry.measure) for entry in self.entries)
        yield from (need for panel in self.panels for need in panel.needs)

    def cell(self, name: str) -> Cell:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)

    def measures(self, cell: Cell) -> tuple[Measure, ...]:
        """All that is measured on a cell, each once."""
        wanted = [whole for owner, whole in self._needs() if owner.name == cell.name]
        return tuple(dict.fromkeys(measure for whole in wanted for measure in whole.parts()))

    def jobs(self, cell: Cell | None = None) -> tuple[Job, ...]:
        """Every cell, or one, with every seed: what is spread over machines."""
        return tuple(
            Job(one, one.first_seed + index)
            for one in self.cells
            if cell is None or one.name == cell.name
            for index in range(self.scale.seeds(one.seeds))
        )


def _validated(config: ConfigDict) -> ConfigDict:
    with warnings.catch_warnings():
        # Figure 3 of AWP has random perturbations of twice the weights' size.
        warnings.filterwarnings("ignore", "weights.gamma is")
        return schema.validate(config)


def missing_file(config: ConfigDict) -> str:
    """What a run needs that only its user can bring, and how; empty when it is there."""
    images, start = config.data.extra, config.init_from
    if not all(pathlib.Path(path).exists() for path in files.several(images)):
        return (
            f"needs unlabelled images with labels in {images}, which is not there: images of your "
            "own and what 'awp-jax pseudo-label' writes for them in one .npz of images and labels, "
            "or those of https://github.com/yaircarmon/semisup-adv."
        )
    if start and not pathlib.Path(start).is_dir():
        return (
            f"starts at the run {start}, which is not there: make it by 'awp-jax train "
            "--config=configs/neurips2020.py:table2,pre-trained --config.data.path=FILE.npz "
            f"--workdir={start}', or bring another one by 'awp-jax import'."
        )
    return ""


def digest(config: ConfigDict) -> str:
    """Eight characters that tell configs apart.

    Of the values that are not the schema's defaults, so that a version with more config keys finds
    the runs of this one.
    """
    changed = flat(plain(config)).items() - flat(plain(schema.default())).items()
    return hashlib.sha256(json.dumps(sorted(changed)).encode()).hexdigest()[:8]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of a nested dict as JSON, by their dotted keys."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value)
    return found
