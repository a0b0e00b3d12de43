"""The papers' tables and figures: ``python -m experiments.run PAPER.TABLE --workdir=...``.

One module per paper says which cells a table or a figure has (a config of ``configs/``, seeds, what
is measured); the published values lie in ``values/``. Nothing in ``awp_jax`` imports this.
"""

from experiments._cells import Cell as Cell
from experiments._cells import Entry as Entry
from experiments._cells import Experiment as Experiment
from experiments._cells import NotAvailable as NotAvailable
from experiments._registry import experiment as experiment
from experiments._registry import names as names
from experiments._scales import SCALES as SCALES
from experiments._scales import Scale as Scale
from experiments._values import Value as Value
from experiments._values import paper_table as paper_table
from experiments._values import paper_values as paper_values
