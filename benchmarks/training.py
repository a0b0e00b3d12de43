"""Times training steps against PyTorch: same model, batch, attack and device, in one run.

    taskset -c 0,1 python benchmarks/training.py --out=benchmarks/training.json

Ours is the step of ``awp-jax train``: gather from the data set on the device, augmentation,
PGD-10, AWP, SGD. PyTorch's takes one batch that lies on the device (``torch_peer.py``). The sides
take turns, step by step; the table shows the least time of several steps. On CPU ours computes in
float32, on a GPU also in bfloat16 (parameters and statistics in float32). No compilation cache is
used.
``--quick`` only shows that it runs; it and ``--models``, which times a part, leave
benchmarks/README.md alone.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is shared with PyTorch

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from readme import write_section  # noqa: E402

from awp_jax import config as schema  # noqa: E402
from awp_jax import data, training  # noqa: E402
from awp_jax.compilation import use_fast_convolutions  # noqa: E402
from awp_jax.reporting import markdown_table  # noqa: E402

H200_PEAK = 790e12  # bfloat16 FLOP/s that dense products reach there
AT, AWP, SHARED = "AT", "AT-AWP", "AT-AWP, shared backward"
RWP_NONE, RWP_ALL = "AT-RWP, no example masked in", "AT-RWP, all examples"
METHODS = {
    AT: {"method": "none"},
    AWP: {"method": "awp"},
    SHARED: {"method": "awp", "shared_backward": True},
    RWP_NONE: {"method": "rwp", "c_min": 0.0},
    RWP_ALL: {"method": "rwp", "c_min": 1e9},
}
# Images, classes 10, and batches on CPU and on GPU.
MODELS = {
    "digits-resnet": ((8, 8, 1), 100, 100),
    "mnist-cnn": ((28, 28, 1), 128, 128),
    "preact-resnet-18": ((32, 32, 3), 16, 512),
    "wrn-34-10": ((32, 32, 3), 2, 128),
}


def config_of(model, batch, *, method=AWP, dtype="float32", steps=10, width=None, shape=None):
    """The config of one model; the epsilons are those of the papers."""
    config, shape = schema.default(), shape or MODELS[model][0]
    config.model.name, config.model.width, config.model.dtype = model, width, dtype
    config.model.normalize = shape == (32, 32, 3)
    if model == "digits-resnet":
        config.model.name, config.model.width = "preact-resnet-10", width or 12
    if not config.model.normalize:
        config.data.flip, config.data.crop_padding = False, 0
    config.batch_size, config.attack.steps = batch, steps
    config.optimizer.learning_rate = 0.01
    config.weights.update(METHODS[method])
    return config


def splits_of(shape, batch):
    """Two batches of noise: speed does not depend on what is on the images."""
    rng = np.random.default_rng(0)

    def noise(n):
        images = rng.integers(0, 256, (n, *shape), np.uint8)
        return data.Dataset(images, rng.integers(0, 10, n).astype(np.int32), 10, "noise")

    return data.Splits(train=noise(2 * batch), validation=noise(8), test=noise(8))


def peak_bytes(compiled):
    """The memory that a compiled function needs, its arguments included."""
    memory = compiled.memory_analysis()
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


class Ours:
    """One compiled step of ours with its state."""

    def __init__(self, config, shape):
        began = time.perf_counter()
        self.experiment = training.build(config, splits_of(shape, config.batch_size))
        self.state = jax.block_until_ready(self.experiment.init())
        images, labels = self.experiment.on_devices()
        self.arguments = (images, labels, self.experiment.order(0), self.experiment.key)
        self.options = {"batch_size": config.batch_size, "perturb_weights": True}
        self.compiled = None
        lower = getattr(self.experiment.step, "lower", None)
        compiling = time.perf_counter()
        if lower is not None:  # RWP on CPU runs in parts
            self.compiled = lower(self.state, *self.arguments, **self.options).compile()
        self.compile_seconds = time.perf_counter() - compiling
        self.step()
        self.first_step_seconds = time.perf_counter() - began

    def step(self):
        if self.compiled is None:
            self.state, metrics = self.experiment.step(self.state, *self.arguments, **self.options)
        else:
            self.state, metrics = self.compiled(self.state, *self.arguments)
        return float(metrics["loss"])

    def peak_bytes(self):
        return None if self.compiled is None else peak_bytes(self.compiled)

    def forward_flops(self):
        """Of one forward pass of the batch, before any optimisation by the compiler."""
        classifier, size = self.experiment.classifier, self.options["batch_size"]
        images = jax.ShapeDtypeStruct((size, *classifier.image_shape), jnp.float32)

        def forward(params, stats, images):
            return classifier.apply(params, stats, images, mode="running")[0]

        lowered = jax.jit(forward).lower(self.state.params, self.state.batch_stats, images)
        return lowered.cost_analysis()["flops"]


def in_turns(steps, repeats):
    """``{name: {"seconds", "median_seconds", "cpu_seconds"}}``, the least of ``repeats`` each."""
    wall, cpu = ({name: [] for name in steps} for _ in range(2))
    for _ in range(repeats):
        for name, step in steps.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            step()
            cpu[name].append(time.process_time() - began_cpu)
            wall[name].append(time.perf_counter() - began)
    return {
        name: {
            "seconds": min(wall[name]),
            "median_seconds": statistics.median(wall[name]),
            "cpu_seconds": min(cpu[name]),
        }
        for name in steps
    }


def matmul_peak(size=1024, repeats=5):
    """FLOP/s of a float32 product on this CPU, the better of JAX and PyTorch."""
    import torch

    a = jnp.ones((size, size))
    b = torch.ones(size, size)
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(a, a))
    steps = {"jax": lambda: jax.block_until_ready(product(a, a)), "torch": lambda: b @ b}
    found = in_turns(steps, repeats)
    return 2 * size**3 / min(row["seconds"] for row in found.values())


def forwards_of(name, steps=10):
    """A step in forward passes: an input gradient costs 2, one in the weights as well 3."""
    return {
        AT: 2 * steps + 3,
        SHARED: 2 * steps + 1 + 3,
        RWP_NONE: 2 * steps + 3 + 3,
        RWP_ALL: 2 * steps + 3 * 10 + 3,
    }.get(name, 2 * steps + 3 + 3)


def compare(model, options, on_gpu):
    """All figures of one model."""
    import torch_peer

    shape, batch = MODELS[model][0], options.batch or MODELS[model][2 if on_gpu else 1]
    attack_steps = 2 if options.quick else 10
    dtypes = ("bfloat16", "float32") if on_gpu else ("float32",)
    large = MODELS[model][0] == (32, 32, 3) and not on_gpu
    kept = options.methods or [n for n in METHODS if not (large and n in (RWP_NONE, RWP_ALL))]
    plan = {(name, dtypes[0]): name for name in kept}
    plan |= {(AWP, dtype): AWP for dtype in dtypes[1:]}
    sides, rows = {}, {}
    for (name, dtype), method in plan.items():
        config = config_of(model, batch, method=method, dtype=dtype, steps=attack_steps)
        ours = Ours(config, shape)
        sides[f"{name}, {dtype}"] = ours
        print(f"{model}: {name}, {dtype}: first step {ours.first_step_seconds:.1f} s", flush=True)
        rows[f"{name}, {dtype}"] = {
            "side": "awp_jax",
            "forwards": forwards_of(name, attack_steps),
            "compile_seconds": ours.compile_seconds,
            "first_step_seconds": ours.first_step_seconds,
        }
    first = next(iter(sides.values()))
    flops, classifier = first.forward_flops(), first.experiment.classifier
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (batch, *shape)).astype(np.float32)
    labels = rng.integers(0, 10, batch)
    device = "cuda" if on_gpu else "cpu"
    peers = {"eager": (AT, AWP), "tuned": (AT, AWP) if options.torch_compile else ()}
    for kind, names in peers.items():
        for name in names:
            if name not in kept:
                continue
            began = time.perf_counter()
            settings = {"gamma": 0.0 if name == AT else 0.01, "attack_steps": attack_steps}
            peer = torch_peer.Peer(
                model,
                classifier,
                settings,
                images,
                labels,
                device=device,
                tuned=kind == "tuned",
            )
            peer.step()
            row = f"{name}, PyTorch {kind}"
            print(f"{model}: {row}: first step {time.perf_counter() - began:.1f} s", flush=True)
            sides[row] = peer
            rows[row] = {
                "side": f"PyTorch {kind}",
                "forwards": forwards_of(name, attack_steps),
                "first_step_seconds": time.perf_counter() - began,
            }
    for step in (side.step for side in sides.values()):
        step()  # whatever is set up at the second call
    times = in_turns({name: side.step for name, side in sides.items()}, options.steps)
    for name, row in rows.items():
        row |= times[name]
        row["images_per_second"] = batch / row["seconds"]
        row["model_flops_per_second"] = row["forwards"] * flops / row["seconds"]
        row["utilisation"] = row["model_flops_per_second"] / options.peak
        row["peak_bytes"] = sides[name].peak_bytes()
        row["epoch_of_50000_seconds"] = 50_000 / row["images_per_second"]
    best = rows.get(f"{AWP}, {dtypes[0]}")
    if best is not None:
        for name, row in rows.items():
            if name.startswith(f"{AWP}, PyTorch"):
                row["over_ours"] = row["seconds"] / best["seconds"]
                row["over_ours_cpu"] = row["cpu_seconds"] / best["cpu_seconds"]
    plain = rows.get(f"{AT}, {dtypes[0]}")
    clock = "seconds" if on_gpu else "cpu_seconds"
    for name, row in rows.items():
        if plain is not None and row["side"] == "awp_jax" and name.endswith(dtypes[0]):
            row["over_at"] = row[clock] / plain[clock] - 1
    return {"batch": batch, "image": shape, "forward_flops_per_image": flops / batch, "rows": rows}


def section(results):
    """The section of the README."""
    rows = []
    for model, found in results["models"].items():
        for name, row in found["rows"].items():
            peak = row["peak_bytes"]
            rows.append(
                [
                    f"{model}, {found['batch']}",
                    name,
                    f"{row['seconds']:.4g}",
                    f"{row['cpu_seconds']:.4g}",
                    f"{row['images_per_second']:.4g}",
                    f"{100 * row['utilisation']:.0f}",
                    f"{row['over_ours']:.2f}" if "over_ours" in row else "",
                    f"{100 * row['over_at']:+.0f}" if row.get("over_at") else "",
                    f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "",
                    f"{row['first_step_seconds']:.1f}",
                    f"{peak / 2**20:.0f}" if peak else "",
                ]
            )
    header = ["model, batch", "step", "s", "CPU s", "images/s", "use (%)", "PyTorch / ours"]
    header += ["over AT (%)", "compile (s)", "first step (s)", "peak (MiB)"]
    s = results["settings"]
    return f"""## Training steps

