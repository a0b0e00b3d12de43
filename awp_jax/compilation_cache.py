"""A persistent compilation cache, so that a command does not compile what an earlier one has."""

import hashlib
import os
import pathlib
import platform

import jax


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
