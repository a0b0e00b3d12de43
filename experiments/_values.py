"""The published numbers, from ``values/PAPER.json``."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

_FOLDER = pathlib.Path(__file__).parent / "values"


class Value(NamedTuple):
    """One published number.

    Attributes:
        mean: As printed; ``None`` where the text gives none.
        deviation: The standard deviation; ``None`` where the text gives none.
    """

    mean: float | None
    deviation: float | None = None


@functools.cache
def paper_values(paper: str) -> dict[str, Any]:
    """All that is known of a paper's numbers.

    Args:
        paper: ``"arxiv_v1"``, ``"neurips2020"``, ``"ijcai2022"`` or ``"iccv2021"``.

    Returns:
        ``tables``: by name title, note, columns and rows; a cell is ``null`` (not in the text), a
        mean, or ``[mean, standard deviation]``. ``figures``: by name a note and what the running
        text says of it.
    """
    return json.loads((_FOLDER / f"{paper}.json").read_text())


def paper_table(paper: str, table: str) -> dict[tuple[str, str], Value]:
    """The cells of one published table.

    Args:
        paper: As in ``paper_values``.
        table: ``"table1"``, ``"footnote4"``, ...

    Returns:
        By (row, column) the number.
    """
    found = paper_values(paper)["tables"][table]
    cells = {}
    for row, numbers in found["rows"].items():
        for column, number in zip(found["columns"], numbers, strict=True):
            cells[row, column] = Value(*number) if isinstance(number, list) else Value(number)
    return cells
