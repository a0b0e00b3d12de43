"""Do the attacks agree with torchattacks and foolbox on the same convolutional network?

    python benchmarks/agreement.py --out=agreement.json [--images=500] [--quick]

The network is the MNIST CNN of TRADES, narrow, adversarially trained here for a minute on
scikit-learn's digits (doubled to 16 by 16 pixels, with a margin of 2), and handed to PyTorch as an
exported state dict. Attacks with random starts are run with several seeds and their means
compared: a single run is up to half a point away from its mean on 500 images. It takes about ten
minutes on one CPU core, and ends with status 1 where something disagrees.
"""

import argparse
import collections
import json
import pathlib
import platform
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from readme import write_section

from awp_jax import models
from awp_jax.attacks import (
    APGD,
    FAB,
    PGD,
    APGDTargeted,
    FABTargeted,
    Square,
    autoattack,
    cross_entropy,
)
from awp_jax.balls import input_norms
from awp_jax.interop import save_torch
from awp_jax.reporting import markdown_table

# Radii at which about half of the images survive.
EPSILON = {"linf": 0.15, "l2": 1.0}
THEIR_NORM = {"linf": "Linf", "l2": "L2"}
# In points of robust accuracy; for radii the median relative difference in percent.
TOLERANCE = {"pgd": 0.5, "apgd-ce": 0.6, "apgd-t": 0.6, "union": 0.6, "fab-t": 1.5, "square": 1.5}
TOLERANCE["fab radii"] = 2.0


