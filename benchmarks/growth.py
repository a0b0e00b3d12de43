"""How the time of a training step, and of an evaluation, grows: figures with fitted exponents.

    python benchmarks/growth.py --out=benchmarks/growth.json [--model=mlp]

Time per AT-AWP step against batch size, attack steps K1, weight steps K2 and width; time of an
evaluation with PGD-10 against the number of examples. The exponent is the slope of log time against
log size over the larger half of the sizes, where fixed costs matter less; the work of a layer grows
with the square of its width, so 2 is linear in the work there. On CPU: processor time.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np
from jax.tree_util import Partial
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from readme import write_section
from training import MODELS, Ours, config_of, in_turns

from awp_jax.attacks import PGD
from awp_jax.compilation import use_fast_convolutions
from awp_jax.evaluation import measure
from awp_jax.reporting import markdown_table, save_figure

# Sizes of every axis for the smallest network and for residual ones.
SIZES = {
    "batch": (64, 128, 256, 512),
    "K1": (1, 2, 4, 8),
    "K2": (1, 2, 4),
    "width": (128, 256, 512, 1024),
    "examples": (512, 1024, 2048, 4096),
}
RESIDUAL = {"batch": (64, 128, 256, 512), "width": (16, 32, 64)}
LABELS = {
    "batch": "batch size (images)",
    "K1": "attack steps K1",
    "K2": "weight steps K2",
    "width": "width (channels or units)",
    "examples": "examples evaluated",
}


def config_at(model, axis, size):
    values = {"batch": 256, "K1": 4, "K2": 1, "width": 512 if model == "mlp" else None}
    values[axis] = size
    shape = (28, 28, 1) if model == "mlp" else MODELS[model][0]
    config = config_of(
        model, values["batch"], steps=values["K1"], width=values["width"], shape=shape
    )
    config.weights.steps = values["K2"]
    return config, shape


def step_times(model, axis, sizes, repeats, clock):
    sides = {str(size): Ours(*config_at(model, axis, size)) for size in sizes}
    found = in_turns({name: side.step for name, side in sides.items()}, repeats)
    return [found[str(size)][clock] for size in sizes]


def evaluation_times(model, sizes, repeats, clock):
    config, shape = config_at(model, "batch", 64)
    side = Ours(config, shape)
    state, classifier = side.state, side.experiment.classifier
    logits_fn = classifier.logits_fn(state.params, state.batch_stats)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(sizes), *shape), np.uint8)
    labels = rng.integers(0, 10, max(sizes)).astype(np.int32)
    attack = PGD("8/255", steps=10, step_size="2/255")

    def evaluate(n):
        measure(logits_fn, images[:n], labels[:n], attack, key=jax.random.key(0))

    evaluate(min(sizes))  # compiles
    steps = {str(n): Partial(evaluate, n) for n in sizes}
    found = in_turns(steps, repeats)
    return [found[str(n)][clock] for n in sizes]


def exponent(sizes, seconds):
    """Slope of log time over the larger half of the sizes."""
    start = (len(sizes) - 1) // 2
    return float(np.polyfit(np.log(sizes[start:]), np.log(seconds[start:]), 1)[0])


def draw(results, path):
    rows = results["rows"]
    figure = Figure(figsize=(3 * len(rows), 2.9), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    for panel, (axis, row) in zip(panels, rows.items(), strict=True):
        sizes, seconds = np.array(row["sizes"]), np.array(row["seconds"])
        panel.loglog(sizes, seconds, "o-", color="black", label="measured")
        order = 2 if axis == "width" else 1
        line = seconds[-1] * (sizes / sizes[-1]) ** order
        panel.loglog(sizes, line, "--", color="tab:orange", label=f"exponent {order}")
        panel.set_title(f"exponent {row['exponent']:.2f}", fontsize=10)
        panel.set_xlabel(LABELS[axis])
        panel.set_ylabel(f"{results['clock']} (s)")
        panel.set_xticks(sizes, [str(s) for s in sizes], fontsize=8)
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def section(results):
    table = [
        [
            LABELS[axis],
            f"{row['sizes'][0]} to {row['sizes'][-1]}",
            f"{row['seconds'][0]:.3g} to {row['seconds'][-1]:.3g}",
            f"{row['exponent']:.2f}",
        ]
        for axis, row in results["rows"].items()
    ]
    header = ["against", "from, to", f"{results['clock']} (s)", "exponent"]
    return f"""## Growth

`python benchmarks/growth.py`: time of an AT-AWP step, and of an evaluation with PGD-10, of
{results["model"]} on {results["device"]}; figure `{results["figure"]}`. An exponent of 1, and of 2
against the width, is linear in the work.

{markdown_table(header, table)}
"""


def main():
    use_fast_convolutions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="growth.json")
    parser.add_argument("--model", default=None, help="mlp; preact-resnet-18 on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--readme", default=None, help="where the table goes, for trying")
    parser.add_argument("--quick", action="store_true", help="two sizes of everything")
    options = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    model = options.model or ("preact-resnet-18" if on_gpu else "mlp")
    clock = "seconds" if on_gpu else "cpu_seconds"
    sizes = SIZES if model == "mlp" else SIZES | RESIDUAL
    out = pathlib.Path(options.out)
    results = {
        "model": model,
        "device": jax.devices()[0].device_kind,
        "clock": "wall time" if on_gpu else "CPU time",
        "figure": f"{out.stem}.png",
        "rows": {},
    }
    for axis, values in sizes.items():
        began = time.perf_counter()
        values = values[:2] if options.quick else values
        if axis == "examples":
            seconds = evaluation_times(model, values, options.repeats, clock)
        else:
            seconds = step_times(model, axis, values, options.repeats, clock)
        row = {"sizes": values, "seconds": seconds, "exponent": exponent(values, seconds)}
        results["rows"][axis] = row
        took = time.perf_counter() - began
        print(f"{axis}: exponent {row['exponent']:.2f} ({took:.0f} s)", flush=True)
    out.write_text(json.dumps(results, indent=1))
    draw(results, out.with_suffix(""))
    text = section(results)
    print(text)
    if not options.quick or options.readme:
        write_section("growth", text, options.readme)


if __name__ == "__main__":
    main()
