"""From one device to many: the mesh, who holds what, and how a process joins the others.

Everything is one program with the global view: ``jax.jit`` over a mesh with the one axis
``"data"``, batches split along it, all else replicated. JAX inserts the communication.
"""

from awp_jax.parallel._mesh import (
    AXIS,
    batch_sharding,
    data_mesh,
    follow,
    mesh_of,
    place,
    replicated,
    shards,
    to_host,
)
from awp_jax.parallel._processes import (
    HEARTBEAT,
    LOST,
    DistributedError,
    initialize,
    is_main,
    leave,
    lost_another,
    main_says,
)

__all__ = [
    "AXIS",
    "DistributedError",
    "HEARTBEAT",
    "LOST",
    "batch_sharding",
    "data_mesh",
    "follow",
    "initialize",
    "is_main",
    "leave",
    "lost_another",
    "main_says",
    "mesh_of",
    "place",
    "replicated",
    "shards",
    "to_host",
]
