"""Tables and figures, made from the files of run directories alone."""

from awp_jax.reporting._curves import (
    evaluation_note,
    learning_curves,
    noise_note,
    save_figure,
)
from awp_jax.reporting._diagnosis import diagnosis_figure
from awp_jax.reporting._flatness import (
    flatness_bars,
    flatness_figures,
    flatness_scatter,
    flatness_training,
)
from awp_jax.reporting._flatness_tables import (
    Correlation,
    Group,
    correlation,
    flatness_report,
    flatness_table,
    group_table,
    robustness_groups,
)
from awp_jax.reporting._landscape import (
    landscape_comparison,
    landscape_figure,
    landscape_panel,
    landscape_training_figure,
)
from awp_jax.reporting._landscape_data import (
    Measured,
    landscape_table,
    read_landscape,
    robust_accuracies,
)
from awp_jax.reporting._seeds import seed_table
from awp_jax.reporting._style import COLOURS, MARKERS
from awp_jax.reporting._tables import (
    accuracy_panel,
    attack_table,
    comparison_panel,
    evaluation_table,
    falls_after_best,
    markdown_table,
)
from awp_jax.reporting._weights import gamma_figure, histogram_figure, pac_bayes_figure

__all__ = [
    "Measured",
    "COLOURS",
    "Correlation",
    "Group",
    "MARKERS",
    "accuracy_panel",
    "attack_table",
    "comparison_panel",
    "correlation",
    "diagnosis_figure",
    "evaluation_note",
    "evaluation_table",
    "falls_after_best",
    "flatness_bars",
    "flatness_figures",
    "flatness_report",
    "flatness_scatter",
    "flatness_table",
    "flatness_training",
    "gamma_figure",
    "group_table",
    "histogram_figure",
    "landscape_comparison",
    "landscape_figure",
    "landscape_panel",
    "landscape_table",
    "landscape_training_figure",
    "learning_curves",
    "markdown_table",
    "noise_note",
    "pac_bayes_figure",
    "read_landscape",
    "robust_accuracies",
    "robustness_groups",
    "save_figure",
    "seed_table",
]
