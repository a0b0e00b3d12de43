"""Times attacks against torchattacks and foolbox: same weights, same images, one run, CPU.

    python benchmarks/attacks.py --out=attacks.json [--images=200] [--threads=2] [--quick]

The network is a small convolutional one on scikit-learn's digits, adversarially trained for a few
seconds. Times of ours are given with compilation (first call) and without (second call, another
key); peers have nothing to compile. A ratio above 1 means that ours is faster. ``--quick`` only
shows that it runs, and leaves benchmarks/README.md alone.
"""

import argparse
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from readme import write_section

from awp_jax.attacks import PGD, APGDTargeted, autoattack, cross_entropy, ensemble
from awp_jax.compilation import use_fast_convolutions
from awp_jax.reporting import markdown_table

EPSILON = 0.12


def network(params, images):
    """Two convolutions, then a dense layer."""
    x = images
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel, bias = params[name]
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=dimensions
        )
        x = jax.nn.relu(x + bias)
    kernel, bias = params["dense"]
    return x.reshape(x.shape[0], -1) @ kernel + bias


def mlp(params, images):
    """Two hidden layers."""
    x = images.reshape(images.shape[0], -1)
    for name in ("hidden1", "hidden2"):
        x = jax.nn.relu(x @ params[name][0] + params[name][1])
    return x @ params["dense"][0] + params["dense"][1]


def shapes_of(kind, width):
    if kind == "mlp":
        return {"hidden1": (64, width), "hidden2": (width, width), "dense": (width, 10)}
    shapes = {"conv1": (3, 3, 1, width), "conv2": (3, 3, width, 2 * width)}
    return shapes | {"dense": (32 * width, 10)}


