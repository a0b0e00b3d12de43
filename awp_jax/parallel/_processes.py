"""Several processes: how they join, who writes, and how they end when one of them is lost."""

import ctypes
import os
import re
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Exit status of a process that ends because another one did (75 is that of a preempted run).
LOST = 76
# Seconds without a sign of life after which a process counts as lost; JAX's own default is 100.
HEARTBEAT = 30
# Seconds that a process that fails leaves the others to fail by themselves.
_LAST_WORDS = 2.0

_LOST_TEXT = (
    "awp-jax: another process of this run has ended or cannot be reached, so this one ends too "
    f"(exit status {LOST}); the same command, started for all of them, goes on at the last "
    "checkpoint."
)
_NOT_JOINED_TEXT = (
    "awp-jax: joining the other processes failed: they were not all there in time, or process 0 "
    "cannot be reached at the coordinator's address."
)
# How communication that has failed is told of: Gloo on CPU, NCCL on GPU, the service everywhere.
_COMMUNICATION = re.compile(
    "gloo|nccl|coordination service|connection (closed|reset)|socket closed|barrier timed out"
    "|heartbeat|unhealthy",
    re.IGNORECASE,
)


class DistributedError(ValueError):
    """The processes of a run cannot work together; the message is one sentence that says why."""


def initialize(
    mode: str = "auto",
    *,
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    timeout: int = 300,
    heartbeat: int = HEARTBEAT,
    preemption: bool = True,
) -> None:
    """Joins the other processes of a run; must come before anything touches a device.

    Once it has joined, a process that JAX's runtime aborts, as it does when another one is lost,
    says so in one sentence and ends with status ``LOST``.

    Args:
        mode: ``"auto"``: joins when the environment says that there are several processes: more
            than one task of an ``srun`` step, more than one TPU worker (on Kubernetes), more than
            one process of an Open MPI launch. ``"true"``: joins as JAX finds out on SLURM,
            Kubernetes, TPU pods (whose machines say nothing in the environment) and under MPI.
            ``"false"``: never.
        coordinator: ``host:port`` of process 0, for processes started by hand; then the other two
            are needed as well.
        process_id: Number of this process, from 0.
        num_processes: How many there are.
        timeout: Seconds to wait for the others.
        heartbeat: Seconds without a sign of life after which another process counts as lost.
        preemption: Whether SIGTERM is but a notice that reaches all processes
            (``jax.experimental.multihost_utils.reached_preemption_sync_point``), for loops that ask
            for it; otherwise it ends the process, and the others count it as lost.

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
    jax.config.update("jax_enable_preemption_service", preemption)
    _explain_aborts(_on_abort_while_joining)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            _local_devices(explicit=not missing),
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat,
        )
    except Exception as error:
        _explain_aborts(None)  # as they were
        where = "" if coordinator is None else f" through {coordinator}"
        raise DistributedError(
            f"Joining the other processes{where} failed ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'})."
        ) from error
    _explain_aborts(_on_abort)


def _tasks_in_environment() -> int:
    """How many processes the launcher has started, as its environment says."""
    counts = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    workers = [len(os.environ.get(name, "").split(",")) for name in names]
    return max(*workers, *(int(count) for count in counts if count.isdigit()), 1)


def _local_devices(explicit: bool) -> list[int] | None:
    """Which GPUs of the machine are this process's: ``[]`` for all that it sees.

    ``None`` leaves it to JAX, which under SLURM and Open MPI takes one, numbered as the process is
    on its machine. That is wrong for the only process of a machine with several GPUs, and where the
    launcher shows each process a GPU of its own, which then has the number 0.
    """
    environment = os.environ.get
    if environment("JAX_LOCAL_DEVICE_IDS"):
        return None
    tasks = environment("SLURM_STEP_NUM_TASKS")
    alone = tasks is not None and tasks == environment("SLURM_STEP_NUM_NODES")
    alone = alone or environment("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    shown = environment("CUDA_VISIBLE_DEVICES", "")
    return [] if explicit or alone or (shown and "," not in shown) else None


def is_main() -> bool:
    """Whether this is the process that writes configs, metrics and tables."""
    return jax.process_index() == 0


def main_says(value: bool) -> bool:
    """What process 0 has handed in, in every process; all of them must call this."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def lost_another(error: BaseException) -> bool:
    """Whether an error says that this process could not reach another one of its run."""
    if not jax.distributed.is_initialized() or isinstance(error, DistributedError):
        return False
    told: BaseException | None = error
    while told is not None:
        if _COMMUNICATION.search(str(told)):
            return True
        told = told.__cause__ or told.__context__
    return False


def leave(status: int) -> int:
    """Ends this process at once where there are several; otherwise hands ``status`` back.

    The ordinary end waits for the other processes, and they may be waiting for this one.

    Args:
        status: Exit status; ``LOST`` also says why, on standard error.
    """
    if not jax.distributed.is_initialized():
        return status
    if status == LOST:
        print(_LOST_TEXT, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if status != LOST:
        # What has failed here mostly fails in all (a loss that is NaN): none shall find another
        # one lost before it has come to its own end.
        ending = _Handler(lambda number: os._exit(status))
        _explain_aborts(ending)
        time.sleep(_LAST_WORDS)
    os._exit(status)


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_Handler
def _on_abort_while_joining(number: int) -> None:
    os.write(2, f"{_NOT_JOINED_TEXT}\n".encode())
    os._exit(2)


@_Handler
def _on_abort(number: int) -> None:
    os.write(2, f"{_LOST_TEXT}\n".encode())
    os._exit(LOST)


def _explain_aborts(handler: Any) -> None:
    """Makes the abort of JAX's runtime one sentence and a status of its own.

    Its service aborts in C++ when another process is lost, and takes no Python function to call
    then. A Python signal handler would not do: it runs only when the abort is over.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
