"""``awp-jax doctor``."""

import importlib.metadata
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import awp_jax
from awp_jax.attacks import PGD
from awp_jax.cli._command import Command
from awp_jax.cli._flags import declare_json, print_json
from awp_jax.compilation import keeps_programs
from awp_jax.data import DataError, dataset_names, load
from awp_jax.extras import BROUGHT_BY
from awp_jax.weights import awp

# What JAX runs on, and what the extras bring.
_PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
    "libtpu",
    "optax",
    "numpy",
    "scipy",
    "torch",
    *(package for package, _ in BROUGHT_BY.values()),
)
# Settings by which runs of the same command differ.
_SETTINGS = ("JAX_", "XLA_", "AWP_JAX_", "CUDA_VISIBLE_DEVICES", "TPU_")


def main(argv: Sequence[str]) -> int:
    """Examines this installation; returns the exit status, 1 where the self-test fails."""
    command = Command(
        "doctor",
        "Prints versions, devices, memory, which data is found, the compilation cache, and the\n"
        "result of a self-test of a few seconds: what a bug report should hold.",
    )
    declare_json(command)
    values = command.parse(argv)
    found = {
        "versions": _versions(),
        "machine": _machine(),
        "settings": {n: v for n, v in sorted(os.environ.items()) if n.startswith(_SETTINGS)},
        "data": _data(),
        "self-test": _self_test(),
    }
    if values["json"].value:
        print_json(found)
    else:
        print("\n\n".join(_section(title, lines) for title, lines in found.items()))
    return 0 if found["self-test"]["result"] == "passed" else 1


def _section(title: str, lines: dict[str, Any]) -> str:
    wide = max(map(len, lines), default=0)
    rows = [f"  {name.ljust(wide)}  {value}" for name, value in lines.items()]
    return "\n".join([title, *(rows or ["  none"])])


def _versions() -> dict[str, str]:
    found = {"awp_jax": awp_jax.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, str]:
    found = {"system": platform.platform(), "cores": str(os.cpu_count())}
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory"] = f"{pages / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        pass  # not every system says so
    for kind in sorted({device.device_kind for device in jax.devices()}):
        devices = [device for device in jax.devices() if device.device_kind == kind]
        statistics = devices[0].memory_stats() or {}
        limit = statistics.get("bytes_limit")
        memory = f", {limit / 2**30:.0f} GiB each for JAX" if limit else ""
        found[f"{devices[0].platform} devices"] = f"{len(devices)} x {kind}{memory}"
    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    if keeps_programs() and cache and pathlib.Path(cache).is_dir():
        sizes = [file.stat().st_size for file in pathlib.Path(cache).iterdir() if file.is_file()]
        found["compilation cache"] = f"{len(sizes)} files, {sum(sizes) / 2**20:.0f} MiB in {cache}"
    else:
        found["compilation cache"] = "off"
    return found


def _data() -> dict[str, str]:
    found = {}
    for name in dataset_names():
        if name in ("npz", "digits") or ":" in name:
            continue  # a file of one's own, part of scikit-learn, made by tensorflow-datasets
        try:
            splits = load(name)
            found[name] = f"{len(splits.train):,} training, {len(splits.test):,} test images"
        except DataError:
            found[name] = "not found"
    return found


def _self_test() -> dict[str, str]:
    """AWP and PGD on functions whose answers are known by hand, compiled on the first device."""
    began = time.perf_counter()
    # Loss (a^2 + 10 b^2) / 2 at w = (3, 4): gradient (3, 40), v = 5 (3, 40) / |(3, 40)|.
    weights = {"kernel": jnp.array([[3.0, 4.0]])}
    slope = np.array([1.0, 10.0])
    w = np.array([3.0, 4.0])
    v = 5.0 * slope * w / np.linalg.norm(slope * w)

    def loss(params: Any) -> jax.Array:
        return 0.5 * jnp.sum(jnp.asarray(slope, jnp.float32)[None] * params["kernel"] ** 2)

    optimizer = awp(optax.sgd(1.0), gamma=1.0)

    @jax.jit
    def step(params: Any) -> Any:
        state = optimizer.init(params)
        return optimizer.update(jax.grad(loss)(params), state, params, grad_fn=jax.grad(loss))[0]

    def logits_fn(images: jax.Array) -> jax.Array:
        return images.mean((1, 2, 3))[:, None] * jnp.array([[1.0, -1.0]])

    images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1])
    try:
        update = np.asarray(step(weights)["kernel"])[0]
        attacked = PGD(0.1, steps=5)(logits_fn, jax.random.key(0), images, labels).images
        right = np.allclose(update, -slope * (w + v), rtol=1e-5)
        right = right and np.allclose(attacked.mean((1, 2, 3)), [0.4, 0.6], rtol=1e-5)
        result = "passed" if right else "FAILED: AWP or PGD gives wrong numbers"
    except Exception as error:  # whatever is wrong with an installation is what is asked for
        result = f"FAILED: {type(error).__name__}: {error}"
    return {"result": result, "seconds": f"{time.perf_counter() - began:.1f}"}
