"""AutoAttack standard of PreActResNet-18 on 10,000 images, against torchattacks on 1,000.

    python benchmarks/autoattack.py --out=benchmarks/autoattack.json

Random weights on noise: the network's own float32 predictions are the labels, so clean accuracy
is 100%, and the default epsilon is small enough that many images stay robust, which is what costs
time. On a GPU ours crafts in bfloat16; the verdict is of the returned images, in float32.
torchattacks runs in float32 on the same weights. Ours runs once before on one batch, which compiles
nearly everything. ``--quick`` shows that it runs, on any device.

    python benchmarks/autoattack.py --plan

computes how long 10,000 images would take on a GPU that is not there: the FLOPs of the passes that
each attack makes on the images that are left to it, over a share of the device's peak.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from readme import write_section  # noqa: E402

from awp_jax import models  # noqa: E402
from awp_jax.attacks import autoattack, ensemble  # noqa: E402
from awp_jax.attacks._work import work  # noqa: E402
from awp_jax.compilation import use_fast_convolutions  # noqa: E402
from awp_jax.evaluation import measure  # noqa: E402
from awp_jax.reporting import markdown_table  # noqa: E402


def seconds(function):
    began = time.perf_counter()
    value = function()
    return time.perf_counter() - began, value


# Of what a plan assumes. Peak: bfloat16 matrix products measured on an H200; use: what a step
# reaches at most is not known, 30 % were measured at batch 512 (README.md). Left: the share of
# images that come to each attack, of a model as robust as AT-AWP's WideResNet in the paper.
PEAK, USE, LEFT = 790e12, 0.35, (0.86, 0.59, 0.54, 0.54)


def planned(images=10_000):
    """``(attack, images, passes of each, seconds)`` of every attack, by arithmetic."""
    classifier = models.create("preact-resnet-18", image_shape=(32, 32, 3), num_classes=10)
    state = jax.eval_shape(classifier.init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    forward = jax.jit(lambda state, x: classifier.logits_fn(*state)(x)).lower(state, one)
    flops = forward.compile().cost_analysis()["flops"]
    rows = []
    for (name, attack), left in zip(ensemble(epsilon="8/255"), LEFT, strict=True):
        count, passes = round(left * images), work(attack)
        rows.append((name, count, passes, count * passes * flops / (PEAK * USE)))
    return flops, rows


def plan_section(images=10_000):
    flops, rows = planned(images)
    seconds = sum(row[-1] for row in rows)
    cells = [[n, f"{c:,}", f"{p:,.0f}", f"{s:.0f}"] for n, c, p, s in rows]
    cells.append(["all", "", "", f"{seconds:.0f}"])
    header = ["attack", "images left", "passes of each", "seconds"]
    return f"""## AutoAttack on 10,000 images, by arithmetic

