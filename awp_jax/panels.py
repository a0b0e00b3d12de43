"""Single panels: what figures and the ``plot`` of results are drawn with."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Okabe-Ito: told apart by colour-blind people.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def clean(axes: Any) -> None:
    """A faint grid, and no frame above and to the right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def curve(
    panel: Any,
    axis: Any,
    losses: Any,
    colour: Any,
    style: str,
    marker: str,
    label: str,
    band: bool = True,
) -> None:
    """Draws the mean over draws, with one standard deviation around it.

    Args:
        panel: Matplotlib axes.
        axis: Coordinates ``[points]``.
        losses: ``[draws, points]``.
        colour, style, marker, label: Of matplotlib.
        band: Whether to draw the deviation.
    """
    mean, spread = losses.mean(axis=0), losses.std(axis=0)
    every = max(1, len(axis) // 10)
    panel.plot(
        axis, mean, style, color=colour, marker=marker, markevery=every, markersize=4, label=label
    )
    if band and len(losses) > 1:
        panel.fill_between(axis, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)


def levels_of(changes: Iterable[np.ndarray]) -> np.ndarray:
    """Levels closer near 0, so that flat and sharp planes can share them; a bowl has even rings."""
    top = max(float(np.nanmax(c)) for c in changes) or 1.0
    return top * np.linspace(0, 1, 13) ** 2


def contour(panel: Any, first: Any, second: Any, change: np.ndarray, levels: np.ndarray) -> Any:
    """Draws a plane as filled contours, every other level as a line.

    Args:
        panel: Matplotlib axes.
        first, second: Coordinates of the axes of ``change``.
        change: At least 0, ``[len(first), len(second)]``.
        levels: See ``levels_of``.

    Returns:
        What a colour bar takes.
    """
    from matplotlib.colors import PowerNorm  # slow to import: only where something is drawn

    norm = PowerNorm(0.5, 0, levels[-1])
    drawn = panel.contourf(first, second, change.T, levels, cmap="viridis", norm=norm)
    inside = [level for level in levels[2::2] if np.nanmin(change) < level < np.nanmax(change)]
    if inside:
        # Every other level of the colour bar, for print in grey; labels would be cut at the border.
        panel.contour(first, second, change.T, inside, colors="white", linewidths=0.7)
    panel.set_aspect("equal")
    return drawn


def diagnosis_panels(left: Any, right: Any, diagnosis: Mapping[str, Any]) -> None:
    """Draws robust accuracy against the radius, and against the number of steps.

    Args:
        left, right: Matplotlib axes.
        diagnosis: See ``awp_jax.evaluation.Diagnosis.as_dict``.
    """
    percent = [100 * value for value in diagnosis["by_epsilon"]]
    left.plot(diagnosis["epsilons"], percent, marker="o", color=COLOURS[0], label="PGD-20")
    left.axvline(diagnosis["epsilon"], color="0.6", linewidth=0.8)
    left.set_xlabel(f"{diagnosis['norm']} epsilon")
    # Radii double from point to point: evenly spaced, each with its value.
    left.set_xscale("symlog", base=2, linthresh=diagnosis["epsilon"] / 2)
    left.set_xticks(diagnosis["epsilons"], [f"{e:.3g}" for e in diagnosis["epsilons"]])
    left.set_xticks([], minor=True)
    left.set_xlim(left=-diagnosis["epsilon"] / 8)
    left.margins(x=0.05)
    left.set_ylabel("robust accuracy (%)")
    percent = [100 * value for value in diagnosis["by_steps"]]
    right.plot(diagnosis["steps"], percent, marker="o", color=COLOURS[0], label="PGD")
    styles = {"square": (COLOURS[1], "--"), "transfer": (COLOURS[2], ":")}
    for name, value in diagnosis["others"].items():
        colour, style = styles[name]
        right.axhline(100 * value, color=colour, linestyle=style, label=name)
    right.set_xlabel(f"steps at epsilon {diagnosis['epsilon']:.4g}")
    right.set_xscale("log")
    right.legend()
    for axis in (left, right):
        clean(axis)


def gamma_curves(
    axes: Any, gammas: Any, adversarial: Any, random: Any, name: str, colour: str, marker: str
) -> None:
    """Draws loss over the size of the perturbation: under AWP, and at random with its range.

    Args:
        axes: Matplotlib axes.
        gammas: ``[gammas]``.
        adversarial: Losses ``[gammas]``, nats.
        random: Losses ``[gammas, draws]``, nats.
        name: Before the labels; may be empty.
        colour, marker: Of matplotlib.
    """
    style = {"color": colour, "marker": marker, "markersize": 4}
    before = f"{name}, " if name else ""
    axes.plot(gammas, adversarial, "-", label=f"{before}AWP", **style)
    axes.plot(gammas, random.mean(1), "--", fillstyle="none", label=f"{before}random", **style)
    axes.fill_between(gammas, random.min(1), random.max(1), color=colour, alpha=0.15)


def finish_gammas(axes: Any) -> None:
    """Scales of an axes that ``gamma_curves`` has drawn on."""
    axes.set_xscale("symlog", linthresh=0.001)
    axes.set_xlabel("gamma: size of the perturbation relative to the weights")
    axes.set_yscale("log")
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks("{x:g}")


def histogram(axes: Any, counts: Any, edges: Any, **style: Any) -> None:
    """Draws the density of weights.

    Args:
        axes: Matplotlib axes.
        counts: ``[bins]``.
        edges: ``[bins + 1]``.
        **style: Of ``stairs``.
    """
    counts, edges = _coarse(counts, edges)
    axes.stairs(counts / counts.sum() / np.diff(edges), edges, linewidth=1.2, **style)
    axes.set_xlabel("weight")
    axes.set_ylabel("density")
    axes.spines[["top", "right"]].set_visible(False)


def _coarse(counts: Any, edges: Any) -> tuple[np.ndarray, np.ndarray]:
    """Fewer bins for small layers, whose single weights would be all one sees."""
    counts, edges = np.asarray(counts, float), np.asarray(edges)
    together = next(size for least, size in ((5000, 1), (500, 3), (0, 9)) if counts.sum() >= least)
    starts = np.arange(0, len(counts), together)
    return np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])


