"""Counts what the devices of a training step send each other, from the compiled program.

    python benchmarks/communication.py [--models=preact-resnet-18,wrn-34-10] [--out=FILE] [--gpu]
        [--mesh=data:8|data:2,fsdp:4|data:1,fsdp:8] [--groups=8,1]

One step of AT-AWP (PGD with ``STEPS`` steps, K2 = 1) over eight fake CPU devices is compiled, not
run, and the collectives of the partitioned program are added up, those in the loop of PGD as often
as it turns. Bytes are the sizes of what is reduced; they depend on the model and on the BatchNorm
groups, not on the batch. Predicted efficiencies follow from them and from the assumptions of
``MACHINES``. With ``--gpu`` the program is compiled for eight H100 that are only described (what is
needed stands at the head of ``plan.py``): BatchNorm takes its sums otherwise there. ``--mesh`` is
``parallel.mesh`` of the configs: along ``fsdp`` the state is split. Writes the JSON file and the
tables of docs/scaling.md; rows of other models, groups, meshes and platforms stay. A program
compiles in half a minute, or in several with ``--gpu``.
"""

import argparse
import json
import math
import os
import pathlib
import re

DEVICES, BATCH, STEPS = 8, 16, 10
DATA = f"data:{DEVICES}"
# What runs the program is never used: it may be compiled cheaply.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # as in plan.py

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from hlo import bytes_of, computations, group, inner  # noqa: E402
from readme import write_section  # noqa: E402

from awp_jax import models, objectives, parallel, training  # noqa: E402
from awp_jax.reporting import markdown_table  # noqa: E402

COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"

# Peak bf16 FLOP/s and the share of it that is reached; bytes per second at which an all-reduce of
# V bytes sends its 2 (n - 1) / n * V; seconds that every collective costs whatever its size. Where
# weights are split: among how many devices, and the bytes per second along one axis of the mesh.
# The bandwidth between slices is that of one device.
MACHINES = {
    "8 H100, NVLink 4": {
        "devices": 8,
        "flops": 989e12,
        "utilisation": 0.3,
        "bandwidth": 0.8 * 450e9,  # per direction, at the share that ring all-reduces reach
        "latency": 20e-6,
        "fsdp": 8,
        "along": 0.8 * 450e9,
    },
    "256 TPU v5e, 16 x 16": {
        "devices": 256,
        "flops": 197e12,
        "utilisation": 0.3,
        "bandwidth": 0.8 * 2 * 90e9,  # two axes of the torus, each link 45 GB/s in both directions
        "latency": 32e-6,  # 1e-6 per hop, half a ring there and back on each axis
        "fsdp": 16,
        "along": 0.8 * 90e9,  # one axis of the torus for each axis of the mesh
    },
    "2 slices of 128 TPU v5e, 8 x 16": {
        "devices": 256,
        "flops": 197e12,
        "utilisation": 0.3,
        "bandwidth": 0.8 * (90e9 + 45e9),  # an axis of 8 is no ring: half as much
        "latency": 30e-6,  # 16 hops on the ring, 14 on the line
        "fsdp": 128,
        "along": 0.8 * (90e9 + 45e9),
        "slices": 2,
        "between": 0.8 * 25e9 / 8,  # 25 GB/s of a host with eight devices
        "latency_between": 100e-6,
    },
}
PASSES = 2 * STEPS + 3 + 3  # PGD: forward and the gradient in the images; weights need a third


def _middle(shapes):
    """Where the second half of a pair of shapes begins."""
    depth = 0
    for place, letter in enumerate(shapes):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            return place
    return 0


def count(found, fsdp=1, name="ENTRY"):
    """``{(inside a loop, kind, along which axis): [collectives, bytes]}``, a loop turned once.

    Bytes are those of the whole array: what a gather ends with, and a reduce-scatter begins with.
    """
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
            devices = group(line, DEVICES)
            size = bytes_of(shapes) * (len(devices) if kind == "reduce-scatter" else 1)
            add((False, kind, _along(devices, fsdp)), 1, size)
        for body, _ in inner(line):
            for (loop, *key), (number, size) in count(found, fsdp, body).items():
                add((loop or " while(" in line, *key), number, size)
    return totals


