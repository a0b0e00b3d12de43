"""Experiments by name: the papers' and the comparison of this project's own."""

import difflib
import importlib

from experiments._cells import Experiment
from experiments._scales import Scale

PAPERS = ("arxiv_v1", "neurips2020", "ijcai2022", "iccv2021", "comparison")


def names() -> tuple[str, ...]:
    """All experiments, ``"PAPER.TABLE"``, in the order of the papers."""
    return tuple(f"{paper}.{name}" for paper in PAPERS for name in _module(paper).EXPERIMENTS)


def _module(paper: str):
    return importlib.import_module(f"experiments.{paper}")


def experiment(name: str, scale: Scale) -> Experiment:
    """An experiment at a scale.

    Args:
        name: ``"neurips2020.table1"``, ...
        scale: From ``SCALES``.

    Raises:
        ValueError: For another name, with those there are.
    """
    if name not in names():
        lines = [f"  {paper}: {', '.join(_module(paper).EXPERIMENTS)}" for paper in PAPERS]
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown experiment {name!r}.{hint} There are:\n" + "\n".join(lines))
    paper, _, what = name.partition(".")
    return _module(paper).EXPERIMENTS[what](scale)
