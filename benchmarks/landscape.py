"""Times a 1-D landscape against the obvious PyTorch loop: same weights, same images, one run, CPU.

    AWP_JAX_DATA=/path/to/data python benchmarks/landscape.py --out=landscape.json \
        [--model=wrn-16-2] [--images=256] [--points=3] [--steps=2] [--threads=1]

WideResNet-16-2, untrained, on CIFAR-10 test images (random ones where there are none); adversarial
examples made anew at every point by PGD on 8/255. Seconds are CPU seconds of the process, which
other work on the machine does not change (on one core, ``taskset -c 0``, they are those of an idle
machine); compilation of ours is given apart. The PyTorch loop adds alpha * d to the weights, runs
PGD and takes the mean loss, as released landscape scripts do; it runs with oneDNN and without,
because oneDNN's float32 convolutions are wrong on some processors, and its losses are compared
with ours. A ratio above 1 means that ours is faster. Then: how time grows with points and examples.
"""

import argparse
import importlib.util
import json
import pathlib
import platform
import time

import jax
import numpy as np

from awp_jax import data, models
from awp_jax.attacks import PGD
from awp_jax.compilation import use_fast_convolutions
from awp_jax.landscape import axis, directions, surface

EPSILON, SIZE = 8 / 255, 2 / 255
_TORCH_MODELS = pathlib.Path(__file__).parents[1] / "tests" / "models" / "torch_models.py"


def images_and_labels(count):
    """CIFAR-10 test images, or noise."""
    try:
        test = data.load("cifar10").test
        return test.images[:count], test.labels[:count], "CIFAR-10 test images"
    except data.DataError:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        return images, rng.integers(0, 10, count).astype(np.int32), "random images"


class Ours:
    """A landscape of a model of this library."""

    def __init__(self, name, steps):
        self.classifier = models.create(name, image_shape=(32, 32, 3), num_classes=10)
        self.params, self.stats = self.classifier.init(jax.random.key(0))
        self.ways = directions(jax.random.key(1), self.params)
        # No random start: the peer then makes the same adversarial examples.
        self.attack = PGD(EPSILON, steps=steps, step_size=SIZE, start="none")

    def __call__(self, images, labels, alphas, batch_size):
        """Losses, and seconds of each point."""
        marks = [time.process_time()]
        found = surface(
            self.classifier.apply_fn(self.stats),
            self.params,
            self.ways,
            images,
            labels,
            axes=[alphas],
            attack=self.attack,
            key=jax.random.key(2),
            batch_size=batch_size,
            on_points=lambda now, left: marks.append(time.process_time()),
        )
        return found.loss, np.diff(marks)


def peer(ours, depth, width):
    """The same landscape in PyTorch, called as ``Ours``."""
    import torch

    spec = importlib.util.spec_from_file_location("torch_models", _TORCH_MODELS)
    definitions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definitions)
    module = definitions.WideNet(depth, width, 3, 10)
    definitions.copy_into(module, ours.classifier, ours.params, ours.stats)
    module.eval().requires_grad_(False)
    ways = definitions.WideNet(depth, width, 3, 10)
    first = jax.tree.map(lambda leaf: leaf[0], ours.ways)
    definitions.copy_into(ways, ours.classifier, first, ours.stats)
    centre = [p.clone() for p in module.parameters()]
    loss = torch.nn.CrossEntropyLoss(reduction="sum")

    def attacked(x, y):
        clean, point = x, x.clone()
        for _ in range(ours.attack.steps):
            point.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(module(point), y), point)
            point = point.detach() + SIZE * gradient.sign()
            point = torch.clamp(clean + torch.clamp(point - clean, -EPSILON, EPSILON), 0, 1)
        return point

    def run(images, labels, alphas, batch_size):
        x = torch.from_numpy((images / np.float32(255)).transpose(0, 3, 1, 2).copy())
        y = torch.from_numpy(labels).long()
        losses, seconds = [], []
        for alpha in alphas:
            began, total = time.process_time(), 0.0
            for p, w, d in zip(module.parameters(), centre, ways.parameters(), strict=True):
                p.data.copy_(w + float(alpha) * d.data)
            for batch, batch_labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
                found = attacked(batch, batch_labels)
                with torch.no_grad():
                    total += float(loss(module(found), batch_labels))
            losses.append(total / len(y))
            seconds.append(time.process_time() - began)
        return np.array(losses), np.array(seconds)

    return run


def main():
    use_fast_convolutions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="landscape.json")
    parser.add_argument("--model", default="wrn-16-2")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of PGD")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    _, depth, width = options.model.split("-")
    images, labels, source = images_and_labels(options.images)
    ours, size = Ours(options.model, options.steps), options.batch_size
    alphas = axis(options.points, 0.5)
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    results = {"settings": settings, "images": source, "jax": jax.__version__}
    results |= {"torch": torch.__version__, "machine": platform.machine(), "unit": "CPU seconds"}
    _, first = ours(images, labels, alphas[:1], size)
    losses, seconds = ours(images, labels, alphas, size)
    point = float(np.median(seconds))
    results["ours"] = {"first_point_s": float(first[0]), "point_s": point, "loss": losses.tolist()}
    theirs = peer(ours, int(depth), int(width))
    for name, enabled in (("torch, oneDNN", True), ("torch, no oneDNN", False)):
        torch.backends.mkldnn.enabled = enabled
        theirs(images[:8], labels[:8], alphas[:1], size)
        found, seconds = theirs(images, labels, alphas[:2], size)
        results[name] = {
            "point_s": float(np.median(seconds)),
            "over_ours": float(np.median(seconds)) / point,
            "largest_difference_of_loss": float(np.abs(found - losses[:2]).max()),
        }
    results["growth"] = growth(ours, images, labels, size)
    with open(options.out, "w") as file:
        json.dump(results, file, indent=1)
    print(json.dumps(results, indent=1))


def growth(ours, images, labels, batch_size):
    """CPU seconds of whole landscapes with more points, and with more examples."""
    few = min(32, batch_size, len(labels))
    found = {"points": {}, "examples": {}}
    ours(images[:few], labels[:few], np.zeros(1), few)  # compiles for this batch
    for points in (1, 2, 4):
        seconds = ours(images[:few], labels[:few], np.linspace(0, 0.5, points), few)[1]
        found["points"][points] = float(seconds.sum())
    for factor in (1, 2, 4):
        count = min(factor * few, len(labels))
        ours(images[:count], labels[:count], np.zeros(1), few)  # compiles for this many
        seconds = ours(images[:count], labels[:count], np.zeros(1), few)[1]
        found["examples"][count] = float(seconds.sum())
    return found


if __name__ == "__main__":
    main()
