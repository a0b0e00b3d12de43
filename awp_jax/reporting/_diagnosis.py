"""The figure of a diagnosis."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def diagnosis_figure(diagnosis: Mapping[str, Any]) -> "Figure":
    """Robust accuracy against the radius and against the number of steps.

    Args:
        diagnosis: What ``awp-jax diagnose`` writes to ``diagnosis.json``.

    Returns:
        A matplotlib figure; save it with ``save_figure``.
    """
    from matplotlib.figure import Figure  # slow to import: only where something is drawn

    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    percent = [100 * value for value in diagnosis["by_epsilon"]]
    left.plot(diagnosis["epsilons"], percent, marker="o", color="#0072B2", label="PGD-20")
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
    right.plot(diagnosis["steps"], percent, marker="o", color="#0072B2", label="PGD")
    styles = {"square": ("#D55E00", "--"), "transfer": ("#009E73", ":")}
    for name, value in diagnosis["others"].items():
        colour, style = styles[name]
        right.axhline(100 * value, color=colour, linestyle=style, label=name)
    right.set_xlabel(f"steps at epsilon {diagnosis['epsilon']:.4g}")
    right.set_xscale("log")
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
