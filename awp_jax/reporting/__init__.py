"""Tables and figures, made from the files of run directories alone."""

from awp_jax.reporting._curves import learning_curves as learning_curves
from awp_jax.reporting._curves import save_figure as save_figure
from awp_jax.reporting._diagnosis import diagnosis_figure as diagnosis_figure
from awp_jax.reporting._flatness import flatness_figures as flatness_figures
from awp_jax.reporting._flatness import flatness_scatter as flatness_scatter
from awp_jax.reporting._flatness import flatness_training as flatness_training
from awp_jax.reporting._flatness_tables import Correlation as Correlation
from awp_jax.reporting._flatness_tables import Group as Group
from awp_jax.reporting._flatness_tables import correlation as correlation
from awp_jax.reporting._flatness_tables import flatness_report as flatness_report
from awp_jax.reporting._flatness_tables import flatness_table as flatness_table
from awp_jax.reporting._flatness_tables import group_table as group_table
from awp_jax.reporting._flatness_tables import robustness_groups as robustness_groups
from awp_jax.reporting._landscape import landscape_comparison as landscape_comparison
from awp_jax.reporting._landscape import landscape_figure as landscape_figure
from awp_jax.reporting._landscape import landscape_training_figure as landscape_training_figure
from awp_jax.reporting._landscape_data import landscape_table as landscape_table
from awp_jax.reporting._landscape_data import read_landscape as read_landscape
from awp_jax.reporting._landscape_data import robust_accuracies as robust_accuracies
from awp_jax.reporting._tables import attack_table as attack_table
from awp_jax.reporting._tables import evaluation_table as evaluation_table
from awp_jax.reporting._tables import markdown_table as markdown_table
from awp_jax.reporting._weights import gamma_figure as gamma_figure
from awp_jax.reporting._weights import histogram_figure as histogram_figure
from awp_jax.reporting._weights import pac_bayes_figure as pac_bayes_figure
