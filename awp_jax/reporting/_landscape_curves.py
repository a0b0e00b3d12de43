"""One-dimensional landscapes, as panels of figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from awp_jax.panels import curve
from awp_jax.reporting._landscape_data import HOWS
from awp_jax.reporting._style import COLOURS, MARKERS, SETS, STYLES


def change_panel(
    panel: Any, landscapes: Mapping[str, Mapping[str, Any]], order: Sequence[str]
) -> None:
    """Draws the change of the loss from the centre, of the latest checkpoint of each run.

    Args:
        panel: Matplotlib axes.
        landscapes: By name of the run, from ``read_landscape``, in one dimension.
        order: All names of the figure: a run looks the same in every panel.
    """
    settings = next(iter(landscapes.values()))["settings"]
    for name, found in landscapes.items():
        style = SETS.get(found["settings"]["set"], "-.")
        run_curve(panel, found, latest(found), name, order.index(name), change=True, style=style)
    panel.set_title(f"Loss around the weights ({settings['set']})", fontsize=10)
    panel.set_xlabel(xlabel(settings))
    panel.set_ylabel("g(a) - g(0) (nats)")
    finish(panel)


def latest(found: Mapping[str, Any]) -> str:
    """The checkpoint after most steps."""
    return max(found["checkpoints"], key=lambda which: found["checkpoints"][which]["step"])


def first_loss(measured: Mapping[str, Any]) -> np.ndarray:
    """Losses of a checkpoint, those on examples made anew where there are such."""
    return measured[next(how for how in HOWS if how in measured)]["loss"]


def run_curve(
    panel: Any,
    found: Mapping[str, Any],
    which: str,
    label: str,
    place: int,
    *,
    change: bool,
    style: str | None = None,
) -> None:
    """One checkpoint of one run, in the look of its place among all."""
    losses = first_loss(found["checkpoints"][which])
    if change:
        losses = losses - losses[:, losses.shape[1] // 2, None]
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    curve(panel, found["axis"], losses, colour, style or STYLES[place % 4], marker, label)


def xlabel(settings: Mapping[str, Any]) -> str:
    """What a coordinate is."""
    return f"a (in units of each {settings['normalisation']}'s norm)"


def ylabel(settings: Mapping[str, Any]) -> str:
    """What the loss is."""
    return f"{'clean' if settings['adversarial'] == 'none' else 'adversarial'} loss g(a) (nats)"


def label_grid(panels: Any, settings: Mapping[str, Any], count: int) -> None:
    """Labels the outer panels of a grid of which the first ``count`` are in use."""
    for place in range(max(count - panels.shape[1], 0), count):
        panels.flat[place].set_xlabel(xlabel(settings))
    for panel in panels[:, 0]:
        panel.set_ylabel(ylabel(settings))


def finish(panel: Any) -> None:
    """Grid and scale."""
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    losses = np.concatenate([np.asarray(line.get_ydata(), float) for line in panel.get_lines()])
    losses = losses[np.isfinite(losses)]
    # Far away the loss may be thousands of nats: the centre would not be seen.
    if len(losses) and losses.min() > 0 and losses.max() > 200 * losses.min():
        panel.set_yscale("log")
