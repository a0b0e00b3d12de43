"""Figures of flatness, from ``flatness.json`` alone."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from awp_jax.panels import bars
from awp_jax.reporting._flatness_tables import (
    Results,
    correlation,
    main_checkpoint,
    main_set,
    settings_note,
)
from awp_jax.reporting._style import COLOURS, MARKERS
from awp_jax.reporting._weights import gamma_figure, histogram_figure, pac_bayes_figure
from awp_jax.results import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def flatness_figures(results: Results) -> dict[str, "Figure"]:
    """Every figure that the results have data for.

    Args:
        results: By name of the run, what ``awp-jax flatness`` writes to ``flatness.json``.

    Returns:
        By file name: ``flatness`` for two runs or more; ``flatness_training`` where several epochs
        of a run were measured; ``weight_histograms``, ``weight_gammas`` and ``pac_bayes`` where
        they were asked for.
    """
    figures = {}
    if len(results) > 1:
        figures["flatness"] = flatness_scatter(results)
    if any(len(training(result)) > 2 for result in results.values()):
        figures["flatness_training"] = flatness_training(results)
    mains = {name: r["checkpoints"][main_checkpoint(r)] for name, r in results.items()}
    part = main_set(results)
    if any("histograms" in measured for measured in mains.values()):
        figures["weight_histograms"] = histogram_figure(results)
    if any("gammas" in measured[part] for measured in mains.values()):
        figures["weight_gammas"] = gamma_figure(results, part)
    if any("pac_bayes" in measured[part] for measured in mains.values()):
        figures["pac_bayes"] = pac_bayes_figure(results)
    return figures


def flatness_bars(axes: "Axes", result: Mapping[str, Any]) -> None:
    """Draws both flatness measures as bars, for each checkpoint and set.

    Args:
        axes: Matplotlib axes.
        result: What ``awp-jax flatness`` writes to ``flatness.json``.
    """
    found = {
        f"{which}, {part}": measured[part]
        for which, measured in result["checkpoints"].items()
        for part in ("train", "validation", "test")
        if part in measured
    }
    groups = {
        label: [one[name] for one in found.values()]
        for name, label in (("average", "average-case"), ("worst_case", "worst-case"))
    }
    bars(axes, groups, list(found), "flatness (nats)")
    axes.axhline(0, color="0.6", linewidth=0.8)


def training(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was measured of a run, in the order of epochs, each epoch once."""
    by_epoch = {measured["epoch"]: measured for measured in result["checkpoints"].values()}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def flatness_scatter(results: Results) -> "Figure":
    """Robustness against flatness over runs (Stutz et al., ICCV 2021, Figures 1, 8 and 9).

    Filled: the last checkpoint; hollow, joined by a line: the best one.

    Args:
        results: By name of the run, what ``awp-jax flatness`` writes to ``flatness.json``.

    Returns:
        Panels, those left out that were not measured of any run: robust loss against average-case
        and worst-case flatness, and against average-case flatness on training images; robust error
        against average-case flatness; robust loss on test minus train, and last minus best, against
        average-case flatness.
    """
    part = main_set(results)

    def of(where, name, factor=1.0):
        def value(result, which):
            found = result["checkpoints"][which].get(where, {}).get(name)
            return None if found is None else factor * found

        return value

    def gap(result, which):
        return result["differences"]["test_minus_train"].get(which, {}).get("loss")

    def overfitting(result, which):
        last = which != "best"  # a number of the run, not of a checkpoint: drawn once
        return result["differences"]["last_minus_best"].get(part, {}).get("loss") if last else None

    average = (of(part, "average"), f"average-case flatness, {part} (nats)")
    worst = (of(part, "worst_case"), f"worst-case flatness, {part} (nats)")
    on_train = (of("train", "average"), "average-case flatness, train (nats)")
    loss = (of(part, "loss"), f"robust loss, {part} (nats)")
    error = (of(part, "error", 100.0), f"robust error, {part} (%)")
    panels = (
        (average, loss),
        (worst, loss),
        *([(on_train, loss)] if part != "train" else []),  # or it would be the first again
        (average, error),
        (average, (gap, "robust loss, test minus train (nats)")),
        (average, (overfitting, "robust loss, last minus best (nats)")),
    )
    panels = tuple(
        panel for panel in panels if any(_point(result, *panel) for result in results.values())
    )
    rows = 1 if len(panels) < 4 else 2
    columns = -(-len(panels) // rows)
    figure = new_figure(11 / 3 * columns, 3.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, ((x, x_label), (y, y_label)) in zip(axes, panels, strict=False):
        _scatter(axis, results, x, y)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    lines = _settings(results)
    if any(line.get_fillstyle() == "none" for axis in axes for line in axis.get_lines()):
        lines = ["Filled: last checkpoint; hollow: best checkpoint", *lines]
    figure.suptitle("\n".join(lines), fontsize=8)
    return figure


def _settings(results: Results) -> list[str]:
    """The settings of the runs, each once, in lines that fit a figure."""
    notes = dict.fromkeys(settings_note(result) for result in results.values())
    return [line for note in notes for line in textwrap.wrap(note, 150)]


def _point(result: Mapping[str, Any], x, y) -> bool:
    """Whether the main checkpoint has both numbers of a panel, each with its label."""
    main = main_checkpoint(result)
    return None not in (x[0](result, main), y[0](result, main))


def _scatter(axis: "Axes", results: Results, x, y) -> None:
    last = []
    for index, (name, result) in enumerate(results.items()):
        main = main_checkpoint(result)
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[(index // len(COLOURS) + index) % len(MARKERS)],
            "linestyle": "none",
        }
        there = (x(result, main), y(result, main))
        if None in there:
            continue
        last.append(there)
        axis.plot(*there, label=name, markersize=7, zorder=3, **style)
        best = (x(result, "best"), y(result, "best")) if "best" in result["checkpoints"] else None
        if best is not None and None not in best and best != there:
            axis.plot(*best, markersize=7, fillstyle="none", zorder=3, **style)
            axis.plot(
                *zip(there, best, strict=True), color=style["color"], linewidth=0.8, alpha=0.6
            )
    found = correlation(*zip(*last, strict=True)) if last else None
    if found is not None:
        text = f"Pearson {found.pearson:.2f} (p {found.pearson_p:.1g}), "
        text += f"Spearman {found.spearman:.2f} (p {found.spearman_p:.1g})"
        axis.set_title(text, fontsize=8)
    axis.margins(0.12)
    axis.locator_params(axis="x", nbins=5)
    _clean(axis)


def flatness_training(results: Results) -> "Figure":
    """Flatness through training (Stutz et al., ICCV 2021, Figure 6).

    Args:
        results: By name of the run, what ``awp-jax flatness --checkpoints=every`` writes.

    Returns:
        Robust loss, both flatness measures and, where it was measured, the largest eigenvalue of
        the Hessian over epochs; then robust loss against average-case flatness, epoch by epoch.
    """
    part = main_set(results)
    panels = [("loss", "robust loss (nats)"), ("average", "average-case flatness (nats)")]
    panels.append(("worst_case", "worst-case flatness (nats)"))
    if any("hessian" in m.get(part, {}) for r in results.values() for m in training(r)):
        panels.append(("hessian", "top Hessian eigenvalue"))
    columns = (len(panels) + 2) // 2
    figure = new_figure(3.8 * columns, 6)
    axes = figure.subplots(2, columns).ravel()
    for index, (name, result) in enumerate(results.items()):
        colour = COLOURS[index % len(COLOURS)]
        for axis, (measure, label) in zip(axes, panels, strict=False):
            for where, style in ((part, "-"), ("train", "--")):
                if where == part and style == "--":
                    continue
                line = [(m["epoch"], _measure(m.get(where), measure)) for m in training(result)]
                line = [point for point in line if point[1] is not None]
                if line:
                    axis.plot(
                        *zip(*line, strict=True),
                        style,
                        color=colour,
                        marker=MARKERS[index % len(MARKERS)],
                        fillstyle="full" if where == part else "none",
                        markersize=4,
                        label=f"{name}, {where}",
                    )
            axis.set_xlabel("epoch")
            axis.locator_params(axis="x", integer=True)
            axis.set_ylabel(label)
            _clean(axis)
    last = axes[len(panels)]
    shades: Any = None
    for index, result in enumerate(results.values()):
        found = [m for m in training(result) if part in m]
        x, y = ([m[part][name] for m in found] for name in ("average", "loss"))
        last.plot(x, y, color="0.7", linewidth=0.8, zorder=1)
        shades = last.scatter(
            x,
            y,
            c=[m["epoch"] for m in found],
            cmap="viridis",
            marker=MARKERS[index % len(MARKERS)],
            vmin=0,
            vmax=max(m["epoch"] for r in results.values() for m in training(r)),
            edgecolors="black",
            linewidths=0.5,
            zorder=2,
        )
    figure.colorbar(shades, ax=last, label="epoch")
    last.set_xlabel(f"average-case flatness, {part} (nats)")
    last.set_ylabel(f"robust loss, {part} (nats)")
    _clean(last)
    for axis in axes[len(panels) + 1 :]:
        axis.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    figure.suptitle("\n".join(_settings(results)), fontsize=8)
    return figure


def _measure(found: Mapping[str, Any] | None, name: str) -> float | None:
    if found is None or name not in found:
        return None
    return found[name]["eigenvalues"][0] if name == "hessian" else found[name]


def _clean(axis: "Axes") -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
