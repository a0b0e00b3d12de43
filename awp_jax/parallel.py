"""From one device to many: the mesh, who writes, and how a process joins the others.

Everything is one program with the global view: ``jax.jit`` over a mesh with the one axis
``"data"``, batches split along it, all else replicated. JAX inserts the communication.
"""

import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


class DistributedError(ValueError):
    """The processes of a run cannot work together; the message is one sentence that says why."""


def initialize(
    mode: str = "auto",
    *,
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins the other processes of a run; must come before anything touches a device.

    Args:
        mode: ``"auto"``: joins when the environment says that there are several processes: more
            than one task of an ``srun`` step, more than one TPU worker, more than one process of
            an Open MPI launch. ``"true"``: joins as JAX finds out on SLURM, Kubernetes, TPU pods
            and under MPI. ``"false"``: never.
        coordinator: ``host:port`` of process 0, for processes started by hand; then the other two
            are needed as well.
        process_id: Number of this process, from 0.
        num_processes: How many there are.
        timeout: Seconds to wait for the others.

    Raises:
        DistributedError: For half of the three arguments, numbers that do not fit, or when joining
            fails.
    """
    explicit = {"coordinator": coordinator, "process-id": process_id}
    explicit["num-processes"] = num_processes
    missing = [name for name, value in explicit.items() if value is None]
    if missing and len(missing) < len(explicit):
        raise DistributedError(
            f"--{missing[0]} is missing: --coordinator, --process-id and --num-processes belong "
            "together."
        )
    if not missing:
        assert process_id is not None and num_processes is not None and coordinator is not None
        if not 0 <= process_id < num_processes:
            raise DistributedError(
                f"process-id is {process_id}, but a number from 0 to {num_processes - 1} was "
                "expected."
            )
        if not coordinator.rpartition(":")[2].isdigit():
            raise DistributedError(
                f"coordinator is {coordinator!r}, but host:port was expected, such as "
                "10.0.0.1:1234."
            )
    elif mode == "false" or (mode == "auto" and _tasks_in_environment() < 2):
        return
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=timeout
        )
    except Exception as error:
        where = "" if coordinator is None else f" through {coordinator}"
        raise DistributedError(
            f"Joining the other processes{where} failed ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'})."
        ) from error


def _tasks_in_environment() -> int:
    """How many processes the launcher has started, as its environment says."""
    counts = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return max(len(workers), *(int(count) for count in counts if count.isdigit()), 1)


def is_main() -> bool:
    """Whether this is the process that writes configs, metrics and tables."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; nothing when there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the axis ``"data"`` over the devices of all processes.

    Args:
        devices: The first so many; ``None`` for all, or for the one that ``jax_default_device``
            names where somebody has chosen one.

    Returns:
        The mesh.

    Raises:
        ValueError: For more devices than there are, or for a part of them in a run of several
            processes.
    """
    there = jax.devices()
    chosen = getattr(jax.config, "jax_default_device", None)
    if devices is None and isinstance(chosen, jax.Device) and jax.process_count() == 1:
        there = [chosen]
    if devices is None:
        devices = len(there)
    if not 1 <= devices <= len(there):
        raise ValueError(
            f"devices is {devices}, but a number from 1 to {len(there)} was expected: so many "
            f"{there[0].platform} devices are there."
        )
    if jax.process_count() > 1 and devices != len(there):
        raise ValueError(
            f"devices is {devices}, but a run of {jax.process_count()} processes uses all "
            f"{len(there)} of theirs."
        )
    return Mesh(np.array(there[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Split along the leading axis; replicated where ``batch`` does not divide.

    The last batch of an epoch need not divide: every device then computes all of it, which
    costs one step's time and changes no number.
    """
    return NamedSharding(mesh, P(AXIS) if batch % mesh.size == 0 else P())


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh with a ``"data"`` axis that the arrays of ``tree`` lie on, if they lie on one."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and AXIS in sharding.mesh.axis_names:
            mesh = sharding.mesh
            return mesh if isinstance(mesh, Mesh) else None
    return None


def follow(model: Any, arrays: Iterable[Any]) -> tuple[Any, ...]:
    """Batches put where the parameters of ``model`` are, split along the ``"data"`` axis.

    Args:
        model: A pytree, such as the logits function of a classifier, whose parameters may lie on
            a mesh.
        arrays: Arrays ``[batch, ...]`` of one batch size.

    Returns:
        The arrays in their order; as they came when the model lies on no mesh, or on one of several
        processes, each of which then does the whole batch.
    """
    arrays = tuple(arrays)
    mesh = mesh_of(model)
    if mesh is None or mesh.size == 1 or jax.process_count() > 1:
        return arrays
    return tuple(jax.device_put(a, batch_sharding(mesh, a.shape[0])) for a in arrays)
