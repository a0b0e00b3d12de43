"""What two shortcuts of weight perturbation save, and what they change, on real images.

    AWP_JAX_DATA=... python benchmarks/weight_perturbations.py --data=cifar10 --epochs=4

Trains AT, and measures after every epoch, on one training batch and its adversarial images:

- RWP: seconds to find v with all K2 = 10 steps, and stopping when no example is selected, with how
  many steps that takes;
- AWP whose ascent gradient comes from the backward pass of the last PGD step ("shared"): the cosine
  of its v to the exact one, by how much each raises the adversarial loss, and seconds per training
  step of AT, AT-AWP and shared AT-AWP.

Times are medians without compilation: on CPU processor time (whatever else runs), else wall clock.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import config as schema
from awp_jax import data, training
from awp_jax.attacks import cross_entropy
from awp_jax.training import WeightPerturbation, objective_of
from awp_jax.training._attack import TrainingAttack, make_attack
from awp_jax.weights import perturb, robust_displacement

GAMMA = 0.01


def config_of(arguments):
    config = schema.default()
    config.data.name = arguments.data
    config.data.train_examples = arguments.train_examples
    config.data.validation_examples = 64
    config.data.test_examples = 64
    config.model.name = arguments.model
    config.model.width = arguments.width
    config.model.normalize = arguments.data != "digits"
    config.batch_size = arguments.batch_size
    config.epochs = arguments.epochs
    config.weights.method = "none"
    config.optimizer.learning_rate = 0.05
    config.attack.epsilon, config.attack.step_size = arguments.epsilon, arguments.step_size
    if arguments.data in ("digits", "mnist", "svhn"):
        config.data.flip = False
        config.data.crop_padding = 0
    return schema.validate(config)


def seconds(function, repeats=5):
    """The median time of a call, after one that compiles."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        began = clock()
        jax.block_until_ready(function())
        times.append(clock() - began)
    return statistics.median(times)


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class Bench:
    """One experiment with the functions that are timed, each compiled once."""

    def __init__(self, arguments):
        self.experiment = training.build(config_of(arguments))
        config = self.experiment.config
        classifier, train = self.experiment.classifier, self.experiment.splits.train
        self.attack = TrainingAttack(
            config.attack.epsilon,
            steps=config.attack.steps,
            norm=config.attack.norm,
            step_size=config.attack.step_size,
        )
        self.craft = jax.jit(
            make_attack(classifier, objective_of(config), self.attack, share_backward=True)[0]
        )
        self.images = data.as_float(jnp.asarray(train.images[: config.batch_size]))
        self.labels = jnp.asarray(train.labels[: config.batch_size])
        self.keys = jax.random.split(jax.random.key(1), config.batch_size)

        def losses(batch_stats, images, labels, params):
            logits, _ = classifier.apply(params, batch_stats, images, mode="batch")
            return cross_entropy(logits, labels)

        self.losses = losses
        self.mean_loss = jax.jit(lambda p, *rest: losses(*rest, p).mean())
        self.gradient = jax.jit(jax.grad(self.mean_loss))
        self.passes = 0

    def rwp(self, state, c_min, adversarial):
        function = Partial(self.losses, state.batch_stats, adversarial, self.labels)
        find = lambda c: robust_displacement(state.params, function, GAMMA, c_min=c)  # noqa: E731
        stops = [
            find_steps
            for find_steps in range(1, 11)
            if self._same(
                robust_displacement(state.params, function, GAMMA, c_min=c_min, steps=find_steps),
                find(c_min),
            )
        ]
        return seconds(lambda: find(float("inf")), 3), seconds(lambda: find(c_min), 3), stops[0]

    @staticmethod
    def _same(a, b):
        leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(bool((x == y).all()) for x, y in leaves)

    def shared(self, state):
        arguments = (self.images, self.labels, self.keys, jax.random.key(2))
        crafted = self.craft(state.params, state.batch_stats, *arguments)
        where = (state.batch_stats, crafted.images, self.labels)
        exact = perturb(state.params, self.gradient(state.params, *where), GAMMA)
        found = perturb(state.params, crafted.weight_gradient, GAMMA)
        cosine = dot(exact, found) / jnp.sqrt(dot(exact, exact) * dot(found, found))
        moved = [jax.tree.map(jnp.add, state.params, v) for v in (exact, found)]
        before, *after = (
            float(self.mean_loss(p, *where)) for p in (state.params, moved[0], moved[1])
        )
        return crafted.images, float(cosine), before, *(loss - before for loss in after)

    def step_times(self, repeats=9):
        """Floating-point operations of a step and its times, the methods in turn."""
        flops, calls = {}, {}
        for name, weights in {
            "AT": WeightPerturbation("none"),
            "AT-AWP": WeightPerturbation("awp", GAMMA),
            "AT-AWP shared": WeightPerturbation("awp", GAMMA, shared_backward=True),
        }.items():
            step = training.make_train_step(
                self.experiment.classifier,
                objective_of(self.experiment.config),
                self.experiment.optimizer,
                attack=self.attack,
                weights=weights,
            )
            arguments = (self.experiment.init(), self.images, self.labels, jax.random.key(0))
            compiled = jax.jit(step).lower(*arguments).compile()
            flops[name] = compiled.cost_analysis()["flops"]
            calls[name] = functools.partial(compiled, *arguments)
        times = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(seconds(call, 1))
        return {name: (flops[name], times[name]) for name in calls}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--model", default="preact-resnet-10")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--train_examples", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--epsilon", default="8/255")
    parser.add_argument("--step_size", default="2/255")
    parser.add_argument("--c_min", type=float, default=1.7)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    experiment = bench.experiment
    state = experiment.init()
    pool = jax.device_put((experiment.pool.images, experiment.pool.labels))
    print(f"{arguments}, gamma {GAMMA}, seed 0, {jax.devices()[0].device_kind}")
    print("epoch  loss   RWP all  RWP stop  steps  cosine  exact raises  shared raises")
    for epoch in range(arguments.epochs + 1):
        adversarial, cosine, loss, exact, shared = bench.shared(state)
        whole, stopped, steps = bench.rwp(state, arguments.c_min, adversarial)
        print(
            f"{epoch:>5}  {loss:.3f}  {whole:6.3f}s  {stopped:7.3f}s  {steps:>5}  {cosine:6.3f}  "
            f"{exact:12.4f}  {shared:13.4f}",
            flush=True,
        )
        if epoch == arguments.epochs:
            break
        for step in range(experiment.steps_per_epoch):
            now = epoch * experiment.steps_per_epoch + step
            state, _ = experiment.step(
                state,
                *pool,
                experiment.order(epoch),
                experiment.key,
                batch_size=experiment.rows_of(now),
                perturb_weights=False,
            )
    for name, (flops, times) in bench.step_times().items():
        print(
            f"{name:<14} {flops:.3g} FLOPs, {statistics.median(times):.3f} s per step "
            f"(least {min(times):.3f})"
        )


if __name__ == "__main__":
    main()
