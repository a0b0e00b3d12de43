"""How XLA compiles: what is kept from earlier commands, and which convolutions a CPU runs."""

import functools
import hashlib
import os
import pathlib
import platform
import tempfile
import warnings
from typing import Any

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache

_CONVOLUTIONS = "xla_cpu_experimental_ynn_fusion_type"
# The releases that know the CPU flags set here and in the tests; others end the process for them.
_KNOWN_RELEASES = "0.10."
# Seconds of compilation from which a program is kept: attacks have many that take less than JAX's
# own limit.
_KEEPS_FROM, _JAX_KEEPS_FROM = 0.2, 1.0

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
    """Has JAX keep what it compiles in the user's cache directory, from now on.

    The folder is ``awp_jax/xla/...`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; to delete it is always
    safe. A user's choice stays: ``JAX_COMPILATION_CACHE_DIR`` or its setting in ``jax.config``
    wins, and ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off. Commands and ``awp_jax.runs``
    call this; importing the library does not.

    JAX finds a program by its text, its options, ``XLA_FLAGS``, the version of jaxlib and the kind
    of device. On a CPU the last is not enough: machines with other instructions may share a home.
    So the folder is named after the machine.

    Warns:
        UserWarning: When the folder cannot be written; the work goes on without it.
    """
    if not keeps_programs() or _setting("jax_compilation_cache_dir") is not None:
        return
    try:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = root / "awp_jax" / "xla" / _machine()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warnings.warn(
            f"Nothing is kept of what is compiled, so every start takes longer: {error}.",
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _setting("jax_persistent_cache_min_compile_time_secs") == _JAX_KEEPS_FROM:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _KEEPS_FROM)
    # JAX looks for a folder when it first compiles, which a notebook may have done long ago.
    compilation_cache.reset_cache()


def keeps_programs() -> bool:
    """Whether JAX keeps what it compiles where it has a folder for it."""
    return bool(_setting("jax_enable_compilation_cache"))


def _setting(name: str) -> Any:
    return getattr(jax.config, name, None)  # which type checkers do not know


def _machine() -> str:
    """What CPU code depends on, as the name of a folder."""
    machine = platform.platform() + platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        machine += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(machine.encode()).hexdigest()[:16]


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
