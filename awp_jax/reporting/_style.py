"""Colours and markers of all figures."""

from awp_jax.panels import COLOURS as COLOURS

# Markers and line styles tell curves apart in grey.
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES = ("-", "--", "-.", ":")
SETS = {"train": "--", "test": "-"}
