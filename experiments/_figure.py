"""The figure of an experiment: its panels side by side."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

from experiments._cells import NotAvailable
from experiments._measures import Measure
from experiments._runs import Place
from experiments._tables import Missing, reader, warning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
_LEGEND_ROW = 0.14  # inches


def figure(place: Place) -> "Figure | None":
    """Draws what has been measured, from files alone.

    Args:
        place: Where the experiment lies.

    Returns:
        A matplotlib figure; ``None`` when there are no panels, or nothing to draw yet. Numbers of
        several seeds are averaged; curves are those of the first seed.
    """
    from matplotlib.figure import Figure  # slow to import: only where something is drawn

    panels = place.experiment.panels
    if not panels:
        return None
    columns = 2 if len(panels) == 4 else min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    drawing = Figure(figsize=(4.3 * columns, 4.1 * rows + 0.4), layout="constrained")
    get = _Values(place)
    drawn, deepest = False, 0
    for index, panel in enumerate(panels):
        axes = drawing.add_subplot(rows, columns, index + 1)
        axes.set_title(panel.title, fontsize=9)
        anything = panel.draw(axes, get)
        drawn = drawn or anything
        deepest = max(deepest, _finish(axes, anything))
    # Legends lie below the panels: long ones must not squeeze these.
    height = 4.1 + _LEGEND_ROW * max(deepest - 3, 0)
    drawing.set_size_inches(4.3 * columns, height * rows + 0.4)
    texts = [f"{place.experiment.full_name}: {place.experiment.title}", warning(place)]
    wrapped = [part for text in texts for part in textwrap.wrap(text, 58 * columns)]
    drawing.suptitle("\n".join(wrapped), fontsize=9)
    return drawing if drawn else None


class _Values:
    """The value of a measure on a cell, or ``None``."""

    def __init__(self, place: Place):
        self._place = place

    def __call__(self, cell: str, measure: Measure) -> Any:
        found = []
        for job in self._place.experiment.jobs():
            if job.cell.name != cell:
                continue
            try:
                found.append(measure.read(reader(self._place, job)))
            except (Missing, NotAvailable):
                continue
        if not found or not isinstance(found[0], int | float):
            return found[0] if found else None
        return sum(found) / len(found)


def _finish(axes: Any, anything: bool) -> int:
    """The same look for all panels; returns how many rows the legend has."""
    from matplotlib.ticker import AutoLocator, MaxNLocator
    from matplotlib.transforms import ScaledTranslation

    if isinstance(axes.xaxis.get_major_locator(), AutoLocator):  # neither fixed nor logarithmic
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=axes.get_xlabel() == "epoch"))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.label.set_size(8)
    axes.yaxis.label.set_size(8)
    axes.tick_params(which="both", labelsize=7)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each name once
    handles, labels = list(named.values()), list(named)
    columns = 1
    if handles:  # below, where no data is
        turned = any(label.get_rotation() for label in axes.get_xticklabels())
        columns = 2 if max(map(len, labels)) < 36 else 1
        down = ScaledTranslation(0, -0.8 if turned else -0.45, axes.figure.dpi_scale_trans)
        axes.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            bbox_transform=axes.transAxes + down,
            ncols=columns,
            fontsize=6.5,
            frameon=False,
            handlelength=3,
        )
    if not anything:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="0.4")
    return math.ceil(len(handles) / columns)