def digits():
    """Images ``[1797, 20, 20, 1]`` in [0, 1] and labels, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.kron((data.images / 16).astype(np.float32), np.ones((1, 2, 2), np.float32))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], data.target.astype(np.int32)[order]


def train(classifier, images, labels, steps):
    """Adversarial training by PGD-3."""
    params, stats = classifier.init(jax.random.key(0))
    optimiser, attack = (
        optax.adam(2e-3),
        PGD(EPSILON["linf"] * 0.8, steps=3, step_size=EPSILON["linf"] * 0.4),
    )
    state, rng = optimiser.init(params), np.random.default_rng(0)

    @jax.jit
    def step(params, state, key, x, y):
        x = attack.perturb(classifier.logits_fn(params, stats), key, x, y)
        grads = jax.grad(lambda p: cross_entropy(classifier.logits_fn(p, stats)(x), y).mean())(
            params
        )
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        rows = rng.choice(len(labels), 128, replace=False)
        params, state = step(params, state, jax.random.key(index), images[rows], labels[rows])
    return params, stats


def in_torch(classifier, params, stats, width, hidden):
    """The same network in PyTorch, by way of an exported file."""
    import torch

    torch.backends.mkldnn.enabled = False  # float32 convolutions of some oneDNN builds are inexact
    nn = torch.nn

    class SmallCNN(nn.Module):  # as named in TRADES
        def __init__(self):
            super().__init__()
            sizes = ((1, width), (width, width), (width, 2 * width), (2 * width, 2 * width))
            layers = collections.OrderedDict()
            for number, (inputs, outputs) in enumerate(sizes, 1):
                layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3)
                layers[f"relu{number}"] = nn.ReLU()
                if number % 2 == 0:
                    layers[f"maxpool{number // 2}"] = nn.MaxPool2d(2, 2)
            self.feature_extractor = nn.Sequential(layers)
            dense = (("fc1", 4 * 2 * width, hidden), ("fc2", hidden, hidden), ("fc3", hidden, 10))
            layers = collections.OrderedDict()
            for name, inputs, outputs in dense:
                layers[name] = nn.Linear(inputs, outputs)
                if name != "fc3":
                    layers[f"relu_{name}"] = nn.ReLU()
            self.classifier = nn.Sequential(layers)

        def forward(self, x):
            return self.classifier(self.feature_extractor(x).flatten(1))

    module = SmallCNN()
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.pt"
        save_torch(file, classifier, params, stats)
        module.load_state_dict(torch.load(file, weights_only=True))
    return module.eval().requires_grad_(False)


class Both:
    """The network on both sides, and robust accuracies in percent by the JAX one."""

    def __init__(self, logits_fn, module, images, labels):
        import torch

        self.logits_fn, self.module = logits_fn, module
        self.images, self.labels = jnp.asarray(images), jnp.asarray(labels)
        self.torch_images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        self.torch_labels = torch.from_numpy(labels).long()
        theirs = module(self.torch_images).numpy()
        self.difference = float(np.abs(np.asarray(logits_fn(self.images)) - theirs).max())

    def right(self, images):
        return np.asarray(self.logits_fn(images).argmax(1) == self.labels)

    def accuracy(self, images):
        return 100 * float(self.right(images).mean())

    def ours(self, attack, seed=0):
        found = attack(self.logits_fn, jax.random.key(seed), self.images, self.labels)
        return self.accuracy(found.images)

    def robust(self, attack):
        """Which images a torchattacks attack leaves."""
        return self.right(self.back(attack(self.torch_images, self.torch_labels)))

    def theirs(self, attack):
        return 100 * float(self.robust(attack).mean())

    def foolbox(self, attack, epsilon):
        import foolbox

        model = foolbox.PyTorchModel(self.module, bounds=(0, 1))
        _, found, _ = attack(model, self.torch_images, self.torch_labels, epsilons=epsilon)
        return self.accuracy(self.back(found))

    @staticmethod
    def back(images):
        return jnp.asarray(images.detach().numpy().transpose(0, 2, 3, 1))


def compare(both, norm, seeds, queries, steps):
    """Rows ``(attack, peer, ours, theirs)`` of one norm."""
    import foolbox
    import torchattacks

    epsilon = EPSILON[norm]
    common = {"norm": THEIR_NORM[norm], "eps": epsilon}
    size = 2.5 * epsilon / 20

    def mean(run):
        return float(np.mean([run(seed) for seed in range(seeds)]))

    mine = both.ours(PGD(epsilon, steps=20, norm=norm, start="none"))
    plain = {"eps": epsilon, "alpha": size, "steps": 20, "random_start": False}
    peer = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm](both.module, **plain)
    yield "pgd", "torchattacks", mine, both.theirs(peer)
    peer = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    peer = peer(abs_stepsize=size, steps=20, random_start=False)
    yield "pgd", "foolbox", mine, both.foolbox(peer, epsilon)

    def apgd(seed):
        return torchattacks.APGD(both.module, **common, steps=steps, loss="ce", seed=seed)

    their_apgd = [both.robust(apgd(seed)) for seed in range(seeds)]
    yield (
        "apgd-ce",
        "torchattacks",
        mean(lambda seed: both.ours(APGD(epsilon, steps=steps, norm=norm), seed)),
        100 * float(np.mean(their_apgd)),
    )
    targeted = both.robust(torchattacks.APGDT(both.module, **common, steps=steps))
    mine = both.ours(APGDTargeted(epsilon, steps, norm))
    yield "apgd-t", "torchattacks", mine, 100 * float(targeted.mean())
    fab = torchattacks.FAB(both.module, **common, steps=steps, multi_targeted=True)
    fab = both.robust(fab)
    mine = both.ours(FABTargeted(epsilon, steps, norm))
    yield "fab-t", "torchattacks", mine, 100 * float(fab.mean())

    def square(seed):
        options = {"n_queries": queries, "resc_schedule": False, "seed": seed}
        return torchattacks.Square(both.module, **common, **options)

    def our_square(seed):
        return both.ours(Square(epsilon, queries, norm, released_corners=True), seed)

    their_square = [both.robust(square(seed)) for seed in range(seeds)]
    yield "square", "torchattacks", mean(our_square), 100 * float(np.mean(their_square))
    plan = [
        ("apgd-ce", APGD(epsilon, steps=steps, norm=norm)),
        ("apgd-t", APGDTargeted(epsilon, steps, norm)),
        ("fab-t", FABTargeted(epsilon, steps, norm)),
        ("square", Square(epsilon, queries, norm)),
    ]
    arguments = (both.logits_fn, jax.random.key(0), both.images, both.labels)
    options = {"norm": norm, "epsilon": epsilon, "version": "custom", "attacks": plan}
    found = autoattack(*arguments, **options, batch_size=len(both.labels))
    # What no attack of theirs breaks: their ensemble would run each of them on survivors only.
    union = their_apgd[0] & targeted & fab & their_square[0]
    yield "union", "torchattacks", 100 * found.accuracy, 100 * float(union.mean())


def radii(both, norm, steps):
    """Median relative difference, in percent, of the radii that the untargeted FAB finds."""
    import torchattacks

    arguments = (both.logits_fn, jax.random.key(0), both.images, both.labels)
    mine = np.asarray(FAB(1.0, steps, norm).nearest(*arguments).radius)
    peer = torchattacks.FAB(both.module, norm=THEIR_NORM[norm], eps=1e3, steps=steps)
    found = both.back(peer(both.torch_images, both.torch_labels))
    theirs = np.asarray(input_norms(found - both.images, norm))
    known = np.isfinite(mine) & (theirs > 0) & (mine > 0)
    return 100 * float(np.median(np.abs(mine[known] / theirs[known] - 1))), int(known.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="agreement.json")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3, help="of attacks with random starts")
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB")
    parser.add_argument("--queries", type=int, default=500, help="of Square")
    parser.add_argument("--training_steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--readme", default=None, help="where the table goes, for trying")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.images, options.seeds, options.steps, options.queries = 40, 1, 10, 50
        options.training_steps = 60
    began = time.perf_counter()
    images, labels = digits()
    hidden = 64
    sizes = {"width": options.width, "hidden": hidden, "dropout": 0.0}
    classifier = models.create("mnist-cnn", image_shape=(20, 20, 1), num_classes=10, **sizes)
    held_out = images[: options.images], labels[: options.images]
    rest = images[options.images :], labels[options.images :]
    params, stats = train(classifier, *rest, options.training_steps)
    module = in_torch(classifier, params, stats, options.width, hidden)
    both = Both(classifier.logits_fn(params, stats), module, *held_out)
    rows = []
    for norm, epsilon in EPSILON.items():
        for attack, peer, mine, theirs in compare(
            both, norm, options.seeds, options.queries, options.steps
        ):
            rows.append((norm, epsilon, attack, peer, mine, theirs, abs(mine - theirs)))
            print(*rows[-1], flush=True)
        difference, known = radii(both, norm, min(options.steps, 30))
        rows.append((norm, epsilon, "fab radii", "torchattacks", None, None, difference))
        print(*rows[-1], f"{known} images", flush=True)
    names = ("norm", "epsilon", "attack", "peer", "ours", "theirs", "difference")
    results = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "readme")},
        "clean_accuracy": both.accuracy(both.images),
        "largest_difference_of_logits": both.difference,
        "jax": jax.__version__,
        "machine": f"{platform.machine()}, {jax.devices()[0].platform}",
        "seconds": round(time.perf_counter() - began),
        "rows": [dict(zip(names, row, strict=True)) for row in rows],
    }
    for row in results["rows"]:
        row["tolerance"] = TOLERANCE[row["attack"]]
        row["agrees"] = row["difference"] <= row["tolerance"] + 1e-9
    pathlib.Path(options.out).write_text(json.dumps(results, indent=1))
    text = section(results)
    print(text)
    if not options.quick or options.readme:
        write_section("agreement", text, options.readme)
    return 0 if all(row["agrees"] for row in results["rows"]) else 1


def section(results):
    """The section of the README."""
    settings = results["settings"]

    def cells(row):
        numbers = ["" if row[k] is None else f"{row[k]:.2f}" for k in ("ours", "theirs")]
        unit = " %" if row["attack"] == "fab radii" else ""
        numbers += [f"{row['difference']:.2f}{unit}", f"{row['tolerance']:g}{unit}"]
        return [row["norm"], f"{row['epsilon']:g}", row["attack"], row["peer"], *numbers]

    header = ["norm", "epsilon", "attack", "peer", "ours", "theirs", "difference", "allowed"]
    return f"""## Agreement with torchattacks and foolbox

`python benchmarks/agreement.py`: robust accuracy in percent on {settings["images"]} digits by the
attacks of both sides on the same weights, a narrow MNIST CNN trained here
({results["clean_accuracy"]:.1f} clean). APGD and FAB with {settings["steps"]} steps, Square with
{settings["queries"]} queries; APGD-CE and Square are means over {settings["seeds"]} seeds. "fab
radii" is the median relative difference of the distances that untargeted FAB finds. The logits of
JAX and PyTorch differ by at most {results["largest_difference_of_logits"]:.1g}. jax
{results["jax"]}, {results["machine"]}, {results["seconds"]} s.

{markdown_table(header, [cells(row) for row in results["rows"]])}
"""


if __name__ == "__main__":
    sys.exit(main())
