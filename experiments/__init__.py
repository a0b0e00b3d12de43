"""The papers' tables and figures: ``python -m experiments.run PAPER.TABLE --workdir=...``.

One module per paper says which cells a table or a figure has (a config of ``configs/``, seeds, what
is measured); the published values lie in ``values/``. Nothing in ``awp_jax`` imports this.
"""

from experiments._build import experiment, names
from experiments._cells import Cell, Entry, Experiment
from experiments._scales import SCALES, Scale
from experiments._values import Value, paper_table, paper_values

__all__ = ["Cell", "Entry", "Experiment", "SCALES", "Scale", "Value"]
__all__ += ["experiment", "names", "paper_table", "paper_values"]
