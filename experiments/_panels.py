"""The panels of figures, drawn from measured results."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from awp_jax.reporting import COLOURS, MARKERS, correlation
from experiments._measures import (
    Attacked,
    Landscape,
    Learning,
    Measure,
    PerturbedLoss,
    Weights,
)

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
            axes.text(place, value, f"{value:.1f}", ha="center", va="bottom", fontsize=7)
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
    """

    series: tuple[tuple[str, tuple[tuple[float, str, Measure], ...]], ...]
    xlabel: str
    ylabel: str = "robust accuracy (%)"
    log: bool = False

    def needs(self) -> list[Need]:
        return [(cell, measure) for _, points in self.series for _, cell, measure in points]

    def draw(self, axes: "Axes", get: Get) -> bool:
        drawn = False
        for index, (label, points) in enumerate(self.series):
            known = [(x, get(cell, measure)) for x, cell, measure in points]
            known = [(x, y) for x, y in known if y is not None]
            if known:
                axes.plot(
                    *zip(*known, strict=True), marker=marker(index), label=label, **style(index)
                )
                drawn = True
        if self.log:
            axes.set_xscale("log")
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel)
        return drawn


@dataclasses.dataclass(frozen=True)
class Landscapes(Panel):
    """Adversarial loss along weight directions.

    Attributes:
        curves: (label, cell, measure); of several directions, mean and range are drawn.
        sequence: Whether the curves are one model through training: light early, dark late.
        each: Whether every direction is drawn on its own.
    """

    curves: tuple[tuple[str, str, Landscape], ...]
    sequence: bool = False
    each: bool = False

    def needs(self) -> list[Need]:
        return [(cell, measure) for _, cell, measure in self.curves]

    def draw(self, axes: "Axes", get: Get) -> bool:
        import matplotlib

        drawn = False
        for index, (label, cell, measure) in enumerate(self.curves):
            found = get(cell, measure)
            if found is None:
                continue
            drawn = True
            along, losses = np.asarray(found["axis"]), np.asarray(found["loss"])
            if self.each:
                for number, loss in enumerate(losses):
                    name = f"{label} ({len(losses)} directions)" if number == 0 else None
                    look = {**style(index), "linewidth": 1.0, "alpha": 0.8}
                    axes.plot(along, loss, label=name, **look)
                continue
            look = style(index)
            if self.sequence:
                share = (index + 1) / len(self.curves)
                look = {"color": matplotlib.colormaps["viridis_r"](0.1 + 0.9 * share)}
                look |= {"linestyle": LINES[index % 4]}
            axes.plot(along, losses.mean(0), label=label, **look)
            if len(losses) > 1:
                axes.fill_between(
                    along, losses.min(0), losses.max(0), alpha=0.2, color=look["color"]
                )
        kind = self.curves[0][2].kind
        axes.set(xlabel=f"position along {kind} direction", ylabel="adversarial loss (nats)")
        return drawn


@dataclasses.dataclass(frozen=True)
class Contour(Panel):
    """|g(a, b) - g(0, 0)| over two random directions.

    Attributes:
        cell: Of the model.
        measure: With ``dims=2``.
    """

    cell: str
    measure: Landscape

    def needs(self) -> list[Need]:
        return [(self.cell, self.measure)]

    def draw(self, axes: "Axes", get: Get) -> bool:
        found = get(self.cell, self.measure)
        if found is None:
            return False
        along, loss = np.asarray(found["axis"]), np.asarray(found["loss"])
        centre = loss[len(along) // 2, len(along) // 2]
        filled = axes.contourf(along, along, np.abs(loss - centre).T, levels=12, cmap="viridis")
        bar = axes.figure.colorbar(filled, ax=axes, fraction=0.046, pad=0.04)
        bar.set_label("|loss - loss at 0| (nats)", size=8)
        bar.ax.tick_params(labelsize=7)
        axes.set_xticks(along[:: max(len(along) // 4, 1)])
        axes.set(xlabel="position along d", ylabel="position along e", aspect="equal")
        return True


@dataclasses.dataclass(frozen=True)
class Histograms(Panel):
    """How the weights of a layer are spread.

    Attributes:
        series: (label, cell).
    """

    series: tuple[tuple[str, str], ...]

    def needs(self) -> list[Need]:
        return [(cell, Weights()) for _, cell in self.series]

    def draw(self, axes: "Axes", get: Get) -> bool:
        drawn = False
        for index, (label, cell) in enumerate(self.series):
            found = get(cell, Weights())
            if found is None:
                continue
            counts, edges = np.asarray(found["counts"]), np.asarray(found["edges"])
            density = counts / counts.sum() / np.diff(edges)
            axes.stairs(density, edges, label=f"{label}, {found['layer']}", **style(index))
            drawn = True
        axes.set(xlabel="weight", ylabel="density (log scale)", yscale="log")
        return drawn


@dataclasses.dataclass(frozen=True)
class Perturbed(Panel):
    """Adversarial loss of one model through training, with its weights perturbed.

    Attributes:
        cell: Of the model.
        checkpoints: ``"20%"``, ...
        random: Sizes gamma of random perturbation.
        awp: The gamma of AWP.
    """

    cell: str
    checkpoints: tuple[str, ...]
    random: tuple[float, ...]
    awp: float

    def _measure(self, checkpoint: str) -> PerturbedLoss:
        gammas = dict.fromkeys((0.0, self.awp, *self.random))
        return PerturbedLoss(tuple(gammas), checkpoint)

    def needs(self) -> list[Need]:
        return [(self.cell, self._measure(c)) for c in self.checkpoints]

    def draw(self, axes: "Axes", get: Get) -> bool:
        found = {int(c[:-1]): get(self.cell, self._measure(c)) for c in self.checkpoints}
        known = {x: value for x, value in found.items() if value is not None}
        curves = [("not perturbed", "random", 0.0)]
        curves += [(f"random, gamma {g:g}", "random", g) for g in self.random]
        curves += [(f"AWP, gamma {self.awp:g}", "adversarial", self.awp)]
        for index, (name, kind, gamma) in enumerate(curves):
            values = [value[kind][value["gammas"].index(gamma)] for value in known.values()]
            if values:
                axes.plot(list(known), values, marker=marker(index), label=name, **style(index))
        axes.set(xlabel="epoch (% of training)", ylabel="adversarial loss (nats)")
        return bool(known)


@dataclasses.dataclass(frozen=True)
class Scatter(Panel):
    """One measure against another over models, with correlation coefficients.

    Attributes:
        points: (label, cell, x, y).
        xlabel: With the unit.
        ylabel: With the unit.
        names: Whether a legend names the points.
        joined: Whether points of the same label are one line.
    """

    points: tuple[tuple[str, str, Measure, Measure], ...]
    xlabel: str
    ylabel: str
    names: bool = True
    joined: bool = False

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
            line = ":" if self.joined else "none"
            axes.plot(*zip(*places, strict=True), linestyle=line, label=label, **look)
        every = [p for places in groups.values() for p in places]
        found = correlation(*zip(*every, strict=True)) if every else None
        title = self.title
        if found is not None:
            title += f"\nPearson {found.pearson:.2f}, Spearman {found.spearman:.2f}"
            title += f", {found.models} points"
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel)
        axes.set_title(title, fontsize=9)
        return bool(groups)
