"""The panels of figures: what is measured for one, and how it is drawn.

A value that has not been measured is ``None``, and is left out.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from awp_jax.reporting import COLOURS, MARKERS, correlation
from awp_jax.results import new_figure
from experiments._cells import Cell
from experiments._measures import Attacked, Landscape, Learning, Measure, Weights, pair
from experiments._runs import Place
from experiments._tables import warning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Five beside six colours and markers: no two of thirty series look the same.
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_COLUMNS = 3
_LEGEND_ROW = 0.14  # inches
# value = get(cell, measure)
Get = Callable[[Cell, Measure], Any]
Labelled = tuple[str, Cell]
# (label, cell, checkpoint)
Model = tuple[str, Cell, str]
Value = tuple[str, Cell, Measure]
# By label (x, cell, measure).
Series = tuple[str, Sequence[tuple[float, Cell, Measure]]]


class Panel(NamedTuple):
    """One coordinate system: what it needs, and what draws that and says whether it was there."""

    title: str
    needs: tuple[tuple[Cell, Measure], ...]
    draw: Callable[["Axes", Get], bool]


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}


def _marker(index: int) -> str:
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]  # another one per colour


def _panel(
    title: str,
    values: Sequence[Value],
    paint: Callable[["Axes", int, str, Any], None],
    *,
    categories: int | None = None,
    **names: Any,
) -> Panel:
    """Paints one value after the other: ``paint(axes, index, label, value)``.

    With ``categories`` each value has a place along x, and more than so many labels are turned.
    """

    def draw(axes: "Axes", get: Get) -> bool:
        found = [get(cell, measure) for _, cell, measure in values]
        for index, value in enumerate(found):
            if value is not None:
                paint(axes, index, values[index][0], value)
            elif categories:
                axes.text(index, 0, "not run", ha="center", va="bottom", fontsize=7, rotation=90)
        if categories:
            axes.set_xticks(range(len(values)), [label for label, *_ in values])
            turn = 30 if len(values) > categories else 0
            axes.tick_params(axis="x", labelsize=7, labelrotation=turn)
        axes.set(**names)
        return any(value is not None for value in found)

    return Panel(title, tuple((cell, measure) for _, cell, measure in values), draw)


_QUANTITIES: dict[str, tuple[str, Callable[[Any], float]]] = {
    "robust_accuracy": ("robust accuracy (%)", lambda r: 100 * r["robust_accuracy"]),
    "clean_accuracy": ("natural accuracy (%)", lambda r: 100 * r["clean_accuracy"]),
    "robust_error": ("robust error (%)", lambda r: 100 - 100 * r["robust_accuracy"]),
    "robust_loss": ("robust loss (nats)", lambda r: r["robust_loss"]),
}


def curves(
    title: str,
    cells: Sequence[Labelled],
    quantity: str = "robust_accuracy",
    parts: tuple[str, ...] = ("test",),
    gap: bool = False,
) -> Panel:
    """A quantity over epochs, from the evaluations during training (test solid, train dotted).

    With ``gap`` train minus test is drawn, too.
    """
    label_y, pick = _QUANTITIES[quantity]

    def paint(axes: "Axes", index: int, label: str, records: Any) -> None:
        look = {"color": _style(index)["color"], "marker": _marker(index), "markersize": 3.5}
        look["markevery"] = max(len(records) // 10, 1)
        epochs = [r["epoch"] for r in records]
        for part in parts:
            # Alone, the test curves of the series differ in line style, too.
            line = ":" if part == "train" else _style(index)["linestyle"]
            name = f"{label}, {part}" if len(parts) > 1 else label
            axes.plot(epochs, [pick(r[part]) for r in records], ls=line, label=name, **look)
        if gap:
            values = [pick(r["train"]) - pick(r["test"]) for r in records]
            axes.plot(epochs, values, color="0.35", linestyle="--", label="train minus test")

    values = [(label, cell, Learning()) for label, cell in cells]
    return _panel(title, values, paint, xlabel="epoch", ylabel=label_y)


def gap_bars(title: str, models: Sequence[Model], attack: str) -> Panel:
    """Test accuracy, and on top of it the gap to training accuracy."""

    def paint(axes: "Axes", place: int, label: str, both: Any) -> None:
        (test, train), (lower, upper) = both, sorted(both)
        look: Any = {"color": "white", "hatch": "///", "label": "gap to train"}
        if train < test:  # after few epochs
            look = {"color": "0.75", "hatch": "...", "label": "test above train"}
        axes.bar(place, lower, color=COLOURS[5], edgecolor="black", label="test")
        axes.bar(place, upper - lower, bottom=lower, edgecolor="black", **look)
        axes.text(place, upper + 1, f"{train - test:+.1f}", ha="center", fontsize=7)

    values = [
        (label, cell, pair(Attacked(attack, which), Attacked(attack, which, "train")))
        for label, cell, which in models
    ]
    kind = f"{'natural' if attack == 'clean' else 'robust'} accuracy (%)"
    names: Any = {"xlabel": "method", "ylabel": kind, "ylim": (0, 108)}
    return _panel(title, values, paint, categories=4, **names)


def bars(
    title: str,
    values: Sequence[Value],
    xlabel: str,
    ylabel: str = "robust accuracy (%)",
    published: float | None = None,
) -> Panel:
    """One measure by category; a published number to compare with is drawn as a line."""

    def paint(axes: "Axes", place: int, label: str, value: Any) -> None:
        axes.bar(place, value, color=COLOURS[5], edgecolor="black")
        text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
        axes.text(place, value, text, ha="center", va="bottom", fontsize=7)

    def draw(axes: "Axes", get: Get) -> bool:
        axes.margins(y=0.12)
        if published is not None:
            axes.axhline(published, color=COLOURS[1], ls="--", label=f"paper: {published:g}")
        return panel.draw(axes, get)

    panel = _panel(title, values, paint, categories=5, xlabel=xlabel, ylabel=ylabel)
    return panel._replace(draw=draw)


def lines(
    title: str,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str = "robust accuracy (%)",
    *,
    log: bool = False,
    right: Sequence[Series] = (),
    right_label: str = "",
    upright: Sequence[Value] = (),
) -> Panel:
    """Measures against a number, which may be logarithmic.

    Series of another unit have an axis to the ``right``; ``upright`` are values of x at which
    vertical lines are drawn.
    """

    def draw(axes: "Axes", get: Get) -> bool:
        from matplotlib.ticker import NullFormatter, NullLocator

        drawn = False
        beside = axes.twinx() if right else axes
        for index, (label, points) in enumerate((*series, *right)):
            known = [(x, get(cell, measure)) for x, cell, measure in points]
            known = [(x, y) for x, y in known if y is not None]
            if not known:
                continue
            look: Any = {"marker": _marker(index), **_style(index)}
            if index < len(series):
                axes.plot(*zip(*known, strict=True), label=label, **look)
            else:
                beside.plot(*zip(*known, strict=True), **look)
                axes.plot([], [], label=f"{label} (right)", **look)
            drawn = True
        if right:
            beside.set_label("<right>")
            beside.set_ylabel(right_label, size=8)
            beside.tick_params(labelsize=7)
            beside.spines["top"].set_visible(False)
        for label, cell, measure in upright:
            if (where := get(cell, measure)) is not None:
                axes.axvline(where, color="black", linestyle=":", linewidth=1, label=label)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return drawn

    every = [value for _, points in (*series, *right) for value in points]
    return Panel(title, tuple((cell, measure) for _, cell, measure in (*every, *upright)), draw)


def scatter(
    title: str,
    values: Sequence[Value],
    xlabel: str,
    ylabel: str,
    *,
    joined: bool = False,
    imported: Sequence[str] | None = None,
) -> Panel:
    """One measure against another over models, each a ``pair``, with correlation coefficients.

    Points of the same label may be ``joined`` to a line. Labels in ``imported`` are of published
    models, drawn as triangles; the legend says where there are none.
    """

    def draw(axes: "Axes", get: Get) -> bool:
        groups: dict[str, list[Any]] = {}
        for label, cell, measure in values:
            if (place := get(cell, measure)) is not None:
                groups.setdefault(label, []).append(place)
        for index, (label, inside) in enumerate(groups.items()):
            look: Any = {"color": COLOURS[index % len(COLOURS)], "marker": _marker(index)}
            if label in (imported or ()):
                look |= {"marker": "^", "markeredgecolor": "black", "markersize": 8}
            line = ":" if joined else "none"
            axes.plot(*zip(*inside, strict=True), linestyle=line, label=label, **look)
        if imported is not None and not imported:
            axes.plot([], [], linestyle="none", label="no models --imported")
        every = [p for inside in groups.values() for p in inside]
        found = correlation(*zip(*every, strict=True)) if every else None
        if found is not None:
            numbers = f"Pearson {found.pearson:.2f}, Spearman {found.spearman:.2f}"
            axes.set_title(f"{title}\n{numbers}, {found.models} points", fontsize=9)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return bool(groups)

    return Panel(title, tuple((cell, measure) for _, cell, measure in values), draw)


def landscapes(
    title: str,
    series: Sequence[tuple[str, Cell, Landscape]],
    *,
    sequence: bool = False,
    each: bool = False,
) -> Panel:
    """Adversarial loss along weight directions; of several, mean and range.

    In a ``sequence`` the curves are one model through training: light early, dark late. With
    ``each`` every direction is drawn on its own.
    """

    def paint(axes: "Axes", index: int, label: str, found: Any) -> None:
        import matplotlib

        along, losses = np.asarray(found["axis"]), np.asarray(found["loss"])
        look = _style(index)
        if each:
            look |= {"linewidth": 1.0, "alpha": 0.8}
            axes.plot(along, losses[0], label=f"{label} ({len(losses)} directions)", **look)
            axes.plot(along, losses[1:].T, **look)
            return
        if sequence:
            shade = 0.1 + 0.9 * (index + 1) / len(series)
            look["color"] = matplotlib.colormaps["viridis_r"](shade)
            look["linestyle"] = LINES[index % 4]
        axes.plot(along, losses.mean(0), label=label, **look)
        if len(losses) > 1:
            low, high = losses.min(0), losses.max(0)
            axes.fill_between(along, low, high, alpha=0.2, color=look["color"])

    kind = series[0][2].kind if series else "random"
    xlabel = f"position along {kind} direction"
    return _panel(title, series, paint, xlabel=xlabel, ylabel="adversarial loss (nats)")


def contour(title: str, cell: Cell, measure: Landscape) -> Panel:
    """|g(a, b) - g(0, 0)| over two random directions, of a measure with ``dims=2``."""

    def paint(axes: "Axes", index: int, label: str, found: Any) -> None:
        along, loss = np.asarray(found["axis"]), np.asarray(found["loss"])
        centre = loss[len(along) // 2, len(along) // 2]
        filled = axes.contourf(along, along, np.abs(loss - centre).T, levels=12, cmap="viridis")
        bar = axes.figure.colorbar(filled, ax=axes, fraction=0.046, pad=0.04)
        bar.set_label("|loss - loss at 0| (nats)", size=8)
        bar.ax.tick_params(labelsize=7)
        axes.set_xticks(along[:: max(len(along) // 4, 1)])
        axes.set_aspect("equal")

    names: Any = {"xlabel": "position along d", "ylabel": "position along e"}
    return _panel(title, [("", cell, measure)], paint, **names)


def histograms(title: str, cells: Sequence[Labelled]) -> Panel:
    """How the weights of a layer are spread."""

    def paint(axes: "Axes", index: int, label: str, found: Any) -> None:
        counts, edges = np.asarray(found["counts"]), np.asarray(found["edges"])
        density = counts / counts.sum() / np.diff(edges)
        axes.stairs(density, edges, label=f"{label}, {found['layer']}", **_style(index))

    names: Any = {"xlabel": "weight", "ylabel": "density (log scale)", "yscale": "log"}
    return _panel(title, [(label, cell, Weights()) for label, cell in cells], paint, **names)


def figure(place: Place) -> "Figure | None":
    """What has been measured, from files alone; ``None`` when there is nothing to draw yet."""
    panels = place.experiment.panels
    if not panels:
        return None
    columns = 2 if len(panels) == 4 else min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    drawing = new_figure(4.3 * columns, 4.1 * rows + 0.4)
    get = functools.partial(_value, place)
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


def _value(place: Place, cell: Cell, measure: Measure) -> Any:
    """The mean over seeds, or of curves the first; ``None`` where there are none yet."""
    found = list(place.values(cell, measure).values())
    if found and isinstance(found[0], int | float | tuple):
        return np.mean(found, axis=0).tolist()
    return found[0] if found else None


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
