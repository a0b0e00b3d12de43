"""Figures of weights: histograms, growing perturbations, PAC-Bayes terms."""

from typing import TYPE_CHECKING

import numpy as np

from awp_jax.panels import finish_gammas, gamma_curves, histogram
from awp_jax.reporting._flatness_tables import Results, main_checkpoint
from awp_jax.reporting._style import COLOURS, MARKERS
from awp_jax.results import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", "-.", ":")


def histogram_figure(results: Results, *, most: int = 6) -> "Figure":
    """Weight values of kernels, run against run (AWP, NeurIPS 2020, Figure 4).

    Args:
        results: By name of the run, what ``awp-jax flatness --also=histograms`` writes.
        most: Kernels to show, evenly spaced from first to last; there may be a hundred.

    Returns:
        One panel per kernel: the density of its weights in the main checkpoint of each run.
    """
    found = {
        name: result["checkpoints"][main_checkpoint(result)].get("histograms", {})
        for name, result in results.items()
    }
    layers = list(dict.fromkeys(layer for one in found.values() for layer in one))
    kernels = [layer for layer in layers if not layer.endswith("bias")]
    chosen = np.unique(
        np.linspace(0, len(kernels) - 1, min(most, len(kernels))).round().astype(int)
    )
    columns = min(len(chosen), 3)
    rows = -(-len(chosen) // columns)
    figure = new_figure(3.6 * columns, 2.6 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, place in zip(axes, chosen, strict=False):
        layer = kernels[place]
        for index, (name, histograms) in enumerate(found.items()):
            if layer not in histograms:
                continue
            histogram(
                axis,
                histograms[layer]["counts"],
                histograms[layer]["edges"],
                color=COLOURS[index % len(COLOURS)],
                linestyle=_LINES[index % len(_LINES)],
                label=name,
            )
        axis.set_title(layer, fontsize=9)
    for axis in axes[len(chosen) :]:
        axis.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def gamma_figure(results: Results, part: str = "test") -> "Figure":
    """Robust loss under AWP and random perturbations (AWP, NeurIPS 2020, Figure 3a).

    Args:
        results: By name of the run, what ``awp-jax flatness --also=gammas`` writes.
        part: Which set.

    Returns:
        Loss over gamma for the main checkpoint of each run; random perturbations with the range of
        their draws. Where several epochs were measured, beside it the loss over epochs at the
        usual gammas: 0.005 for AWP, 1 at random.
    """
    through = {
        name: {
            m["epoch"]: m[part]["gammas"]
            for m in result["checkpoints"].values()
            if "gammas" in m.get(part, {})
        }
        for name, result in results.items()
    }
    wide = any(len(epochs) > 2 for epochs in through.values())
    figure = new_figure(9.6 if wide else 5.4, 4.2)
    axes = figure.subplots(1, 2 if wide else 1, squeeze=False)[0]
    for index, (name, result) in enumerate(results.items()):
        found = result["checkpoints"][main_checkpoint(result)].get(part, {}).get("gammas")
        if found is None:
            continue
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        gammas, random = found["gammas"], np.asarray(found["random"])
        style = {"color": colour, "marker": marker, "markersize": 4}
        gamma_curves(axes[0], gammas, found["adversarial"], random, name, colour, marker)
        if wide:
            epochs = sorted(through[name])
            for gamma, kind, line in ((0.005, "adversarial", "-"), (1.0, "random", "--")):
                column = gammas.index(gamma)
                values = [np.mean(through[name][e][kind][column]) for e in epochs]
                fill = "full" if kind == "adversarial" else "none"
                axes[1].plot(epochs, values, line, fillstyle=fill, **style)
    finish_gammas(axes[0])
    if wide:
        axes[1].set_xlabel("epoch")
        axes[1].set_title("AWP at gamma 0.005, random at gamma 1", fontsize=9)
        axes[1].locator_params(axis="x", integer=True)
    for axis in axes:
        axis.set_ylabel(f"robust loss, {part} (nats)")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def pac_bayes_figure(results: Results) -> "Figure":
    """Terms of the PAC-Bayes bound over the size of the perturbation (AWP, eq. 12).

    Args:
        results: By name of the run, what ``awp-jax flatness --also=pac-bayes`` writes.

    Returns:
        The flatness term and the complexity term on training images (on test images where the run
        was measured on no others), of the main checkpoint of each run.
    """
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    for index, (name, result) in enumerate(results.items()):
        measured = result["checkpoints"][main_checkpoint(result)]
        part = next(s for s in ("train", "validation", "test") if s in measured)
        found = measured[part].get("pac_bayes")
        if found is None:
            continue
        style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        style |= {"linestyle": _LINES[index % len(_LINES)], "label": f"{name}, {part}"}
        left.plot(found["alphas"], found["sharpness"], markersize=4, **style)
        right.plot(found["alphas"], found["complexity"], markersize=4, **style)
    left.set_ylabel("E[robust error at w + u] - robust error at w")
    right.set_ylabel("complexity term of the bound")
    right.axhline(1, color="0.6", linewidth=0.8)
    right.set_title("Above 1 (line) the bound says nothing", fontsize=9)
    right.set_yscale("log")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("alpha: deviation of a weight relative to ||w||")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure
