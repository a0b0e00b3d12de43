"""Experiments by name: the papers' and the comparison of this project's own."""

import difflib
import importlib
import inspect
from collections.abc import Sequence

from experiments._build import imported_cells
from experiments._cells import Experiment
from experiments._scales import Scale

PAPERS = ("arxiv_v1", "neurips2020", "ijcai2022", "iccv2021", "comparison")


def names() -> tuple[str, ...]:
    """All experiments, ``"PAPER.TABLE"``, in the order of the papers."""
    return tuple(f"{paper}.{name}" for paper in PAPERS for name in _module(paper).EXPERIMENTS)


def _module(paper: str):
    return importlib.import_module(f"experiments.{paper}")


def experiment(name: str, scale: Scale, imported: Sequence[str] = ()) -> Experiment:
    """An experiment at a scale.

    Args:
        name: ``"neurips2020.table1"``, ...
        scale: From ``SCALES``.
        imported: Run directories of published models for the figures that have some, see
            ``takes_imported``; the others have none of them.

    Raises:
        ValueError: For another name, with those there are.
    """
    if name not in names():
        lines = [f"  {paper}: {', '.join(_module(paper).EXPERIMENTS)}" for paper in PAPERS]
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown experiment {name!r}.{hint} There are:\n" + "\n".join(lines))
    paper, _, what = name.partition(".")
    make = _module(paper).EXPERIMENTS[what]
    if imported and takes_imported(name):
        return make(scale, imported=imported_cells(imported))
    return make(scale)


def takes_imported(name: str) -> bool:
    """Whether an experiment shows published models beside its own."""
    paper, _, what = name.partition(".")
    return "imported" in inspect.signature(_module(paper).EXPERIMENTS[what]).parameters