def _along(devices, fsdp):
    """The axis of the mesh on which these devices are neighbours, ``fsdp`` being the last one."""
    if fsdp > 1 and devices == list(range(fsdp)):
        return "fsdp"
    return "all" if len(devices) == DEVICES else "data"


def mesh_of(shape, gpu):
    """A mesh of eight devices, as ``parallel.mesh`` names it."""
    if not gpu:
        return parallel.data_mesh(DEVICES, shape)
    from plan import described_mesh

    return described_mesh(shape)


def compiled_step(name, groups, shape=DATA, gpu=False):
    """The partitioned program of a step, whose one loop is that of PGD; and the state's shapes."""
    mesh = mesh_of(shape, gpu)
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
        mesh=mesh,
    )
    batch = 16 * DEVICES if gpu else BATCH
    everywhere, split = parallel.replicated(mesh), parallel.batch_sharding(mesh, batch)

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def init(key):
        return training.init_state(classifier, optimizer, key)

    state = jax.eval_shape(init, jax.random.key(0))
    places = parallel.state_sharding(mesh, state)
    state = jax.tree.map(place, state, places)
    images = place(jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32), split)
    labels = place(jax.ShapeDtypeStruct((batch,), jnp.int32), split)
    key = place(jax.eval_shape(jax.random.key, 0), everywhere)
    traced = jax.jit(step, out_shardings=(places, everywhere), donate_argnums=0).trace(
        state, images, labels, key
    )
    lowered = traced.lower(lowering_platforms=("cuda" if gpu else "cpu",))
    return lowered.compile().as_text(), state


def forward_flops(name):
    """Floating point operations of one image's forward pass."""
    classifier = models.create(name, image_shape=(32, 32, 3), num_classes=10)
    params, batch_stats = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def forward(params, batch_stats, images):
        return classifier.apply(params, batch_stats, images, mode="running")[0]

    return jax.jit(forward).lower(params, batch_stats, images).cost_analysis()["flops"]


def held(state, mesh):
    """Bytes of a training state on each device."""
    places = jax.tree.leaves(parallel.state_sharding(mesh, state))
    return sum(
        math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(state), places, strict=True)
    )


def measure(name, groups, shape=DATA, gpu=False):
    text, state = compiled_step(name, groups, shape, gpu)
    mesh = parallel.data_mesh(DEVICES, shape) if not gpu else mesh_of(shape, gpu)
    totals = count(computations(text), mesh.shape.get(parallel.FSDP, 1))
    inside = [values for (loop, *_), values in totals.items() if loop]
    outside = [values for (loop, *_), values in totals.items() if not loop]
    params = jax.tree.leaves(state.params)
    classifier = models.create(name, image_shape=(32, 32, 3), num_classes=10)

    def with_adamw(key):
        return training.init_state(classifier, optax.adamw(1e-3), key)

    return {
        "model": name,
        "batch_norm_groups": groups,
        "mesh": shape,
        "platform": "gpu" if gpu else "cpu",
        "parameters": sum(leaf.size for leaf in params),
        "kernels": sum(leaf.size for leaf in params if leaf.ndim > 1),  # what AWP moves
        "kinds": sorted({kind for _, kind, _ in totals}),
        "per_pgd_step": [sum(v[0] for v in inside), sum(v[1] for v in inside)],
        "outside_pgd": [sum(v[0] for v in outside), sum(v[1] for v in outside)],
        "collectives": [
            {"in_pgd": loop, "kind": kind, "along": along, "number": number, "bytes": size}
            for (loop, kind, along), (number, size) in sorted(totals.items())
        ],
        "state_bytes": {
            "sgd": held(state, mesh),
            "adamw": held(jax.eval_shape(with_adamw, jax.random.key(0)), mesh),
        },
    }


def computed(flops, machine):
    """Seconds that the step computes for each image of a device."""
    return flops * PASSES / (machine["flops"] * machine["utilisation"])


def all_reduced(number, size, machine):
    """Seconds of all-reduces among all devices: within a slice first, then a share between them."""
    slices = machine.get("slices", 1)
    n = machine["devices"] // slices
    seconds = number * machine["latency"] + 2 * (n - 1) / n * size / machine["bandwidth"]
    if slices > 1:
        seconds += number * machine["latency_between"]
        seconds += 2 * (slices - 1) / slices * size / n / machine["between"]
    return seconds