def losses_against(axes: Any, losses: Any, what: str, reference: float) -> None:
    """Draws mean losses of draws or restarts as points, and the reference as a line.

    Args:
        axes: Matplotlib axes.
        losses: ``[draws]``, in nats.
        what: Each is of.
        reference: In nats.
    """
    places = np.arange(1, len(losses) + 1)
    axes.plot(places, losses, "o", color=COLOURS[0], label=f"each {what}")
    axes.axhline(reference, color=COLOURS[1], linestyle="--", label="reference")
    axes.set_xlabel(what)
    axes.locator_params(axis="x", integer=True)
    axes.set_ylabel("mean loss (nats)")
    axes.legend()
    clean(axes)


def accuracy_bars(axes: Any, values: Mapping[str, float], label: str) -> None:
    """Draws one bar for each name, in percent, with its number above it.

    Args:
        axes: Matplotlib axes.
        values: In [0, 1], by name.
        label: Of the vertical axis.
    """
    bars(axes, {"": [100 * value for value in values.values()]}, list(values), label, "{:.1f}")
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))


def bars(
    axes: Any,
    groups: Mapping[str, Sequence[float]],
    names: Sequence[str],
    label: str,
    form: str = "{:.3g}",
) -> None:
    """Draws bars side by side: for each name one of every group.

    Args:
        axes: Matplotlib axes.
        groups: Heights by group, one for each name; NaN is left out.
        names: Below the bars.
        label: Of the vertical axis.
        form: Of the number above a bar.
    """
    width = 0.8 / max(len(groups), 1)
    places = np.arange(len(names))
    for index, (group, heights) in enumerate(groups.items()):
        where = places + (index - (len(groups) - 1) / 2) * width
        drawn = axes.bar(
            where, heights, 0.95 * width, color=COLOURS[index % len(COLOURS)], label=group or None
        )
        texts = ["" if height != height else form.format(height) for height in heights]
        axes.bar_label(drawn, texts, fontsize=8, padding=2)
    many = len(names) > 4 or any(len(name) > 12 for name in names)
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if many else {}
    axes.set_xticks(places, names, **turned)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    if any(groups):
        axes.legend(fontsize=8)
