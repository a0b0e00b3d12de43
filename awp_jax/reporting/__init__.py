"""Tables and figures, made from the files of run directories alone."""

from awp_jax.reporting._curves import learning_curves as learning_curves
from awp_jax.reporting._curves import save_figure as save_figure
from awp_jax.reporting._diagnosis import diagnosis_figure as diagnosis_figure
from awp_jax.reporting._landscape import landscape_comparison as landscape_comparison
from awp_jax.reporting._landscape import landscape_figure as landscape_figure
from awp_jax.reporting._landscape import landscape_training_figure as landscape_training_figure
from awp_jax.reporting._landscape_data import landscape_table as landscape_table
from awp_jax.reporting._landscape_data import read_landscape as read_landscape
from awp_jax.reporting._landscape_data import robust_accuracies as robust_accuracies
from awp_jax.reporting._tables import attack_table as attack_table
from awp_jax.reporting._tables import evaluation_table as evaluation_table
from awp_jax.reporting._tables import markdown_table as markdown_table
