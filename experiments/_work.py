"""How much work a cell is: optimiser steps, and FLOPs from the model's forward pass."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from awp_jax import data, objectives
from experiments._analyses import Curvature, Flatness, Landscape, PerturbedLoss
from experiments._cells import Experiment, Job
from experiments._measures import PASSES, Attacked, Measure
from experiments._runs import classifier_of, model_key
from experiments._scales import Scale

# In forward passes: a gradient in the images is one forward and one backward pass, of about the
# same cost each; a gradient in the weights needs both backward products.
_INPUT_GRADIENT, _WEIGHT_GRADIENT = 2, 3
# Of Lanczos iteration for one eigenvalue.
_PRODUCTS = 40


class Work(NamedTuple):
    """An estimate.

    Attributes:
        steps: Optimiser steps.
        training: FLOPs of the steps and of the evaluations between them.
        evaluation: FLOPs of what is measured afterwards; attacks that stop early count in full.
    """

    steps: int
    training: float
    evaluation: float


def estimate(experiment: Experiment, job: Job) -> Work:
    """The work of one cell, as if nothing of it was done yet.

    Args:
        experiment: The experiment.
        job: The cell and its seed.

    Raises:
        NotAvailable: When this version lacks what the cell needs.
    """
    scale = experiment.scale
    config = job.cell.at(scale, job.seed)
    train_images, test_images, shape, classes = _sizes(config)
    forward = _forward(model_key(config), shape, classes)
    # With unlabelled images (RST) an epoch is once through the labelled ones.
    labelled = round(_labelled_share(config) * config.batch_size)
    steps = 0 if job.cell.imported else config.epochs * -(-train_images // labelled)
    evaluations = (
        config.epochs
        // config.evaluation.every_epochs
        * (
            min(config.evaluation.test_examples, test_images)
            + config.evaluation.train_examples
            + config.data.validation_examples
        )
    )
    pgd = _INPUT_GRADIENT * config.evaluation.steps * config.evaluation.restarts + 2
    seen = config.epochs * train_images / _labelled_share(config)
    training = seen * training_flops(config) + evaluations * pgd * forward
    training = training if steps else 0.0
    after = sum(
        _measure_passes(m, scale, test_images if getattr(m, "part", "") == "test" else train_images)
        * (PASSES if config.model.pni and isinstance(m, Attacked) else 1)
        for m in experiment.measures(job.cell.name)
    )
    return Work(steps, training, after * forward)


def _labelled_share(config: ConfigDict) -> float:
    """Of a batch."""
    return config.data.labelled_fraction if config.data.unlabelled else 1.0


def training_flops(config: ConfigDict) -> float:
    """FLOPs of a training step per image: those of the model's passes.

    Args:
        config: Of a run.
    """
    *_, shape, classes = _sizes(config)
    return _forward(model_key(config), shape, classes) * _passes_per_image(config)


def _passes_per_image(config: ConfigDict) -> float:
    """Forward passes that a training step costs per image."""
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
    return rounds * (attack + ascent) + _WEIGHT_GRADIENT * inputs


def _attack_passes(name: str, classes: int = 10) -> int:
    """Forward passes per image of an attack by name, were no image left out early."""
    kind, steps = name.partition("-")[0], name.rpartition("-")[2]
    count = int(steps) if steps.isdigit() else None
    targets = min(classes - 1, 9)
    fixed = {
        "clean": 1,
        "fgsm": _INPUT_GRADIENT,
        "spsa": 2 * 128 * (count or 100),
        "feature": _INPUT_GRADIENT * (count or 50) * 100,
        # APGD-CE and targeted APGD, targeted FAB, 5,000 queries.
        "autoattack": _INPUT_GRADIENT * 100 * (1 + 2 * targets) + 5000,
    }
    return fixed.get(kind, _INPUT_GRADIENT * (count or 100) + 1)


def _measure_passes(measure: Measure, scale: Scale, available: int) -> float:
    settings = measure.settings(scale)
    examples = min(settings.get("examples") or available, available)
    if isinstance(measure, Attacked):
        return examples * _attack_passes(settings["attack"]) * max(settings["restarts"], 1)
    if isinstance(measure, Landscape):
        count = settings["points"] ** measure.dims
        return (
            examples
            * count
            * (_INPUT_GRADIENT * 10 + 1)
            * (settings["directions"] if measure.dims == 1 else 1)
        )
    if isinstance(measure, Flatness):
        reference = settings["reference_restarts"] * _INPUT_GRADIENT * 20
        each = _INPUT_GRADIENT if measure.case == "average" else _WEIGHT_GRADIENT + 1
        return examples * (reference + settings["count"] * each * 20)
    if isinstance(measure, Curvature):  # a product of the Hessian costs about two gradients
        return examples * (_INPUT_GRADIENT * 20 + _PRODUCTS * 2 * _WEIGHT_GRADIENT)
    if isinstance(measure, PerturbedLoss):
        return examples * len(measure.gammas) * (1 + settings["draws"]) * _INPUT_GRADIENT * 10
    return 0.0


def _sizes(config: ConfigDict) -> tuple[int, int, tuple[int, ...], int]:
    """Training and test images, shape and classes: published, so that no file is needed."""
    d = config.data
    splits = data.published_sizes(d.name, d.validation_examples)
    if splits is None:
        splits = _loaded(d.name, d.path, d.validation_examples)
    train = min(d.train_examples or len(splits.train), len(splits.train))
    test = min(d.test_examples or len(splits.test), len(splits.test))
    height, width, channels = splits.train.images.shape[1:]
    shape = (height // d.downsample, width // d.downsample, channels)
    return train, test, shape, splits.train.num_classes


@functools.cache
def _loaded(name: str, path: str | None, validation_examples: int) -> data.Splits:
    return data.load(name, path=path, validation_examples=validation_examples)


@functools.cache
def _forward(model: str, shape: tuple[int, ...], classes: int) -> float:
    """FLOPs of a forward pass of one image, from XLA's cost analysis; nothing is compiled."""
    values = json.loads(model)
    values["model"]["pni"] = False  # noise on weights is drawn once for a batch
    classifier = classifier_of(json.dumps(values), shape, classes)
    params, batch_stats = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def forward(params, batch_stats, images):
        return classifier.apply(params, batch_stats, images, mode="running")[0]

    lowered = jax.jit(forward).lower(params, batch_stats, images)
    return float(lowered.cost_analysis()["flops"])  # type: ignore[index]