`python benchmarks/autoattack.py --plan`: standard version, PreActResNet-18, a forward pass of
{flops / 1e9:.2f} GFLOP (XLA's count), a gradient in the images for two, {100 * USE:.0f} % of
{PEAK / 1e12:.0f} TFLOP/s (an H200 in bfloat16), and as many images left as to a WideResNet of
AT-AWP. Not measured; compilation comes on top, and in float32 (TF32), in which `awp-jax evaluate`
judges, it is twice the time.

{markdown_table(header, cells)}
"""


def main():
    use_fast_convolutions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="autoattack.json")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--peer_images", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--epsilon", default="1/1020", help="a quarter of 1/255")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5_000, help="of Square")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--readme", default=None, help="where the table goes, for trying")
    parser.add_argument("--quick", action="store_true", help="a few images and steps")
    parser.add_argument("--plan", action="store_true", help="arithmetic only")
    options = parser.parse_args()
    if options.plan:
        text = plan_section(options.images)
        print(text)
        write_section("autoattack-plan", text, options.readme)
        return
    on_gpu = jax.default_backend() == "gpu"
    if options.quick:
        options.images, options.peer_images, options.batch = 8, 8, 8
        options.steps, options.queries, options.width = 2, 4, 4
    import torch
    import torch_peer
    from torch_models import PreActBlock, ResidualNet, copy_into

    device = "cuda" if on_gpu else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    shape = {"image_shape": (32, 32, 3), "num_classes": 10, "width": options.width}
    exact = models.create("preact-resnet-18", **shape)
    state = jax.jit(exact.init)(jax.random.key(0))
    dtype = "bfloat16" if on_gpu else "float32"
    fast = models.create("preact-resnet-18", **shape, dtype=dtype)
    logits_fn, craft_fn = exact.logits_fn(*state), fast.logits_fn(*state)
    images = np.random.default_rng(0).uniform(0, 1, (options.images, 32, 32, 3))
    images = images.astype(np.float32)
    predict = jax.jit(lambda x: logits_fn(x).argmax(1).astype("int32"))
    starts = range(0, options.images, options.batch)
    labels = np.concatenate([predict(images[start : start + options.batch]) for start in starts])

    plan = [
        (name, dataclasses.replace(attack, steps=_steps(name, options)))
        for name, attack in ensemble(epsilon=options.epsilon)
    ]

    def ours(n, seed):
        return autoattack(
            craft_fn,
            jax.random.key(seed),
            images[:n],
            labels[:n],
            epsilon=options.epsilon,
            version="custom",
            attacks=plan,
            batch_size=options.batch,
        )

    def robust(found, n):
        batch = min(options.batch, n)
        return measure(logits_fn, np.asarray(found), labels[:n], batch_size=batch).accuracy

    first, _ = seconds(lambda: ours(options.batch, 0))
    rows = {}
    for n in sorted({options.images, options.peer_images}):
        took, result = seconds(lambda n=n: ours(n, 2))
        rows[f"awp_jax, {dtype}, {n}"] = {"seconds": took, "robust": robust(result.images, n)}
    n = options.peer_images
    net = ResidualNet(PreActBlock, 3, 10, options.width, (2, 2, 2, 2))
    net = copy_into(net, exact, *jax.device_get(state)).to(device).eval().requires_grad_(False)
    radius = plan[0][1].ball.radius
    peer = torch_peer.autoattack(net, radius, options.queries, options.steps)
    x = torch.from_numpy(images[:n].transpose(0, 3, 1, 2).copy()).to(device)
    y = torch.from_numpy(np.array(labels[:n])).long().to(device)
    took, found = seconds(lambda: peer(x, y).detach().cpu().numpy().transpose(0, 2, 3, 1))
    mine = rows[f"awp_jax, {dtype}, {n}"]["seconds"]
    rows[f"torchattacks, float32, {n}"] = {
        "seconds": took,
        "robust": robust(found, n),
        "over_ours": took / mine,
    }
    results = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "readme")},
        "device": jax.devices()[0].device_kind,
        "first_call_seconds": first,
        "rows": rows,
    }
    pathlib.Path(options.out).write_text(json.dumps(results, indent=1))
    text = section(results)
    print(text)
    if not options.quick or options.readme:
        write_section("autoattack", text, options.readme)


def _steps(name, options):
    return options.queries if name == "square" else options.steps


def section(results):
    s = results["settings"]
    rows = [
        [*name.split(", "), f"{row['seconds']:.3g}", f"{100 * row['robust']:.1f}"]
        + [f"{row['over_ours']:.1f}" if "over_ours" in row else ""]
        for name, row in results["rows"].items()
    ]
    header = ["library", "crafted in", "images", "seconds", "robust in float32 (%)", "over ours"]
    return f"""## AutoAttack on large sets

`python benchmarks/autoattack.py`: standard version, PreActResNet-18 of width {s["width"]}, random
weights, Linf {s["epsilon"]}, {s["steps"]} steps, {s["queries"]} queries of Square, seed 2,
{results["device"]}. Without compilation, which takes {results["first_call_seconds"]:.0f} s.

{markdown_table(header, rows)}
"""


if __name__ == "__main__":
    main()