`python benchmarks/training.py`: PGD-{results["attack_steps"]}, Linf 8/255; least of
{s["steps"]} steps of each side in turn. "use" is model FLOPs (26 forward passes for AT-AWP with
PGD-10) over {results["peak"] / 1e12:.3g} TFLOP/s, {results["peak_is"]}. "PyTorch / ours"
above 1: ours is faster. "over AT" is by {results["clock"]}. First step: from nothing, with
compilation, without a cache. On CPU, PyTorch runs with oneDNN, its fastest way.
jax {results["jax"]}, torch {results["torch"]}, {results["machine"]}, {results["threads"]} threads.

{markdown_table(header, rows)}
"""


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="training.json")
    parser.add_argument("--models", default=None, help="with commas; all but wrn-34-10 on CPU")
    parser.add_argument(
        "--methods", default=None, help="with semicolons; no RWP of the large models on CPU"
    )
    parser.add_argument("--batch", type=int, default=None, help="of every model")
    parser.add_argument("--steps", type=int, default=3, help="timed, of each side")
    parser.add_argument("--device", choices=("cpu", "gpu"), default=None)
    parser.add_argument("--peak", type=float, default=None, help="FLOP/s; else measured or H200")
    parser.add_argument("--no_compile", action="store_true", help="without torch.compile")
    parser.add_argument("--readme", default=None, help="where the table goes, for trying")
    parser.add_argument("--quick", action="store_true", help="two minutes, to see that it runs")
    options = parser.parse_args()
    if options.methods:
        options.methods = [name.strip() for name in options.methods.split(";")]
    return options


def main():
    use_fast_convolutions()
    options = parse()
    if options.device:
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    import torch
    import torch_peer

    on_gpu = jax.default_backend() == "gpu"
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    models = [name for name in MODELS if on_gpu or name != "wrn-34-10"]
    if options.models:
        models = options.models.split(",")
    elif options.quick:
        models = ["digits-resnet"]
    if options.quick:
        options.steps, options.batch, options.methods = 1, options.batch or 8, [AWP]
    options.torch_compile = not options.no_compile and torch_peer.compiler_works()
    options.peak = options.peak or (H200_PEAK if on_gpu else matmul_peak())
    results = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "readme")},
        "attack_steps": 2 if options.quick else 10,
        "peak": options.peak,
        "peak_is": "the H200's bfloat16" if on_gpu else "a float32 matrix product measured here",
        "clock": "wall time" if on_gpu else "CPU time",
        "jax": jax.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "threads": threads,
        "models": {},
    }
    for model in models:
        began = time.perf_counter()
        results["models"][model] = compare(model, options, on_gpu)
        print(f"{model}: {time.perf_counter() - began:.0f} s", flush=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        results["models"][model]["host_peak_bytes"] = peak * 1024
        pathlib.Path(options.out).write_text(json.dumps(results, indent=1))
    text = section(results)
    print(text)
    if options.readme or not (options.quick or options.models):
        write_section("training", text, options.readme)


if __name__ == "__main__":
    main()