def train(function, shapes, images, labels, steps=150):
    """A few steps of adversarial training."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: (
            jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1])),
            jnp.zeros(shape[-1]),
        )
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    optimiser, attack = optax.adam(3e-3), PGD(EPSILON, steps=3, step_size=EPSILON / 2)
    state, rng = optimiser.init(params), np.random.default_rng(0)

    @jax.jit
    def step(params, state, key, x, y):
        x = attack.perturb(Partial(function, params), key, x, y)
        grads = jax.grad(lambda p: cross_entropy(function(p, x), y).mean())(params)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        rows = rng.choice(len(labels), 128, replace=False)
        params, state = step(params, state, jax.random.key(index), images[rows], labels[rows])
    return params


def as_torch(kind, params):
    """The same network in PyTorch."""
    import torch

    def layer(name, stride):
        kernel, bias = (np.array(x) for x in params[name])
        if kernel.ndim == 4:
            module = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, stride, padding=1)
            kernel = kernel.transpose(3, 2, 0, 1).copy()
        else:
            module = torch.nn.Linear(*kernel.shape)
            kernel = kernel.T.copy()
        module.weight.data, module.bias.data = torch.from_numpy(kernel), torch.from_numpy(bias)
        return module

    class LastChannelFlatten(torch.nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)

    flatten, relu = LastChannelFlatten(), torch.nn.ReLU()
    if kind == "mlp":
        parts = [flatten, layer("hidden1", 1), relu, layer("hidden2", 1), relu]
    else:
        parts = [layer("conv1", 1), relu, layer("conv2", 2), relu, flatten]
    return torch.nn.Sequential(*parts, layer("dense", 1)).eval().requires_grad_(False)


def timed(function):
    began = time.perf_counter()
    value = jax.block_until_ready(function())
    return time.perf_counter() - began, value


def compare(kind, width, count, queries):
    """All timings of one network."""
    import foolbox
    import torch
    import torch_peer
    import torchattacks
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16).astype(np.float32)[..., None]
    labels = data.target.astype(np.int32)
    function = {"mlp": mlp, "cnn": network}[kind]
    with jax.numpy_rank_promotion("allow"):
        params = train(function, shapes_of(kind, width), images[count:], labels[count:])
    logits_fn = Partial(function, params)
    x, y = jnp.asarray(images[:count]), jnp.asarray(labels[:count])
    module = as_torch(kind, params)
    torch_x = torch.from_numpy(images[:count].transpose(0, 3, 1, 2).copy())
    torch_y = torch.from_numpy(labels[:count]).long()

    def accuracy(adversarial):
        found = np.asarray(adversarial.detach()).transpose(0, 2, 3, 1)
        return float((logits_fn(found).argmax(1) == y).mean())

    def ours(run, robust):
        first, _ = timed(lambda: run(0))
        seconds, result = min((timed(lambda k=k: run(k)) for k in (1, 2)), key=lambda pair: pair[0])
        return {"first_call_s": first, "seconds": seconds, "robust": robust(result)}

    def theirs(run):
        seconds, found = min((timed(run) for _ in range(2)), key=lambda pair: pair[0])
        return {"seconds": seconds, "robust": accuracy(found)}

    size = EPSILON / 10
    attack = PGD(EPSILON, steps=40, step_size=size)
    rows = {
        "pgd-40": {
            "ours": ours(
                lambda seed: attack(logits_fn, jax.random.key(seed), x, y),
                lambda result: float(1 - result.success.mean()),
            ),
            "torchattacks": theirs(
                lambda: torchattacks.PGD(module, EPSILON, size, 40)(torch_x, torch_y)
            ),
            "foolbox": theirs(
                lambda: foolbox.attacks.LinfPGD(abs_stepsize=size, steps=40)(
                    foolbox.PyTorchModel(module, bounds=(0, 1)), torch_x, torch_y, epsilons=EPSILON
                )[1]
            ),
        }
    }
    plan = dict(ensemble(epsilon=EPSILON))
    assert isinstance(plan["apgd-t"], APGDTargeted)
    plan["square"] = type(plan["square"])(EPSILON, queries)
    peer = torch_peer.autoattack(module, EPSILON, queries)
    rows["autoattack"] = {
        "ours": ours(
            lambda seed: autoattack(
                logits_fn,
                jax.random.key(seed),
                x,
                y,
                epsilon=EPSILON,
                version="custom",
                attacks=list(plan.items()),
                batch_size=count,
            ),
            lambda result: result.accuracy,
        ),
        "torchattacks": theirs(lambda: peer(torch_x, torch_y)),
    }
    for row in rows.values():
        for name in ("torchattacks", "foolbox"):
            if name in row:
                row[f"{name}_over_ours"] = row[name]["seconds"] / row["ours"]["seconds"]
    return rows


def main():
    use_fast_convolutions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="attacks.json")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--readme", default=None, help="where the table goes, for trying")
    parser.add_argument("--quick", action="store_true", help="a minute or two, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.images, options.queries, options.width = 24, 50, 4
    import torch

    torch.set_num_threads(options.threads)
    torch.backends.mkldnn.enabled = False  # float32 convolutions of some oneDNN builds are inexact
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "readme")}
    results = {"settings": settings, "epsilon": EPSILON, "jax": jax.__version__}
    results["machine"] = f"{platform.machine()}, {jax.devices()[0].platform}"
    for kind, width in (("mlp", 4 * options.width), ("cnn", options.width)):
        results[kind] = compare(kind, width, options.images, options.queries)
    pathlib.Path(options.out).write_text(json.dumps(results, indent=1))
    text = section(results)
    print(text)
    if not options.quick or options.readme:
        write_section("attacks", text, options.readme)


def section(results):
    """The section of the README."""
    settings, rows = results["settings"], []
    for kind in ("mlp", "cnn"):
        for attack, row in results[kind].items():
            ours = row["ours"]
            accuracy = f"{100 * ours['robust']:.1f}"
            times = [f"{ours['seconds']:.2f}", f"{ours['first_call_s']:.1f}"]
            rows.append([kind, attack, "awp_jax", accuracy, *times, ""])
            for peer in ("torchattacks", "foolbox"):
                if peer in row:
                    accuracy = f"{100 * row[peer]['robust']:.1f}"
                    ratio = f"{row[f'{peer}_over_ours']:.1f}"
                    rows.append(
                        [kind, attack, peer, accuracy, f"{row[peer]['seconds']:.2f}", "", ratio]
                    )
    header = ["model", "attack", "library", "robust (%)", "seconds", "first call (s)", "over ours"]
    return f"""## Speed of attacks

`python benchmarks/attacks.py`: {settings["images"]} digits, Linf epsilon {results["epsilon"]},
Square with {settings["queries"]} queries, {settings["threads"]} threads of PyTorch. Seconds are the
better of two runs; the first call includes compilation. "over ours" above 1: slower than awp_jax.
jax {results["jax"]}, {results["machine"]}.

{markdown_table(header, rows)}
"""


if __name__ == "__main__":
    main()
