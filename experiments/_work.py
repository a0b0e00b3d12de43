"""How much work a cell is, from the model's forward pass; and how fast it was done."""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from awp_jax import data, objectives
from awp_jax.attacks._work import work
from awp_jax.evaluation import attacks_by_name
from awp_jax.training import create_classifier, read_metrics
from experiments import _measures as measures
from experiments._cells import Experiment, Job
from experiments._scales import Scale

# In forward passes: a gradient in the images is one forward and one backward pass, of about the
# same cost each; a gradient in the weights needs both backward products.
_INPUT_GRADIENT, _WEIGHT_GRADIENT = 2, 3
_ASCENT = {"average": _INPUT_GRADIENT, "worst": _WEIGHT_GRADIENT + 1}
# Of Lanczos iteration for one eigenvalue.
_PRODUCTS = 40
# Passes that gradients and verdicts of a randomised model average over.
_PASSES = 20


class Work(NamedTuple):
    """Optimiser steps; FLOPs of these and of the evaluations between them; FLOPs of measures.

    Attacks that stop early count in full.
    """

    steps: int
    training: float
    evaluation: float


def estimate(experiment: Experiment, job: Job) -> Work:
    """The work of one cell, as if nothing of it was done yet."""
    config = job.cell.at(experiment.scale, job.seed)
    sizes, shape, classes = _sizes(config)
    forward = _forward(config, shape, classes)
    # With extra images (RST) an epoch is once through the training set.
    original = config.data.original_fraction if config.data.extra else 1.0
    steps = config.epochs * -(-sizes["train"] // round(original * config.batch_size))
    training = config.epochs * sizes["train"] / original * training_flops(config)
    e = config.evaluation
    judged = min(e.test_examples, sizes["test"]) + e.train_examples
    judged += config.data.validation_examples
    passes = _INPUT_GRADIENT * e.steps * e.restarts + 2
    training += config.epochs // e.every_epochs * judged * passes * forward
    if job.cell.imported:
        steps, training = 0, 0.0
    after = 0.0
    for measure in experiment.measures(job.cell):
        randomised = config.model.pni and isinstance(measure, measures.Attacked)
        passes = _measure_passes(measure, experiment.scale, sizes)
        after += passes * (_PASSES if randomised else 1)
    return Work(steps, training, after * forward)


def training_flops(config: ConfigDict) -> float:
    """FLOPs of a training step per image: those of the model's passes."""
    objective = objectives.create(config.objective.name)
    inputs = len(objective.inputs)
    if config.objective.rotation_weight:  # the auxiliary head's, of the last input
        inputs += objectives.ROTATIONS
    attack = 0.0
    if objective.attack_loss is not None:
        attack = _INPUT_GRADIENT * config.attack.steps + objective.attack_uses_clean_logits
    ascent = 0
    if config.weights.method not in ("none", "random"):
        steps = config.weights.steps or (10 if config.weights.method == "rwp" else 1)
        ascent = steps * _WEIGHT_GRADIENT * inputs
    rounds = config.weights.alternations if ascent else 1
    passes = rounds * (attack + ascent) + _WEIGHT_GRADIENT * inputs
    _, shape, classes = _sizes(config)
    return passes * _forward(config, shape, classes)


def _measure_passes(measure: measures.Measure, scale: Scale, sizes: dict[str, int]) -> float:
    """Forward passes of a measurement on all its images."""
    settings = measure.settings(scale)
    available = sizes["test" if getattr(measure, "part", "") == "test" else "train"]
    examples = min(settings.get("examples") or available, available)
    each = _EACH.get(type(measure), lambda measure, settings: 0.0)
    return examples * each(measure, settings)


def _attack_passes(name: str) -> float:
    return work(attacks_by_name([name])[name])


# By kind of measure the forward passes for one image, of the measure and its settings.
_EACH: dict[type, Callable[[Any, dict[str, Any]], float]] = {
    measures.Attacked: lambda m, s: _attack_passes(s["attack"]) * max(s["restarts"], 1),
    measures.Landscape: lambda m, s: (
        (s["directions"] if m.dims == 1 else 1) * s["points"] ** m.dims * (_INPUT_GRADIENT * 10 + 1)
    ),
    measures.Flatness: lambda m, s: (
        20 * (s["reference_restarts"] * _INPUT_GRADIENT + s["count"] * _ASCENT[m.case])
    ),
    # A product of the Hessian costs about two gradients.
    measures.Curvature: lambda m, s: 20 * _INPUT_GRADIENT + _PRODUCTS * 2 * _WEIGHT_GRADIENT,
    measures.PerturbedLoss: lambda m, s: len(m.gammas) * (1 + s["draws"]) * _INPUT_GRADIENT * 10,
}


def _sizes(config: ConfigDict) -> tuple[dict[str, int], tuple[int, ...], int]:
    """Images by set, shape and classes: published, so that no file is needed."""
    d = config.data
    splits = data.published_sizes(d.name, d.validation_examples)
    if splits is None:
        splits = _loaded(d.name, d.path, d.validation_examples)
    train = min(d.train_examples or len(splits.train), len(splits.train))
    test = min(d.test_examples or len(splits.test), len(splits.test))
    height, width, channels = splits.train.images.shape[1:]
    shape = (height // d.downsample, width // d.downsample, channels)
    return {"train": train, "test": test}, shape, splits.train.num_classes


@functools.cache
def _loaded(name: str, path: str | None, validation_examples: int) -> data.Splits:
    return data.load(name, path=path, validation_examples=validation_examples)


def _forward(config: ConfigDict, shape: tuple[int, ...], classes: int) -> float:
    """FLOPs of a forward pass of one image."""
    quiet = config.copy_and_resolve_references()
    quiet.model.pni = False  # noise on weights is drawn once for a batch
    return _flops(create_classifier(quiet, shape, classes), shape)


@functools.cache
def _flops(classifier: Any, shape: tuple[int, ...]) -> float:
    """From XLA's cost analysis; nothing is compiled."""
    params, batch_stats = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def forward(params, batch_stats, images):
        return classifier.apply(params, batch_stats, images, mode="running")[0]

    lowered = jax.jit(forward).lower(params, batch_stats, images)
    return float(lowered.cost_analysis()["flops"])  # type: ignore[index]


@dataclasses.dataclass(frozen=True)
class Speed(measures.Measure):
    """Training alone, without evaluations: the median over the lines of the log.

    Attributes:
        kind: ``"seconds"`` per epoch, or ``"tflops"``: ``training_flops`` per second, in 1e12.
    """

    kind: str = dataclasses.field(default="seconds", compare=False)

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"images per second": "median"}

    def compute(self, bench: measures.Bench) -> dict[str, float]:
        records = [r for r in read_metrics(bench.run.workdir) if r["kind"] == "train"]
        # The first line has the compilation in it.
        rate = statistics.median(r["images_per_second"] for r in records[1:] or records)
        flops = rate * training_flops(bench.run.config)
        return {"seconds": len(bench.run.data("train")) / rate, "tflops": flops / 1e12}

    def read(self, get: Callable[[measures.Measure], Any]) -> Any:
        return get(self)[self.kind]
