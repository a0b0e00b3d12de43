"""How XLA compiles: what is kept from earlier commands, and which convolutions a CPU runs."""

import functools
import hashlib
import os
import pathlib
import platform
from typing import Any

import jax
import jaxlib

_CONVOLUTIONS = "xla_cpu_experimental_ynn_fusion_type"
# The releases that know the CPU flags set here and in the tests; others end the process for them.
_KNOWN_RELEASES = "0.10."


_compiled = [0.0]


def _count(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        _compiled[0] += duration_secs


@functools.cache
def _counting() -> None:
    jax.monitoring.register_event_duration_secs_listener(_count)


def compile_seconds() -> float:
    """How long JAX has traced and compiled in this process, since this was asked first."""
    _counting()
    return _compiled[0]


def knows_cpu_flags() -> bool:
    """Whether this jaxlib is of the one release line whose experimental CPU flags are used."""
    return jaxlib.__version__.startswith(_KNOWN_RELEASES)


def use_compilation_cache() -> None:
    """Points JAX to the user's cache directory, unless the user has chosen one already.

    ``JAX_COMPILATION_CACHE_DIR`` wins, and ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off.
    Code for a CPU runs on that kind of CPU only, so the folder is named after the machine.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    machine = platform.platform() + platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        machine += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    folder = root / "awp_jax" / "xla" / hashlib.sha256(machine.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written is no reason to stop
    jax.config.update("jax_compilation_cache_dir", str(folder))


def use_fast_convolutions() -> None:
    """Has XLA compute convolutions on CPU by Eigen instead of YNNPACK, from now on.

    jaxlib 0.10 gives them to YNNPACK, which runs part of them on one core: 1.5 times the time of
    an attack step of PreActResNet-18 on two cores, twice that of its weight gradient
    (benchmarks/NOTES.md). Changes ``XLA_FLAGS`` of this process, so it has an effect only before
    JAX first uses a device. A choice that the user has made there stays, and other releases of
    jaxlib are left alone: one that does not know the flag would end the process.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not knows_cpu_flags() or _CONVOLUTIONS in flags:
        return
    without = f"--{_CONVOLUTIONS}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    os.environ["XLA_FLAGS"] = f"{flags} {without}".strip()
