"""Counts what the devices of a training step send each other, from the compiled program.

    python benchmarks/communication.py [--models=preact-resnet-18,wrn-34-10] [--out=FILE] [--gpu]

One step of AT-AWP (PGD with ``STEPS`` steps, K2 = 1) over eight fake CPU devices is compiled, not
run, and the collectives of the partitioned program are added up, those in the loop of PGD as often
as it turns. Bytes are the sizes of what is reduced; they depend on the model and on the BatchNorm
groups, not on the batch. Predicted efficiencies follow from them and from the assumptions of
``MACHINES``. With ``--gpu`` the program is compiled for eight H100 that are only described (what is
needed stands at the head of ``plan.py``): BatchNorm takes its sums otherwise there. Writes the JSON
file and the tables of docs/scaling.md. Compiling takes minutes.
"""

import argparse
import json
import os
import pathlib
import re

DEVICES, BATCH, STEPS = 8, 16, 10
# What runs the program is never used: it may be compiled cheaply.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from hlo import bytes_of, computations, inner  # noqa: E402
from readme import write_section  # noqa: E402

from awp_jax import models, objectives, parallel, training  # noqa: E402
from awp_jax.reporting import markdown_table  # noqa: E402

COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"

# Peak bf16 FLOP/s and the share of it that is reached; bytes per second at which an all-reduce of
# V bytes sends its 2 (n - 1) / n * V; seconds that every collective costs whatever its size.
MACHINES = {
    "8 H100, NVLink 4": {
        "devices": 8,
        "flops": 989e12,
        "utilisation": 0.3,
        "bandwidth": 0.8 * 450e9,  # per direction, at the share that ring all-reduces reach
        "latency": 20e-6,
    },
    "256 TPU v5e, 16 x 16": {
        "devices": 256,
        "flops": 197e12,
        "utilisation": 0.3,
        "bandwidth": 0.8 * 2 * 90e9,  # two axes of the torus, each link 45 GB/s in both directions
        "latency": 32e-6,  # 1e-6 per hop, half a ring there and back on each axis
    },
}


def _middle(shapes):
    """Where the second half of a pair of shapes begins."""
    depth = 0
    for place, letter in enumerate(shapes):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            return place
    return 0


def count(found, name="ENTRY"):
    """``{(inside a loop, kind): [collectives, bytes]}`` of a computation, a loop turned once."""
    totals = {}

    def add(key, number, size):
        entry = totals.setdefault(key, [0, 0])
        entry[0] += number
        entry[1] += size

    for line in found[name]:
        collective = re.search(rf"= (.*?) ({COLLECTIVES})(-start)?\(", line)
        if collective:
            shapes, kind, starts = collective.groups()
            if starts:  # a pair of what goes in and what comes out
                shapes = shapes[_middle(shapes) :]
            add((False, kind), 1, bytes_of(shapes))
        for body, _ in inner(line):
            for (_, kind), (number, size) in count(found, body).items():
                add((" while(" in line, kind), number, size)
    return totals


def devices_of(gpu):
    """A mesh of eight devices along ``data``."""
    if not gpu:
        return parallel.data_mesh(DEVICES)
    from jax.experimental import topologies
    from plan import H100

    described = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology=f"1x{DEVICES}x1"
    )
    return jax.sharding.Mesh(np.array(described.devices), ("data",))


def compiled_step(name, groups, gpu=False):
    """The text of the partitioned program of a step, whose one loop is that of PGD."""
    classifier = models.create(
        name, image_shape=(32, 32, 3), num_classes=10, batch_norm_groups=groups
    )
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9))
    step = training.make_train_step(
        classifier,
        objectives.at(),
        optimizer,
        attack=training.TrainingAttack(steps=STEPS),
        unroll=False,
    )
    mesh = devices_of(gpu)
    batch = 16 * DEVICES if gpu else BATCH
    everywhere, split = parallel.replicated(mesh), parallel.batch_sharding(mesh, batch)

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def init(key):
        return training.init_state(classifier, optimizer, key)

    state = jax.tree.map(
        lambda leaf: place(leaf, everywhere), jax.eval_shape(init, jax.random.key(0))
    )
    images = place(jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32), split)
    labels = place(jax.ShapeDtypeStruct((batch,), jnp.int32), split)
    key = place(jax.eval_shape(jax.random.key, 0), everywhere)
    traced = jax.jit(step, out_shardings=everywhere, donate_argnums=0).trace(
        state, images, labels, key
    )
    lowered = traced.lower(lowering_platforms=("cuda" if gpu else "cpu",))
    return lowered.compile().as_text(), jax.tree.leaves(state.params)


def forward_flops(name):
    """Floating point operations of one image's forward pass."""
    classifier = models.create(name, image_shape=(32, 32, 3), num_classes=10)
    params, batch_stats = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def forward(params, batch_stats, images):
        return classifier.apply(params, batch_stats, images, mode="running")[0]

    return jax.jit(forward).lower(params, batch_stats, images).cost_analysis()["flops"]


