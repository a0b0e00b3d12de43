"""Tables and figures, made from the files of run directories alone."""

from awp_jax.reporting._curves import learning_curves as learning_curves
from awp_jax.reporting._curves import save_figure as save_figure
from awp_jax.reporting._diagnosis import diagnosis_figure as diagnosis_figure
from awp_jax.reporting._tables import attack_table as attack_table
from awp_jax.reporting._tables import evaluation_table as evaluation_table
from awp_jax.reporting._tables import markdown_table as markdown_table
