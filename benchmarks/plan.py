"""Compiles a training step for a GPU on a machine that has none, and lists what would run there.

    python3.12 -m venv .venv-gpu && .venv-gpu/bin/pip install -e '.[train]' 'jax[cuda13]'  # 3 GB
    .venv-gpu/bin/python benchmarks/plan.py [--model=preact-resnet-18] [--image=32] [--batch=128]
        [--mesh=data:1] [--objective=at] [--method=awp|none] [--dtype=bfloat16] [--label=TEXT]
        [--quick]

XLA's compiler for GPUs needs no GPU, but a description of one (``jax.experimental.topologies``),
here of an H100. The program that comes out has the kernels that would run, how often (loops turn as
often as they say) and the arrays that each reads and writes; missing is only what cuDNN chooses by
timing. The milliseconds are a sum over kernels of bytes over ``BANDWIDTH``, at least ``FLOOR``
each; convolutions, whose time is computing, count as the others. It compares two versions of a step
and predicts no time: on an H200 a profile of the step of November 2026 had 3,800 kernels where the
plan says 4,202, and took 24.6 ms where it says 17.8.

A plan takes two to seven minutes on two cores. Rows of ``plan.json`` are replaced by model, batch,
objective, method, dtype and label; README.md gets the table. ``--quick`` plans a small network and
writes nothing. Where jax has no CUDA plugin it says so and ends with exit status 0, so that it can
be part of ``make benchmark`` anywhere.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import time

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there is no driver to check

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from hlo import bytes_of, computations, inner, instruction  # noqa: E402
from readme import write_section  # noqa: E402
from training import peak_bytes  # noqa: E402

from awp_jax import models, objectives, parallel, training  # noqa: E402
from awp_jax.reporting import markdown_table  # noqa: E402

BANDWIDTH = 3.0e12  # bytes per second that a kernel reaches on an H100
FLOOR = 2.6e-6  # seconds of the smallest kernel, its launch in a stream of others
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 15 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Operations that launch nothing.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
FREE |= {"partition-id", "while", "conditional", "call"}
NAMES = {"fusion:kInput": "reduction", "fusion:kLoop": "elementwise", "fusion:kCustom": "fusion"}
NAMES |= {"__cudnn$convForward": "convolution", "__cudnn$convBackwardInput": "convolution"}
NAMES |= {
    "__cudnn$convBackwardFilter": "convolution",
    "__cudnn$convBiasActivationForward": "convolution",
}
SHOWN = ("convolution", "reduction", "elementwise")  # kinds with a column of their own
KEY = ("model", "image", "batch", "mesh", "objective", "method", "dtype", "label")


def kernels(found, name="ENTRY", times=1):
    """``(kind, how often it runs, bytes that it reads and writes)`` of every kernel."""
    shapes, rows = {}, []
    for line in found[name]:
        parsed = instruction(line)
        if parsed is None:
            continue
        result, kind, operation, operands = parsed
        shapes[result] = kind
        for body, turns in inner(line):
            rows += kernels(found, body, times * turns)
        if operation not in FREE:
            moved = bytes_of(kind) + sum(bytes_of(shapes.get(o, "")) for o in operands)
            rows.append((_kind(operation, line), times, moved))
    return rows


def _kind(operation, line):
    for mark in ('custom_call_target="', "kind="):
        if mark in line:
            word = line.split(mark)[1].split('"')[0].split(",")[0].split(" ")[0]
            full = word if mark.startswith("custom") else f"{operation}:{word}"
            return NAMES.get(full, full)
    return operation


def described_mesh(shape):
    """A mesh of H100 that are only described, as ``parallel.mesh`` names it."""
    from jax.experimental import topologies

    axes = parallel.axes_of(shape)
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology=f"1x{math.prod(axes.values())}x1"
    )
    devices = np.array(topology.devices).reshape(list(axes.values()))
    return jax.sharding.Mesh(devices, tuple(axes))


def compiled_step(o):
    """The program of a step, on one H100 or on each of a mesh of them."""
    mesh = described_mesh(o.mesh)
    everywhere = parallel.replicated(mesh)
    classifier = models.create(
        o.model,
        image_shape=(o.image, o.image, 3),
        num_classes=10 if o.image == 32 else 1000,
        dtype=o.dtype,
        mean=(0.49, 0.48, 0.45),
        std=(0.25, 0.24, 0.26),
    )
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
    step = training.make_train_step(
        classifier,
        objectives.create(o.objective),
        optimizer,
        weights=training.WeightPerturbation(o.method, gamma=0.01),
        mesh=mesh,
        unroll=False,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda k: training.init_state(classifier, optimizer, k), key)
    rows = o.batch * mesh.size
    images = jax.ShapeDtypeStruct((rows, o.image, o.image, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    split, places = parallel.batch_sharding(mesh, rows), parallel.state_sharding(mesh, state)
    arguments = jax.tree.map(
        lambda a, at: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at),
        (state, images, labels, key),
        (places, split, split, everywhere),
    )
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere))
    traced = step.trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).compile()


def plan(o):
    """One row of ``plan.json``."""
    began = time.perf_counter()
    program = compiled_step(o)
    text = program.as_text()
    if o.hlo:
        pathlib.Path(o.hlo).write_text(text)
    kinds = collections.defaultdict(lambda: [0, 0, 0.0])
    for kind, times, moved in kernels(computations(text)):
        row = kinds[kind]
        row[0] += times
        row[1] += times * moved
        row[2] += times * max(FLOOR, moved / BANDWIDTH)
    total = [sum(row[i] for row in kinds.values()) for i in range(3)]
    ordered = sorted(kinds.items(), key=lambda item: -item[1][2])
    return {
        **{name: getattr(o, name) for name in KEY},
        "jax": jax.__version__,
        "gpu": "H100, described",
        "kernels": total[0],
        "gigabytes": round(total[1] / 1e9, 3),
        "milliseconds": round(1e3 * total[2], 3),
        "memory_gigabytes": round(peak_bytes(program) / 1e9, 3),
        "kinds": {
            kind: {"kernels": r, "gigabytes": round(b / 1e9, 3), "milliseconds": round(1e3 * s, 3)}
            for kind, (r, b, s) in ordered
        },
        "compiled_in_seconds": round(time.perf_counter() - began, 1),
    }


def table(rows):
    """Of all plans, for README.md."""
    header = [*KEY, "kernels", "GB moved", "ms by bytes", "GB held"]
    header += ["convolutions", "reductions", "elementwise"]
    cells = []
    for row in rows:
        counts = [row["kinds"].get(k, {}).get("kernels", 0) for k in SHOWN]
        cells.append(
            [*(str(row[name]) for name in KEY), f"{row['kernels']:,}"]
            + [f"{row['gigabytes']:.1f}", f"{row['milliseconds']:.1f}"]
            + [f"{row['memory_gigabytes']:.1f}" if "memory_gigabytes" in row else ""]
            + list(map(str, counts))
        )
    return markdown_table(header, cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="preact-resnet-18")
    parser.add_argument("--image", type=int, default=32, help="width; beside 32: 1000 classes")
    parser.add_argument("--batch", type=int, default=128, help="images on each device")
    parser.add_argument("--mesh", default="data:1", help="or data:8, or data:1,fsdp:8")
    parser.add_argument("--objective", default="at")
    parser.add_argument("--method", default="awp")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--label", default="now", help="which version of the step")
    parser.add_argument("--hlo", help="a file for the program itself")
    parser.add_argument("--out", default=pathlib.Path(__file__).with_name("plan.json"))
    parser.add_argument("--quick", action="store_true", help="a small network, nothing written")
    parser.add_argument("--tables-only", action="store_true", help="from the JSON file")
    o = parser.parse_args()
    if o.tables_only:
        write_tables(json.loads(pathlib.Path(o.out).read_text()))
        return
    if not any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13)):
        print("No plan: jax has no CUDA plugin here (pip install 'jax[cuda13]', Python 3.12).")
        return
    if o.quick:
        o.model, o.batch = "preact-resnet-10", 16
    row = plan(o)
    print(json.dumps(row, indent=1))
    if o.quick:
        return
    path = pathlib.Path(o.out)
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if any(old[name] != row[name] for name in KEY)] + [row]
    rows.sort(key=lambda r: (r["model"], r["batch"], r["objective"], r["label"]))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    if path == pathlib.Path(__file__).with_name("plan.json"):
        write_tables(rows)


def write_tables(rows):
    words = (
        "## Plans for an H100\n\n`python benchmarks/plan.py` (its head says what is needed):\n"
        "kernels of one training step, how often each runs, and the bytes they move, from the\n"
        "program that XLA compiles for a GPU that is only described; and what the device holds\n"
        "while it runs. Not a measurement: it compares versions of the step, here with jax\n"
        f"{rows[0]['jax']}.\n\n"
    )
    write_section("plan", words + table(rows))


if __name__ == "__main__":
    main()