def sent(row, machine):
    """Seconds of communicating in a step, by the collectives of a program."""
    if parallel.FSDP in row.get("mesh", DATA):
        return sent_in_parts(row, machine)
    number, size = (
        STEPS * inside + outside
        for inside, outside in zip(row["per_pgd_step"], row["outside_pgd"], strict=True)
    )
    return all_reduced(number, size, machine)


def in_parts(name, fsdp):
    """Bytes of the parameters that ``fsdp`` devices split, and of the others."""
    classifier = models.create(name, image_shape=(32, 32, 3), num_classes=10)
    params = jax.tree.leaves(jax.eval_shape(classifier.init, jax.random.key(0))[0])
    mesh = jax.sharding.AbstractMesh((1, fsdp), (parallel.AXIS, parallel.FSDP))
    sizes = {True: 0, False: 0}
    for leaf, place in zip(params, parallel.state_sharding(mesh, params), strict=True):
        sizes[not place.is_fully_replicated] += 4 * leaf.size
    return sizes[True], sizes[False]


def sent_in_parts(row, machine):
    """Of split weights: as many messages as the program has, the bytes by the machine's mesh.

    Split weights are gathered twice and their gradients reduced and scattered twice, along fsdp;
    the share of a device is then all-reduced along data. The others are all-reduced among all.
    """
    f, n = machine["fsdp"], machine["devices"]
    split, whole = in_parts(row["model"], f)
    entries = [e for e in row["collectives"] for _ in range(STEPS if e["in_pgd"] else 1)]
    along = sum(e["number"] for e in entries if e["along"] == "fsdp")
    others = sum(e["number"] for e in entries if e["along"] != "fsdp")
    seconds = along * machine["latency"] + 4 * (f - 1) / f * split / machine["along"]
    seconds += all_reduced(others, 2 * whole, machine)
    slow = machine.get("between", machine["along"])
    d = n // f
    return seconds + 2 * (d - 1) / d * 2 * split / f / slow


def _is_gpu(row):
    return row.get("platform") == "gpu"


def _mesh(row):
    return row.get("mesh", DATA)


def _same(row, other):
    keys = "model", "batch_norm_groups"
    return all(row[key] == other[key] for key in keys) and _mesh(row) == _mesh(other)


def _groups(row):
    return "1" if row["batch_norm_groups"] == 1 else "as many as devices"


def _compiled_for(row):
    return "8 H100, described" if _is_gpu(row) else "8 fake CPU devices"


def _counted(row):
    inside, outside = row["per_pgd_step"][1], row["outside_pgd"][1]
    rest = outside - 4 * (row["kernels"] + row["parameters"])
    return {
        "model": row["model"],
        "BatchNorm groups": _groups(row),
        "compiled for": _compiled_for(row),
        "collectives of a PGD step": row["per_pgd_step"][0],
        "of the rest": row["outside_pgd"][0],
        "MB: gradient of the ascent": f"{4e-6 * row['kernels']:.2f}",
        "of the descent": f"{4e-6 * row['parameters']:.2f}",
        "BatchNorm in PGD": f"{1e-6 * STEPS * inside:.3f}",
        "BatchNorm and scalars elsewhere": f"{1e-6 * rest:.3f}",
        "in all": f"{1e-6 * (STEPS * inside + outside):.2f}",
    }


def _counted_in_parts(row):
    """A row of split weights; what is in the loop of PGD counts there alone."""
    outside = [e for e in row["collectives"] if not e["in_pgd"]]

    def number(kind):
        return sum(e["number"] for e in outside if e["kind"] == kind)

    def megabytes(kind, *along):
        chosen = [e for e in outside if e["kind"] == kind and (not along or e["along"] in along)]
        return f"{1e-6 * sum(e['bytes'] for e in chosen):.2f}"

    inside, rest = row["per_pgd_step"][1], row["outside_pgd"][1]
    return {
        "model": row["model"],
        "mesh": _mesh(row),
        "BatchNorm groups": _groups(row),
        "compiled for": _compiled_for(row),
        "collectives of a PGD step": row["per_pgd_step"][0],
        "all-gathers of the rest": number("all-gather"),
        "reduce-scatters": number("reduce-scatter"),
        "all-reduces": number("all-reduce"),
        "MB: gathered": megabytes("all-gather"),
        "reduce-scattered": megabytes("reduce-scatter"),
        "all-reduced along fsdp": megabytes("all-reduce", "fsdp"),
        "along data or both": megabytes("all-reduce", "data", "all"),
        "in all": f"{1e-6 * (STEPS * inside + rest):.2f}",
    }


