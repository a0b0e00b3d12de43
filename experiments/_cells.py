"""What an experiment consists of: cells, the entries of its table, the panels of its figure."""

import dataclasses
import hashlib
import importlib
import json
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from awp_jax import config as schema
from awp_jax.training import plain, read_config
from experiments._measures import Measure
from experiments._scales import Scale

# (row, column): number
Numbers = dict[tuple[str, str], float]
# In the note of a number whose hyper-parameters are not the paper's.
SUBSTITUTE = "in place of the paper's supplement"


class NotAvailable(ValueError):
    """This version of awp_jax lacks what a cell needs; the message is one sentence."""


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

    def paper_config(self, seed: int = 0) -> ConfigDict:
        """The config at the paper's settings.

        Raises:
            NotAvailable: When the schema of this version lacks a key or a choice.
        """
        if self.imported:
            return schema.from_dict(read_config(pathlib.Path(self.imported)))
        file, _, argument = self.config.partition(":")
        try:
            config = importlib.import_module(f"configs.{file}").get_config(argument)
            for key, value in self.changes:
                group, _, leaf = key.rpartition(".")
                (config[group] if group else config)[leaf] = value
            config.seed = seed
            return _validated(config)
        except (AttributeError, KeyError, ValueError) as error:
            text = str(error.args[0] if error.args else error).strip().splitlines()[0]
            missing = re.match(r"""["']*(?:Key )?["']?(\w+)["']?( does not exist|["']*$)""", text)
            what = f"has no config key {missing[1]!r}" if missing else f"says: {text}"
            raise NotAvailable(
                f"Cell {self.name!r} is not available in this version: its schema {what}"
                f"{'' if what.endswith('.') else '.'}"
            ) from None

    def at(self, scale: Scale, seed: int) -> ConfigDict:
        """The config at a scale, validated.

        Raises:
            NotAvailable: As ``paper_config``.
        """
        config = self.paper_config(seed)
        return config if self.imported else _validated(scale.apply(config))


class Entry(NamedTuple):
    """One number of a table.

    Attributes:
        row: As in ``values/``.
        column: As in ``values/``; a name of its own for what the paper does not report.
        cell: Name of the cell it is measured on.
        measure: What is measured.
        note: What a reader must know; empty for nothing.
    """

    row: str
    column: str
    cell: str
    measure: Measure
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One table or figure of one paper, at one scale.

    Attributes:
        paper: Name of the paper's module and values.
        name: ``"table1"``, ``"figure2"``, ...
        title: What it shows.
        scale: At which it is.
        cells: All cells, each once, in the order in which they should run.
        entries: Numbers of its table.
        panels: Of its figure.
        notes: What a reader of the results must know.
        caution: One sentence when even the paper's scale differs from the paper.
        summary: From the table's numbers to those of further rows (groups of methods, say).
        summary_note: What these are.
    """

    paper: str
    name: str
    title: str
    scale: Scale
    cells: tuple[Cell, ...]
    entries: tuple[Entry, ...] = ()
    panels: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    caution: str = ""
    summary: Callable[[Numbers], Numbers] | None = None
    summary_note: str = "mean over rows"

    @property
    def full_name(self) -> str:
        """``"neurips2020.table1"``."""
        return f"{self.paper}.{self.name}"

    def cell(self, name: str) -> Cell:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)

    def measures(self, cell: str) -> tuple[Measure, ...]:
        """All that is measured on a cell, each once."""
        wanted = [(e.cell, e.measure) for e in self.entries]
        wanted += [need for panel in self.panels for need in panel.needs()]
        return tuple(dict.fromkeys(m for c, whole in wanted if c == cell for m in whole.parts()))

    def jobs(self) -> tuple["Job", ...]:
        """Every cell with every seed: what is spread over machines."""
        return tuple(
            Job(cell, cell.first_seed + index)
            for cell in self.cells
            for index in range(self.scale.seeds(cell.seeds))
        )


class Job(NamedTuple):
    """A cell with a seed.

    Attributes:
        cell: The cell.
        seed: Of the config.
    """

    cell: Cell
    seed: int

    @property
    def label(self) -> str:
        """For people: ``"linf,at seed 0"``."""
        return f"{self.cell.name} seed {self.seed}"


def _validated(config: ConfigDict) -> ConfigDict:
    with warnings.catch_warnings():
        # Figure 3 of AWP has random perturbations of twice the weights' size.
        warnings.filterwarnings("ignore", "weights.gamma is")
        return schema.validate(config)


def missing_file(config: ConfigDict) -> str:
    """What a run needs that only its user can bring, and how; empty when it is there."""
    images, start = config.data.unlabelled, config.init_from
    if images and not pathlib.Path(images).is_file():
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
