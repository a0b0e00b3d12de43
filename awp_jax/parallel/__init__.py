"""From one device to many: the mesh, who holds what, and how a process joins the others.

Everything is one program with the global view: ``jax.jit`` over a mesh with the axis ``"data"``,
batches split along it, all else replicated, or weights and what belongs to them split along a
second axis ``"fsdp"``. JAX inserts the communication.
"""

from awp_jax.parallel._mesh import (
    AXIS,
    FSDP,
    ONLY_DATA,
    axes_of,
    batch_axes,
    batch_sharding,
    data_mesh,
    follow,
    gathered,
    mesh_of,
    place,
    replicated,
    shards,
    sizes_of,
    split_axis,
    splits_weights,
    state_sharding,
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
    "FSDP",
    "HEARTBEAT",
    "LOST",
    "ONLY_DATA",
    "axes_of",
    "batch_axes",
    "batch_sharding",
    "data_mesh",
    "follow",
    "gathered",
    "initialize",
    "is_main",
    "leave",
    "lost_another",
    "main_says",
    "mesh_of",
    "place",
    "replicated",
    "shards",
    "sizes_of",
    "split_axis",
    "splits_weights",
    "state_sharding",
    "to_host",
]