def _held(row):
    return {
        "model": row["model"],
        "mesh": _mesh(row),
        "SGD with momentum": f"{1e-6 * row['state_bytes']['sgd']:.1f}",
        "AdamW": f"{1e-6 * row['state_bytes']['adamw']:.1f}",
    }


def _expected(row, flops, name, machine):
    sending, image = sent(row, machine), computed(flops, machine)
    mesh = f"data:{machine['devices']}"
    if parallel.FSDP in _mesh(row):
        mesh = f"data:{machine['devices'] // machine['fsdp']},fsdp:{machine['fsdp']}"
    return {
        "machine": name,
        "model": row["model"],
        "mesh": mesh,
        "BatchNorm groups": _groups(row),
        "communicating (ms)": f"{1e3 * sending:.2f}",
        "computing (ms) for 16 images a device": f"{1e3 * 16 * image:.2f}",
        "for 128": f"{1e3 * 128 * image:.2f}",
        "efficiency (%) with 16": f"{100 * 16 * image / (16 * image + sending):.0f}",
        "with 128": f"{100 * 128 * image / (128 * image + sending):.0f}",
        "images a device up to which communication exceeds 5 %": math.floor(19 * sending / image),
    }


def _chosen(row, rows, name):
    """Whether a machine is expected of this row: of the program that comes nearest to its own."""
    if parallel.FSDP in _mesh(row):
        if row["batch_norm_groups"] == 1:
            return False
        return _mesh(row) == ("data:1,fsdp:8" if "H100" in name else "data:2,fsdp:4") and (
            "H100" in name
        ) == _is_gpu(row)
    better = any(_is_gpu(r) and _same(r, row) for r in rows)
    return _is_gpu(row) == (better and "H100" in name)


def tables(result):
    rows = sorted(
        result["counts"],
        key=lambda r: (r["model"], _mesh(r), r["batch_norm_groups"] == 1, not _is_gpu(r)),
    )
    parts = [row for row in rows if parallel.FSDP in _mesh(row)]
    states = {(row["model"], _mesh(row)): row for row in rows if "state_bytes" in row}
    expected = [
        _expected(row, result["forward_flops"][row["model"]], name, machine)
        for name, machine in MACHINES.items()
        for row in rows
        if _chosen(row, result["counts"], name)
    ]
    return {
        name: markdown_table(list(rows[0]), [[str(v) for v in row.values()] for row in rows])
        for name, rows in {
            "counted": [_counted(row) for row in rows if row not in parts],
            "counted in parts": [_counted_in_parts(row) for row in parts],
            "held": [_held(row) for row in states.values()],
            "expected": expected,
        }.items()
        if rows
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="preact-resnet-18,wrn-34-10")
    parser.add_argument("--out", default=pathlib.Path(__file__).with_name("communication.json"))
    parser.add_argument("--mesh", default=DATA, help="parallel.mesh, of eight devices")
    parser.add_argument("--groups", help="of BatchNorm, by default 8,1 or with --gpu 1")
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
        for groups in (arguments.groups or ("1" if arguments.gpu else "8,1")).split(","):
            row = measure(name, int(groups), arguments.mesh, arguments.gpu)
            others = [
                r for r in result["counts"] if not _same(r, row) or _is_gpu(r) != _is_gpu(row)
            ]
            result["counts"] = [*others, row]
            print(json.dumps(result["counts"][-1]), flush=True)
            path.write_text(json.dumps(result, indent=2) + "\n")
    docs = pathlib.Path(__file__).parents[1] / "docs" / "scaling.md"
    for name, text in tables(result).items():
        write_section(name, text, docs)


if __name__ == "__main__":
    main()
