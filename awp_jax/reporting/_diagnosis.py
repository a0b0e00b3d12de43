"""The figure of a diagnosis."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from awp_jax.panels import diagnosis_panels
from awp_jax.results import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def diagnosis_figure(diagnosis: Mapping[str, Any]) -> "Figure":
    """Robust accuracy against the radius and against the number of steps.

    Args:
        diagnosis: What ``awp-jax diagnose`` writes to ``diagnosis.json``.

    Returns:
        A matplotlib figure; save it with ``save_figure``.
    """
    figure = new_figure(7.5, 3.2)
    left, right = figure.subplots(1, 2, sharey=True)
    diagnosis_panels(left, right, diagnosis)
    return figure
