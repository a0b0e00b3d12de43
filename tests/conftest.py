"""Settings for the whole suite."""

import atexit
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import pytest

from awp_jax.compilation import knows_cpu_flags, use_fast_convolutions

# Tests compile far more than they compute: cheap code generation halves their time, and without
# XLA's own fusion kernels the rest takes a third. One piece instead of 32 to generate code for in
# parallel is a third less again where all cores are busy with tests. XLA reads them when a device
# is first used.
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if knows_cpu_flags():
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
    _FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

use_fast_convolutions()  # as the commands do

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same small programs are compiled by many tests: compile each once per test session, in a
# folder that all its processes share and the first one removes.
if "AWP_JAX_TEST_CACHE" not in os.environ:
    os.environ["AWP_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="awp-jax-xla-")
    atexit.register(shutil.rmtree, os.environ["AWP_JAX_TEST_CACHE"], ignore_errors=True)
_CACHE = os.environ["AWP_JAX_TEST_CACHE"]
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Several fake devices, so that sharded and mapped code is exercised everywhere.
jax.config.update("jax_num_cpu_devices", 8)
# What does not ask for more runs on one: eight programs on two cores take their time.
jax.config.update("jax_default_device", jax.devices()[0])


def pytest_collection_finish():
    """Looks for garbage less often: tracing makes many objects that live, which Python would count
    again and again, a fifth of the time of tests that compile much."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Lets go of compiled programs before there are too many of them.

    Each takes some memory maps, of which Linux gives a process 65,530: beyond, XLA crashes.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_root():
    """The folder with real data sets, or a skip."""
    fallback = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    root = pathlib.Path(os.environ.get("AWP_JAX_DATA", fallback))
    if not root.is_dir():
        pytest.skip("no real data: set AWP_JAX_DATA to a folder with mnist/ and cifar10/")
    return root


@pytest.fixture(scope="session")
def cifar10_dir(data_root, tmp_path_factory):
    """The folder cifar-10-batches-py with the original pickles, restored where need be."""
    source = data_root / "cifar10"
    for folder in (source / "cifar-10-batches-py", source):
        if (folder / "test_batch").is_file():
            return folder
    restore = data_root / "restore.py"
    if not restore.is_file() or not source.is_dir():
        pytest.skip(f"no CIFAR-10 in {source}")
    out = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(restore), "--out", str(out)], check=True)
    return out / "cifar-10-batches-py"
