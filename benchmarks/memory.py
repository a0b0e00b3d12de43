"""Memory of training and attack, and the largest batch that fits: from what is compiled.

    python benchmarks/memory.py --out=benchmarks/memory.json [--models=wrn-34-10]

Two measures, in bytes per image:
- "kept": what the forward pass keeps for the backward pass, by the shapes of ``jax.vjp``; for
  training (gradient in weights and images) and for the attack (images only). Nothing is compiled.
- "compiled": ``memory_analysis()`` of the whole AT-AWP step at two batch sizes, and the line
  through both (with ``--compile``; the default on a GPU). One attack step is enough: every one
  has the memory of the one before. XLA's CPU compiler undoes rematerialisation, so on CPU this
  column is the same with and without.

The largest batch is by the compiled line where there is one; else by "kept" and five times the
parameters (w, momentum, gradient, v and w + v), which leaves out what is needed on the way.
"""

import argparse
import json
import math
import pathlib

import jax
import jax.numpy as jnp
from readme import write_section
from training import MODELS, config_of, peak_bytes, splits_of

from awp_jax import training
from awp_jax.attacks import cross_entropy
from awp_jax.compilation import use_fast_convolutions
from awp_jax.reporting import markdown_table

GIGABYTES = (24, 80, 141)


def size_of(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept_per_image(classifier, weights, batch=8):
    """Bytes that a forward pass keeps for the backward pass, beside the parameters."""
    params, stats = jax.eval_shape(classifier.init, jax.random.key(0))

    def kept(size):
        images = jax.ShapeDtypeStruct((size, *classifier.image_shape), jnp.float32)
        labels = jax.ShapeDtypeStruct((size,), jnp.int32)

        def backward(params, stats, images, labels):
            def loss(params, images):
                logits, _ = classifier.apply(params, stats, images, mode="batch")
                return cross_entropy(logits, labels).mean()

            if weights:
                return jax.vjp(loss, params, images)[1]
            return jax.vjp(lambda x: loss(params, x), images)[1]

        return size_of(jax.eval_shape(backward, params, stats, images, labels))

    return (kept(2 * batch) - kept(batch)) / batch


def compiled_bytes(config, shape):
    """Peak bytes of the compiled training step."""
    experiment = training.build(config, splits_of(shape, config.batch_size))
    images, labels = experiment.on_devices()
    lowered = experiment.step.lower(
        experiment.abstract_state(),
        images,
        labels,
        experiment.order(0),
        experiment.key,
        batch_size=config.batch_size,
        perturb_weights=True,
    )
    return peak_bytes(lowered.compile())


def measure(model, dtype, remat, batches, compile_too):
    shape = MODELS[model][0]
    config = config_of(model, batches[0], dtype=dtype, steps=1)
    config.model.remat = remat
    classifier = training.build(config, splits_of(shape, batches[0])).classifier
    fixed = 5 * size_of(jax.eval_shape(classifier.init, jax.random.key(0))[0])
    row = {"model": model, "dtype": dtype, "remat": remat}
    row["kept_training"] = kept_per_image(classifier, True)
    row["kept_attack"] = kept_per_image(classifier, False)
    per_image = row["kept_training"]
    if compile_too:
        found = []
        for batch in batches:
            config.batch_size = batch
            found.append(compiled_bytes(config, shape))
        per_image = (found[1] - found[0]) / (batches[1] - batches[0])
        fixed = found[0] - per_image * batches[0]
        row |= {"batches": batches, "compiled": found, "compiled_per_image": per_image}
    row["fixed"] = fixed
    row["largest_batch"] = {g: int((g * 1e9 - fixed) // per_image) for g in GIGABYTES}
    return row


def section(results):
    def mib(value):
        return "" if value is None else f"{value / 2**20:.1f}"

    rows = [
        [
            row["model"],
            row["dtype"],
            "yes" if row["remat"] else "no",
            mib(row["kept_training"]),
            mib(row["kept_attack"]),
            mib(row.get("compiled_per_image")),
            mib(row["fixed"]),
            *(str(row["largest_batch"][g]) for g in GIGABYTES),
        ]
        for row in results["rows"]
    ]
    header = ["model", "dtype", "remat", "kept, training", "kept, attack", "compiled", "fixed"]
    header += [f"batch on {g} GB" for g in GIGABYTES]
    return f"""## Memory

`python benchmarks/memory.py`: MiB per image of a training step (AT-AWP) and of its attack, and the
largest batch. "kept" for the backward pass, "compiled" by XLA's plan for {results["device"]};
"fixed" does not grow with the batch. Where nothing was compiled, batches are upper limits. XLA's
compiler for CPUs undoes rematerialisation, so there "compiled" is the same with it and without.

{markdown_table(header, rows)}
"""


def main():
    use_fast_convolutions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="memory.json")
    parser.add_argument("--models", default="preact-resnet-18,wrn-34-10")
    parser.add_argument("--batches", default="16,32", help="two, with a comma")
    parser.add_argument("--compile", action="store_true", help="also on CPU: minutes")
    parser.add_argument("--readme", default=None, help="where the table goes, for trying")
    parser.add_argument("--quick", action="store_true", help="nothing compiled, README left alone")
    options = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    compile_too = (options.compile or on_gpu) and not options.quick
    batches = [int(text) for text in options.batches.split(",")]
    results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rows": []}
    for model in options.models.split(","):
        for dtype in ("float32", "bfloat16"):
            for remat in (False, True):
                results["rows"].append(measure(model, dtype, remat, batches, compile_too))
                pathlib.Path(options.out).write_text(json.dumps(results, indent=1))
    text = section(results)
    print(text)
    if not options.quick or options.readme:
        write_section("memory", text, options.readme)


if __name__ == "__main__":
    main()
