"""Does bfloat16 change robust accuracy? A ResNet on digits and 2,000 CIFAR-10 images, three seeds.

    AWP_JAX_DATA=... python benchmarks/precision.py --out=benchmarks/precision.json [--epochs=8]

Trains AT-AWP in float32 and in bfloat16 compute (parameters, BatchNorm statistics and losses in
float32 both times) and measures PGD-20 accuracy of the last weights in float32. The noise is the
deviation over seeds; "agrees" when the means differ by less than twice its standard error.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
from readme import write_section

from awp_jax import training
from awp_jax.compilation import use_fast_convolutions
from awp_jax.config import default
from awp_jax.evaluation import measure
from awp_jax.reporting import markdown_table
from configs import digits_resnet


def cifar10(width):
    """A narrow PreActResNet-10 on 2,000 images."""
    config = default()
    config.data.train_examples, config.data.validation_examples = 2000, 100
    config.model.name, config.model.width = "preact-resnet-10", width
    return config


def accuracy(config, seed, dtype, epochs, examples):
    """Clean and PGD-20 accuracy on test images, in float32."""
    config.seed, config.epochs, config.model.dtype = seed, epochs, dtype
    config.data.test_examples = config.evaluation.test_examples = examples
    config.evaluation.every_epochs, config.evaluation.train_examples = epochs, 0
    config.checkpoint.every_epochs = epochs
    with tempfile.TemporaryDirectory() as folder:
        state = training.train(config, folder, quiet=True).state
    config.model.dtype = "float32"
    experiment = training.build(config)
    test = experiment.splits.test
    logits_fn = experiment.classifier.logits_fn(state.params, state.batch_stats)
    arguments, options = (logits_fn, test.images, test.labels), {"key": jax.random.key(0)}
    attack = training.evaluation_attack(config)
    return measure(*arguments, **options).accuracy, measure(*arguments, attack, **options).accuracy


def compare(config_fn, options):
    rows = {}
    for dtype in ("float32", "bfloat16"):
        began = time.perf_counter()
        found = [
            accuracy(config_fn(), seed, dtype, options.epochs, options.examples)
            for seed in range(options.seeds)
        ]
        clean, robust = zip(*found, strict=True)
        rows[dtype] = {"clean": clean, "robust": robust, "seconds": time.perf_counter() - began}
        print(dtype, rows[dtype], flush=True)
    means = [statistics.mean(rows[dtype]["robust"]) for dtype in rows]
    error = 0.0
    if options.seeds > 1:
        variances = [statistics.variance(rows[dtype]["robust"]) for dtype in rows]
        error = (sum(variances) / options.seeds) ** 0.5
    # One image of the test set is what can be seen at all.
    limit = max(2 * error, 1 / options.examples)
    return {"rows": rows, "difference": means[1] - means[0], "limit": limit}


def section(results):
    table = []
    for name, found in results["data"].items():
        for dtype, row in found["rows"].items():
            cells = [
                f"{100 * statistics.mean(row[key]):.2f}, "
                + "/".join(f"{100 * value:.1f}" for value in row[key])
                for key in ("clean", "robust")
            ]
            last = dtype == "bfloat16"
            difference = f"{100 * found['difference']:+.2f}" if last else ""
            table.append(
                [name, dtype, *cells, difference, f"{100 * found['limit']:.2f}" if last else ""]
            )
    header = ["data", "compute", "clean (%), seeds", "PGD-20 (%), seeds", "difference", "noise"]
    s = results["settings"]
    return f"""## bfloat16 against float32

`python benchmarks/precision.py`: AT-AWP, {s["epochs"]} epochs, {s["seeds"]} seeds, {s["examples"]}
test images attacked in float32, {results["device"]}. "noise" is twice the standard error of the
difference.

{markdown_table(header, table)}
"""


def main():
    use_fast_convolutions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="precision.json")
    parser.add_argument("--data", default="digits-resnet,cifar10")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=500, help="of the test set")
    parser.add_argument("--width", type=int, default=8, help="of the network on CIFAR-10")
    parser.add_argument("--readme", default=None, help="where the table goes, for trying")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.seeds, options.data = 1, 1, "digits-resnet"
    known = {
        "digits-resnet": digits_resnet.get_config,
        "cifar10": lambda: cifar10(options.width),
    }
    results = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "readme")},
        "device": jax.devices()[0].device_kind,
        "data": {},
    }
    for name in options.data.split(","):
        results["data"][name] = compare(known[name], options)
        pathlib.Path(options.out).write_text(json.dumps(results, indent=1))
    text = section(results)
    print(text)
    if not options.quick or options.readme:
        write_section("precision", text, options.readme)


if __name__ == "__main__":
    main()