def measure(name, groups, gpu=False):
    text, params = compiled_step(name, groups, gpu)
    totals = count(computations(text))
    inside = [values for (loop, _), values in totals.items() if loop]
    outside = [values for (loop, _), values in totals.items() if not loop]
    return {
        "model": name,
        "batch_norm_groups": groups,
        "platform": "gpu" if gpu else "cpu",
        "parameters": sum(leaf.size for leaf in params),
        "kernels": sum(leaf.size for leaf in params if leaf.ndim > 1),  # what AWP moves
        "kinds": sorted({kind for _, kind in totals}),
        "per_pgd_step": [sum(v[0] for v in inside), sum(v[1] for v in inside)],
        "outside_pgd": [sum(v[0] for v in outside), sum(v[1] for v in outside)],
    }


def predicted(row, flops, machine, batch):
    """Seconds of computing and of communicating in a step, without any overlap of the two."""
    # PGD: forward and the gradient in the images; weights need a third pass of the same size.
    computing = batch * flops * (2 * STEPS + 3 + 3) / (machine["flops"] * machine["utilisation"])
    number, size = (
        STEPS * inside + outside
        for inside, outside in zip(row["per_pgd_step"], row["outside_pgd"], strict=True)
    )
    n = machine["devices"]
    sending = number * machine["latency"] + 2 * (n - 1) / n * size / machine["bandwidth"]
    return computing, sending


def _is_gpu(row):
    return row.get("platform") == "gpu"


def _same(row, other):
    keys = "model", "batch_norm_groups"
    return all(row[key] == other[key] for key in keys)


def tables(result):
    counted, expected = [], []
    for row in result["counts"]:
        inside, outside = row["per_pgd_step"][1], row["outside_pgd"][1]
        rest = outside - 4 * (row["kernels"] + row["parameters"])
        groups = "1" if row["batch_norm_groups"] == 1 else "as many as devices"
        counted.append(
            {
                "model": row["model"],
                "BatchNorm groups": groups,
                "compiled for": "8 H100, described" if _is_gpu(row) else "8 fake CPU devices",
                "collectives of a PGD step": row["per_pgd_step"][0],
                "of the rest": row["outside_pgd"][0],
                "MB: gradient of the ascent": f"{4e-6 * row['kernels']:.2f}",
                "of the descent": f"{4e-6 * row['parameters']:.2f}",
                "BatchNorm in PGD": f"{1e-6 * STEPS * inside:.3f}",
                "BatchNorm and scalars elsewhere": f"{1e-6 * rest:.3f}",
                "in all": f"{1e-6 * (STEPS * inside + outside):.2f}",
            }
        )
        for name, machine in MACHINES.items():
            # Each machine by the program that comes nearest to its own.
            better = any(_is_gpu(r) and _same(r, row) for r in result["counts"])
            if _is_gpu(row) != (better and "H100" in name):
                continue
            for batch in (16, 128):
                flops = result["forward_flops"][row["model"]]
                computing, sending = predicted(row, flops, machine, batch)
                expected.append(
                    {
                        "machine": name,
                        "model": row["model"],
                        "BatchNorm groups": groups,
                        "images per device": batch,
                        "computing (ms)": f"{1e3 * computing:.2f}",
                        "communicating (ms)": f"{1e3 * sending:.2f}",
                        "efficiency (%)": f"{100 * computing / (computing + sending):.0f}",
                    }
                )
    counted.sort(
        key=lambda row: (row["model"], row["BatchNorm groups"] == "1", row["compiled for"])
    )
    expected.sort(key=lambda row: (row["machine"], row["model"]))
    return [
        markdown_table(list(rows[0]), [[str(v) for v in row.values()] for row in rows])
        for rows in (counted, expected)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="preact-resnet-18,wrn-34-10")
    parser.add_argument("--out", default=pathlib.Path(__file__).with_name("communication.json"))
    parser.add_argument("--gpu", action="store_true", help="compile for described GPUs")
    parser.add_argument("--tables-only", action="store_true", help="from the JSON file")
    arguments = parser.parse_args()
    path = pathlib.Path(arguments.out)
    result = {"jax": jax.__version__, "devices": DEVICES, "pgd_steps": STEPS}
    result |= {"forward_flops": {}, "counts": []}
    if path.exists():
        result = json.loads(path.read_text())
    for name in [] if arguments.tables_only else arguments.models.split(","):
        result["forward_flops"][name] = forward_flops(name)
        for groups in (1,) if arguments.gpu else (DEVICES, 1):
            row = measure(name, groups, arguments.gpu)
            others = [
                r for r in result["counts"] if not _same(r, row) or _is_gpu(r) != _is_gpu(row)
            ]
            result["counts"] = [*others, row]
            print(json.dumps(result["counts"][-1]), flush=True)
            path.write_text(json.dumps(result, indent=2) + "\n")
    docs = pathlib.Path(__file__).parents[1] / "docs" / "scaling.md"
    for name, text in zip(("counted", "expected"), tables(result), strict=True):
        write_section(name, text, docs)


if __name__ == "__main__":
    main()
