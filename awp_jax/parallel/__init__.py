"""From one device to many: the mesh, who holds what, and how a process joins the others.

Everything is one program with the global view: ``jax.jit`` over a mesh with the one axis
``"data"``, batches split along it, all else replicated. JAX inserts the communication.
"""

from awp_jax.parallel._mesh import AXIS as AXIS
from awp_jax.parallel._mesh import batch_sharding as batch_sharding
from awp_jax.parallel._mesh import data_mesh as data_mesh
from awp_jax.parallel._mesh import follow as follow
from awp_jax.parallel._mesh import mesh_of as mesh_of
from awp_jax.parallel._mesh import place as place
from awp_jax.parallel._mesh import replicated as replicated
from awp_jax.parallel._mesh import shards as shards
from awp_jax.parallel._mesh import to_host as to_host
from awp_jax.parallel._processes import HEARTBEAT as HEARTBEAT
from awp_jax.parallel._processes import LOST as LOST
from awp_jax.parallel._processes import DistributedError as DistributedError
from awp_jax.parallel._processes import initialize as initialize
from awp_jax.parallel._processes import is_main as is_main
from awp_jax.parallel._processes import leave as leave
from awp_jax.parallel._processes import lost_another as lost_another
from awp_jax.parallel._processes import main_says as main_says
