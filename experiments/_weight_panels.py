"""The panels of landscapes, perturbed weights and weight histograms."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from experiments._analyses import Landscape, PerturbedLoss, Weights
from experiments._panels import LINES, Get, Need, Panel, marker, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
