"""The published numbers, from ``values/PAPER.json``."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

_FOLDER = pathlib.Path(__file__).parent / "values"


class Value(NamedTuple):
    """One published number, and its standard deviation; ``None`` where the text gives none."""

    mean: float | None
    deviation: float | None = None


@functools.cache
def paper_values(paper: str) -> dict[str, Any]:
    """All that is known of a paper's numbers, by the name of its module.

    Returns:
        ``tables``: by name title, note, columns and rows; a cell is ``null`` (not in the text), a
        mean, or ``[mean, standard deviation]``. ``figures``: by name a note and what the running
        text says of it. In both ``our_notes`` say what is otherwise here.
    """
    return json.loads((_FOLDER / f"{paper}.json").read_text())


def paper_table(paper: str, table: str) -> dict[tuple[str, str], Value]:
    """The numbers of one published table, by (row, column)."""
    found = paper_values(paper)["tables"][table]
    cells = {}
    for row, numbers in found["rows"].items():
        for column, number in zip(found["columns"], numbers, strict=True):
            cells[row, column] = Value(*number) if isinstance(number, list) else Value(number)
    return cells


def paper_numbers(paper: str, name: str) -> dict[tuple[str, str], Value]:
    """What the paper reports in a table, or says of a figure (in a column ``"text"``)."""
    if name in paper_values(paper)["tables"]:
        return {k: v for k, v in paper_table(paper, name).items() if v.mean is not None}
    texts = paper_values(paper)["figures"][name]["values"]
    return {(row, "text"): Value(number) for row, number in texts.items()}
