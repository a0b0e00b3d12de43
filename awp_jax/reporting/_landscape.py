"""Figures of landscapes: curves, curves over training, planes, runs side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from awp_jax.panels import contour, curve, levels_of
from awp_jax.reporting._landscape_curves import (
    finish,
    first_loss,
    label_grid,
    latest,
    run_curve,
    xlabel,
    ylabel,
)
from awp_jax.reporting._landscape_data import HOWS, settings_line
from awp_jax.reporting._style import COLOURS, MARKERS
from awp_jax.results import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {
    "anew": "examples made at every point",
    "centre": "examples made once, at the centre",
    "none": "clean examples",
}
# One look per way of making examples: colour, line style, marker.
_LOOKS = {
    "anew": ("#0072B2", "-", "o"),
    "centre": ("#D55E00", "--", "s"),
    "none": ("#009E73", ":", "^"),
}
_PER_ROW = 4
_CHANGE = "|g(a, b) - g(0, 0)| (nats)"


def landscape_figure(landscape: Mapping[str, Any]) -> "Figure":
    """The landscape of one run: a panel per checkpoint.

    Args:
        landscape: From ``read_landscape``.

    Returns:
        A matplotlib figure; save it with ``save_figure``. In one dimension all draws, their mean
        and standard deviation (Figure 5 of AWP, NeurIPS 2020); in two a contour and a surface of
        ``|g(a, b) - g(0, 0)|`` (Figure 6), the mean over draws.
    """
    if landscape["settings"]["dims"] == 2:
        return _planes(landscape)

    checkpoints = _each_state_once(landscape)
    columns = min(len(checkpoints), _PER_ROW)
    rows = -(-len(checkpoints) // columns)
    figure = new_figure(1.2 + 3.3 * columns, 0.9 + 2.7 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, panel in enumerate(panels.flat):
        if place >= len(checkpoints):
            panel.set_visible(False)
        elif place + columns >= len(checkpoints):
            panel.tick_params(labelbottom=True)
    for panel, (which, measured) in zip(panels.flat, checkpoints.items(), strict=False):
        for how in [h for h in HOWS if h in measured]:
            colour, style, marker = _LOOKS[how]
            losses = measured[how]["loss"]
            for loss in losses if len(losses) > 1 else ():
                panel.plot(landscape["axis"], loss, color=colour, linewidth=0.6, alpha=0.45)
            curve(panel, landscape["axis"], losses, colour, style, marker, _LABELS[how])
        panel.set_title(_title(which, measured), fontsize=10)
        finish(panel)
    label_grid(panels, landscape["settings"], len(checkpoints))
    line = settings_line(landscape["settings"])
    figure.suptitle(line if columns > 2 else line.replace("; ", "\n"), fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns))
    return figure


def landscape_training_figure(
    landscape: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> "Figure | None":
    """How the landscape changes during training (Figures 1a and 7 to 10 of AWP, NeurIPS 2020).

    Args:
        landscape: From ``read_landscape``, in one dimension, of several checkpoints.
        records: The records of ``metrics.jsonl``.

    Returns:
        A figure: the learning curve with the robust generalisation gap; then curves coloured by
        epoch, up to the best epoch and after it (one panel when all are on one side). ``None`` when
        there are fewer than two epochs, or two dimensions, or no evaluations.
    """
    by_epoch = {m["epoch"]: m for m in landscape["checkpoints"].values()}
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    if landscape["settings"]["dims"] == 2 or len(by_epoch) < 2 or not evaluations:
        return None
    chosen_on = landscape["selection"] if landscape["selection"] in evaluations[0] else "test"
    best = max(evaluations, key=lambda r: r[chosen_on]["robust_accuracy"])["epoch"]
    groups = {
        f"up to the best epoch ({best:g})": [e for e in sorted(by_epoch) if e <= best],
        f"after the best epoch ({best:g})": [e for e in sorted(by_epoch) if e > best],
    }
    groups = {title: epochs for title, epochs in groups.items() if epochs}
    figure = new_figure(4.2 + 3.4 * len(groups), 3.5)
    from matplotlib.cm import ScalarMappable  # slow to import: only where something is drawn
    from matplotlib.colors import Normalize

    learning, *panels = figure.subplots(1, 1 + len(groups))
    _learning_curve(learning, evaluations, best)
    colours = ScalarMappable(Normalize(min(by_epoch), max(by_epoch)), "viridis")
    for panel, (title, epochs) in zip(panels, groups.items(), strict=True):
        for place, epoch in enumerate(epochs):
            measured = by_epoch[epoch]
            marker = MARKERS[place % len(MARKERS)]
            colour = colours.to_rgba(epoch)
            curve(
                panel,
                landscape["axis"],
                first_loss(measured),
                colour,
                "-",
                marker,
                f"epoch {epoch:g}",
                band=False,
            )
        panel.set_title(title, fontsize=10)
        panel.sharey(panels[0])
        finish(panel)
        if len(epochs) <= 8:
            panel.legend(fontsize=7, loc="upper center", ncols=2)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.35 * (high - low))  # shared: room for the legends
    label_grid(np.array([panels]), landscape["settings"], len(panels))
    figure.colorbar(colours, ax=panels, label="epoch")
    return figure


def landscape_comparison(
    landscapes: Mapping[str, Mapping[str, Any]],
    accuracies: Mapping[str, Mapping[str, tuple[float, float] | None]],
    source: str = "",
) -> "Figure":
    """Runs side by side: robust generalisation gap and landscapes (Figure 1b of AWP).

    Args:
        landscapes: By name of the run, from ``read_landscape``; all in one or all in two
            dimensions.
        accuracies: By name of the run and checkpoint, robust train and test accuracy in [0, 1], or
            ``None``; see ``robust_accuracies``.
        source: Of these, in words, for the title of their panel.

    Returns:
        A figure: bars of robust accuracy with the gap; in one dimension the loss, and its change
        from the centre; in two a contour of ``|g(a, b) - g(0, 0)|`` per run, at the same levels.
    """
    series = _series(landscapes)
    if len({found["settings"]["dims"] for found, *_ in series.values()}) > 1:
        raise ValueError("Landscapes in one and in two dimensions cannot be compared.")
    flat = next(iter(series.values()))[0]["settings"]["dims"] == 1
    count = 3 if flat else 1 + len(series)
    figure = new_figure(3.6 * count, 3.7)
    panels = figure.subplots(1, count)
    bars = {label: accuracies[run][which] for label, (_, run, which) in series.items()}
    _bars(panels[0], bars, source)
    if flat:
        for panel, change in ((panels[1], False), (panels[2], True)):
            for place, (label, (found, _, which)) in enumerate(series.items()):
                run_curve(panel, found, which, label, place, change=change)
            settings = next(iter(series.values()))[0]["settings"]
            panel.set_title("change from the centre" if change else "landscape", fontsize=10)
            panel.set_xlabel(xlabel(settings))
            panel.set_ylabel("g(a) - g(0) (nats)" if change else ylabel(settings))
            finish(panel)
        handles, labels = panels[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    else:
        changes = {}
        for label, (found, _, which) in series.items():
            changes[label] = _change(found["checkpoints"][which])
        levels = levels_of(changes.values())
        for panel, (label, (found, *_)) in zip(panels[1:], series.items(), strict=True):
            drawn = _contour(panel, found, changes[label], levels)
            panel.set_title(label, fontsize=10)
        _colorbar(figure, drawn, list(panels[1:]))
    lines = {settings_line(found["settings"]): None for found, *_ in series.values()}
    figure.suptitle("\n".join(lines), fontsize=8)
    return figure


def landscape_panel(panel: Any, landscape: Mapping[str, Any]) -> None:
    """Draws the landscape of one run on one panel.

    Args:
        panel: Matplotlib axes.
        landscape: From ``read_landscape``. In one dimension a curve for each checkpoint (the latest
            of more than six), in two a contour of ``|g(a, b) - g(0, 0)|`` of the latest one.
    """
    if landscape["settings"]["dims"] == 2:
        change = _change(landscape["checkpoints"][latest(landscape)])
        drawn = _contour(panel, landscape, change, levels_of([change]))
        _colorbar(panel.figure, drawn, [panel])
        return
    for place, (label, (_, _, which)) in enumerate(_series({"": landscape}).items()):
        name = label.lstrip(", ") or which
        run_curve(panel, landscape, which, name, place, change=False)
    panel.set_xlabel(xlabel(landscape["settings"]))
    panel.set_ylabel(ylabel(landscape["settings"]))
    finish(panel)
    panel.legend(fontsize=8)


def _each_state_once(landscape) -> dict[str, Any]:
    """The checkpoints, without those that are the same state under another name."""
    seen: dict[int, str] = {}
    for which, measured in landscape["checkpoints"].items():
        seen.setdefault(measured["step"], which)
    return {which: landscape["checkpoints"][which] for which in seen.values()}


def _series(landscapes) -> dict[str, tuple[Any, str, str]]:
    """By label: landscape, run, checkpoint; only the latest of each run when there are many."""
    states = {run: list(_each_state_once(found)) for run, found in landscapes.items()}
    if sum(map(len, states.values())) > len(COLOURS):
        states = {run: [latest(found)] for run, found in landscapes.items()}
    return {
        run if len(names) == 1 else f"{run}, {which}": (landscapes[run], run, which)
        for run, names in states.items()
        for which in names
    }


def _bars(panel, accuracies: Mapping[str, tuple[float, float] | None], source: str) -> None:
    from matplotlib.patches import Patch

    for place, pair in enumerate(accuracies.values()):
        if pair is None:
            panel.text(place, 2, "not\nevaluated", ha="center", va="bottom", fontsize=8)
            continue
        train, test = (100 * value for value in pair)
        colour = COLOURS[place % len(COLOURS)]
        look = {"width": 0.36, "edgecolor": "black", "linewidth": 0.6}
        panel.bar(place - 0.19, train, color="white", hatch="////", **look)
        panel.bar(place + 0.19, test, color=colour, **look)
        panel.text(place, max(train, test) + 3, f"gap {train - test:.1f}", ha="center", fontsize=8)
    many = len(accuracies) > 3
    turned = {"rotation": 30, "ha": "right"} if many else {}
    panel.set_xticks(range(len(accuracies)), accuracies, fontsize=8 if many else 10, **turned)
    panel.set_xlim(-0.6, len(accuracies) - 0.4)
    panel.set_ylim(0, 119)
    panel.set_yticks(range(0, 101, 20))
    panel.set_ylabel("robust accuracy (%)")
    panel.set_title("robust generalisation gap", fontsize=10)
    panel.set_xlabel(source, fontsize=8)
    keys = [
        Patch(facecolor="white", edgecolor="black", hatch="////", label="train"),
        Patch(facecolor="0.6", edgecolor="black", label="test"),
    ]
    panel.legend(handles=keys, loc="upper right", ncols=2, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _learning_curve(panel, evaluations, best) -> None:
    epochs = [r["epoch"] for r in evaluations]
    test = np.array([100 * r["test"]["robust_accuracy"] for r in evaluations])
    panel.plot(epochs, test, "-", color="#0072B2", marker="o", markersize=3, label="test")
    if all("train" in r for r in evaluations):
        train = np.array([100 * r["train"]["robust_accuracy"] for r in evaluations])
        panel.plot(epochs, train, "--", color="#D55E00", label="train")
        panel.plot(
            epochs, train - test, ":", color="#009E73", marker="^", markersize=3, label="gap"
        )
    panel.axvline(best, color="0.6", linewidth=0.8)
    panel.set_xlabel("epoch")
    panel.set_ylabel("robust accuracy (%), gap (points)")
    panel.set_title("learning curve", fontsize=10)
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0), high + 0.2 * (high - low))
    panel.legend(fontsize=8, loc="upper center", ncols=3)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _planes(landscape) -> "Figure":
    checkpoints = _each_state_once(landscape)
    changes = {which: _change(measured) for which, measured in checkpoints.items()}
    levels, rows = levels_of(changes.values()), len(checkpoints)
    figure = new_figure(8.6, 0.4 + 3.5 * rows)
    axis, panels = landscape["axis"], []
    first, second = np.meshgrid(axis, axis, indexing="ij")
    for row, (which, measured) in enumerate(checkpoints.items()):
        flat = figure.add_subplot(rows, 2, 2 * row + 1)
        drawn = _contour(flat, landscape, changes[which], levels)
        flat.set_title(_title(which, measured), fontsize=10)
        solid: Any = figure.add_subplot(rows, 2, 2 * row + 2, projection="3d")
        look = {"cmap": drawn.cmap, "norm": drawn.norm, "edgecolor": "0.3", "linewidth": 0.2}
        solid.plot_surface(first, second, changes[which], rstride=1, cstride=1, **look)
        solid.set_zlim(0, levels[-1])
        solid.set_title(_CHANGE, fontsize=10)
        solid.set_xlabel("a")
        solid.set_ylabel("b")
        panels += [flat, solid]
    _colorbar(figure, drawn, panels)
    figure.suptitle(settings_line(landscape["settings"]), fontsize=8)
    return figure


def _change(measured) -> np.ndarray:
    """|g - g(0, 0)|, the mean over draws."""
    loss = first_loss(measured)
    centre = loss[:, loss.shape[1] // 2, loss.shape[2] // 2]
    return np.abs(loss - centre[:, None, None]).mean(axis=0)


def _colorbar(figure, drawn, panels) -> None:
    bar = figure.colorbar(drawn, ax=panels, label=_CHANGE, ticks=drawn.levels[::2])
    bar.ax.set_yticklabels([f"{level:.2g}" for level in drawn.levels[::2]])


def _contour(panel, landscape, change, levels):
    axis, unit = landscape["axis"], landscape["settings"]["normalisation"]
    drawn = contour(panel, axis, axis, change, levels)
    panel.set_xlabel(f"a ({unit} norms)")
    panel.set_ylabel(f"b ({unit} norms)")
    return drawn


def _title(which: str, measured: Mapping[str, Any]) -> str:
    epoch = f"epoch {measured['epoch']:g}"
    return epoch if which.startswith("epoch-") else f"{which}, {epoch}"
