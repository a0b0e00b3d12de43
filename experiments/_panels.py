"""The panels of figures, drawn from measured results."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from awp_jax.reporting import COLOURS, MARKERS, correlation
from experiments._measures import Attacked, Learning, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Five beside six colours and markers: no two of thirty series look the same.
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
# value = get(cell, measure), None where it is not there
Get = Callable[[str, Measure], Any]
Need = tuple[str, Measure]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One coordinate system.

    Attributes:
        title: Above it.
    """

    title: str

    def needs(self) -> list[Need]:
        """What is measured for it, by cell."""
        raise NotImplementedError

    def draw(self, axes: "Axes", get: Get) -> bool:
        """Draws what is there; says whether anything was."""
        raise NotImplementedError


def style(index: int) -> dict[str, Any]:
    """Colour and line of a series."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}


def marker(index: int) -> str:
    """Marker of a series."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]  # another one per colour


_QUANTITIES = {
    "robust_accuracy": ("robust accuracy (%)", lambda r: 100 * r["robust_accuracy"]),
    "clean_accuracy": ("natural accuracy (%)", lambda r: 100 * r["clean_accuracy"]),
    "robust_error": ("robust error (%)", lambda r: 100 - 100 * r["robust_accuracy"]),
    "robust_loss": ("robust loss (nats)", lambda r: r["robust_loss"]),
}


@dataclasses.dataclass(frozen=True)
class Curves(Panel):
    """A quantity over epochs, from the evaluations during training (test solid, train dotted).

    Attributes:
        series: (label, cell).
        quantity: ``"robust_accuracy"``, ``"clean_accuracy"``, ``"robust_error"`` or
            ``"robust_loss"``.
        parts: Of ``"train"``, ``"test"``.
        gap: Whether train minus test is drawn, too.
    """

    series: tuple[tuple[str, str], ...]
    quantity: str = "robust_accuracy"
    parts: tuple[str, ...] = ("test",)
    gap: bool = False

    def needs(self) -> list[Need]:
        return [(cell, Learning()) for _, cell in self.series]

    def draw(self, axes: "Axes", get: Get) -> bool:
        label_y, pick = _QUANTITIES[self.quantity]
        drawn = False
        for index, (label, cell) in enumerate(self.series):
            records = get(cell, Learning())
            if not records:
                continue
            drawn = True
            look = {"color": style(index)["color"], "marker": marker(index), "markersize": 3.5}
            look["markevery"] = max(len(records) // 10, 1)
            epochs = [r["epoch"] for r in records]
            for part in self.parts:
                # Alone, the test curves of the series differ in line style, too.
                line = ":" if part == "train" else style(index)["linestyle"]
                name = f"{label}, {part}" if len(self.parts) > 1 else label
                values = [pick(r[part]) for r in records]
                axes.plot(epochs, values, linestyle=line, label=name, **look)
            if self.gap:
                values = [pick(r["train"]) - pick(r["test"]) for r in records]
                axes.plot(epochs, values, color="0.35", linestyle="--", label="train minus test")
        axes.set(xlabel="epoch", ylabel=label_y)
        return drawn


@dataclasses.dataclass(frozen=True)
class GapBars(Panel):
    """Test accuracy, and on top of it the gap to training accuracy.

    Attributes:
        cells: (label, cell, checkpoint).
        attack: By which robustness is measured.
    """

    cells: tuple[tuple[str, str, str], ...]
    attack: str

    def _measures(self, checkpoint: str) -> tuple[Attacked, Attacked]:
        test, train = (Attacked(self.attack, checkpoint, part) for part in ("test", "train"))
        return test, train

    def needs(self) -> list[Need]:
        return [(cell, m) for _, cell, c in self.cells for m in self._measures(c)]

    def draw(self, axes: "Axes", get: Get) -> bool:
        drawn = False
        for place, (_, cell, checkpoint) in enumerate(self.cells):
            test, train = (get(cell, m) for m in self._measures(checkpoint))
            if test is None or train is None:
                axes.text(place, 1, "not run", ha="center", va="bottom", fontsize=7, rotation=90)
                continue
            lower, upper = min(test, train), max(test, train)
            look: Any = {"color": "white", "hatch": "///", "label": "gap to train"}
            if train < test:  # after few epochs
                look = {"color": "0.75", "hatch": "...", "label": "test above train"}
            axes.bar(place, lower, color=COLOURS[5], edgecolor="black", label="test")
            axes.bar(place, upper - lower, bottom=lower, edgecolor="black", **look)
            axes.text(place, upper + 1, f"{train - test:+.1f}", ha="center", fontsize=7)
            drawn = True
        axes.set_xticks(range(len(self.cells)), [label for label, *_ in self.cells])
        axes.tick_params(axis="x", labelsize=7, labelrotation=30 if len(self.cells) > 4 else 0)
        kind = "natural" if self.attack == "clean" else "robust"
        axes.set(xlabel="method", ylabel=f"{kind} accuracy (%)", ylim=(0, 108))
        return drawn


@dataclasses.dataclass(frozen=True)
class Bars(Panel):
    """One measure by category.

    Attributes:
        bars: (label, cell, measure).
        xlabel: What the categories are.
        ylabel: With the unit.
        published: A number of the paper to compare with, drawn as a line.
    """

    bars: tuple[tuple[str, str, Measure], ...]
    xlabel: str
    ylabel: str = "robust accuracy (%)"
    published: float | None = None

    def needs(self) -> list[Need]:
        return [(cell, measure) for _, cell, measure in self.bars]

    def draw(self, axes: "Axes", get: Get) -> bool:
        drawn = False
        for place, (_, cell, measure) in enumerate(self.bars):
            value = get(cell, measure)
            if value is None:
                axes.text(place, 0, "not run", ha="center", va="bottom", fontsize=7, rotation=90)
                continue
            axes.bar(place, value, color=COLOURS[5], edgecolor="black")
            text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
            axes.text(place, value, text, ha="center", va="bottom", fontsize=7)
            drawn = True
        if self.published is not None:
            label = f"paper: {self.published:g}"
            axes.axhline(self.published, color=COLOURS[1], linestyle="--", label=label)
        axes.set_xticks(range(len(self.bars)), [label for label, *_ in self.bars])
        axes.tick_params(axis="x", labelsize=7, labelrotation=30 if len(self.bars) > 5 else 0)
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel)
        axes.margins(y=0.12)
        return drawn


@dataclasses.dataclass(frozen=True)
class Lines(Panel):
    """Measures against a number.

    Attributes:
        series: (label, ((x, cell, measure), ...)).
        xlabel: With the unit.
        ylabel: With the unit.
        log: Whether x is logarithmic.
        right: More series, of another unit.
        right_label: Of their axis, with the unit.
        upright: (label, cell, measure) of an x at which a vertical line is drawn.
    """

    series: tuple[tuple[str, tuple[tuple[float, str, Measure], ...]], ...]
    xlabel: str
    ylabel: str = "robust accuracy (%)"
    log: bool = False
    right: tuple[tuple[str, tuple[tuple[float, str, Measure], ...]], ...] = ()
    right_label: str = ""
    upright: tuple[str, str, Measure] | None = None

    def needs(self) -> list[Need]:
        series = (*self.series, *self.right)
        found = [(cell, measure) for _, points in series for _, cell, measure in points]
        return found + ([self.upright[1:]] if self.upright else [])

    def draw(self, axes: "Axes", get: Get) -> bool:
        from matplotlib.ticker import NullFormatter, NullLocator

        drawn = False
        beside = axes.twinx() if self.right else axes
        for index, (label, points) in enumerate((*self.series, *self.right)):
            known = [(x, get(cell, measure)) for x, cell, measure in points]
            known = [(x, y) for x, y in known if y is not None]
            if not known:
                continue
            look: Any = {"marker": marker(index), **style(index)}
            if index < len(self.series):
                axes.plot(*zip(*known, strict=True), label=label, **look)
            else:
                beside.plot(*zip(*known, strict=True), **look)
                axes.plot([], [], label=f"{label} (right)", **look)
            drawn = True
        if self.right:
            beside.set_label("<right>")
            beside.set_ylabel(self.right_label, size=8)
            beside.tick_params(labelsize=7)
            beside.spines["top"].set_visible(False)
        where = get(*self.upright[1:]) if self.upright else None
        if self.upright and where is not None:
            axes.axvline(where, color="black", linestyle=":", linewidth=1, label=self.upright[0])
        if self.log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel)
        return drawn


@dataclasses.dataclass(frozen=True)
class Scatter(Panel):
    """One measure against another over models, with correlation coefficients.

    Attributes:
        points: (label, cell, x, y).
        xlabel: With the unit.
        ylabel: With the unit.
        joined: Whether points of the same label are one line.
        imported: Names of the cells that are published models; triangles.
        wants_imported: Whether the legend says so where there are none.
    """

    points: tuple[tuple[str, str, Measure, Measure], ...]
    xlabel: str
    ylabel: str
    joined: bool = False
    imported: tuple[str, ...] = ()
    wants_imported: bool = False

    def needs(self) -> list[Need]:
        return [(cell, m) for _, cell, x, y in self.points for m in (x, y)]

    def draw(self, axes: "Axes", get: Get) -> bool:
        groups: dict[str, list[tuple[float, float]]] = {}
        for label, cell, x, y in self.points:
            place = get(cell, x), get(cell, y)
            if None not in place:
                groups.setdefault(label, []).append(place)
        for index, (label, places) in enumerate(groups.items()):
            look: Any = {"color": COLOURS[index % len(COLOURS)], "marker": marker(index)}
            if label in self.imported:
                look |= {"marker": "^", "markeredgecolor": "black", "markersize": 8}
            line = ":" if self.joined else "none"
            axes.plot(*zip(*places, strict=True), linestyle=line, label=label, **look)
        if self.wants_imported and not self.imported:
            axes.plot([], [], linestyle="none", label="no models --imported")
        every = [p for places in groups.values() for p in places]
        found = correlation(*zip(*every, strict=True)) if every else None
        title = self.title
        if found is not None:
            title += f"\nPearson {found.pearson:.2f}, Spearman {found.spearman:.2f}"
            title += f", {found.models} points"
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel)
        axes.set_title(title, fontsize=9)
        return bool(groups)
