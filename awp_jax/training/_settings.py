"""What is refused of an experiment before anything is compiled."""

from typing import Any

import jax
import numpy as np

from awp_jax import data, parallel, parts
from awp_jax.extras import require
from awp_jax.training._configured import (
    FREE,
    ONE_STEP,
    objective_of,
    training_attack,
    weight_perturbation,
)
from awp_jax.training._regularisation import Regularisation
from awp_jax.training._step_checks import check_free_step
from awp_jax.weights._displacement import check_gradient


def check_settings(experiment: Any) -> None:
    """What would otherwise fail while compiling: also what depends on the images.

    Args:
        experiment: An ``Experiment``.

    Raises:
        ValueError: In one sentence.
    """
    d, images = experiment.config.data, experiment.splits.train.images
    shape = images.shape[1:]
    if experiment.extra is not None:
        if isinstance(experiment.splits.train, data.StoredImages):
            raise ValueError(
                f"data.extra is {d.extra!r}, but the images of {d.name} stay in their files, "
                "beside which none can be mixed in: leave it out."
            )
        data.check_joinable(experiment.splits.train, experiment.extra)
    unused = [key for key in ("extra", "label_noise", "resized_crop", "workers") if d[key]]
    if experiment.streamed and unused:
        raise ValueError(
            f"data.{unused[0]} is {d[unused[0]]!r}, but batches are given, on which it has no "
            "effect: leave it out."
        )
    if experiment.streamed and experiment.replays > 1:
        raise ValueError(
            f"attack.name is {FREE!r}, which takes each batch {experiment.replays} times, but "
            "batches are given, which come once: give none."
        )
    # Stand-ins for ImageNet are of one size.
    of_files = experiment.decoded or d.name in data.IMAGE_FILES
    if not of_files and (d.resized_crop or d.workers):
        key = "resized_crop" if d.resized_crop else "workers"
        raise ValueError(
            f"data.{key} is {d[key]}, but the images of {d.name} are of one size already: it is of "
            "image files that are decoded."
        )
    for name in ("autoaugment", "trivialaugment"):
        if d[name] and (images.dtype != np.uint8 or shape[2] != 3):
            raise ValueError(
                f"data.{name} is a policy for uint8 colour images, but {d.name} has "
                f"{images.dtype} images of shape {shape}."
            )
    if experiment.config.objective.rotation_weight and shape[0] != shape[1]:
        raise ValueError(
            f"objective.rotation_weight needs square images, but those of {d.name} are {shape}."
        )
    _check_parts(experiment)
    if experiment.config.parallel.rules and parallel.splits_weights(experiment.mesh):
        params = jax.eval_shape(experiment.classifier.init, jax.random.key(0))[0]
        count = experiment.mesh.shape[parallel.FSDP]
        parallel.check_rules(params, count, experiment.config.parallel.rules)
    # These check themselves when they are made.
    weights = weight_perturbation(experiment.config, experiment.given)
    if training_attack(experiment.config, experiment.given).free:
        check_free_step(objective_of(experiment.config, experiment.given), weights)
    _check_teacher(experiment)
    _check_alignment(experiment)
    if parts.own(experiment.config, "optimizer", experiment.given) is not None:
        _check_updates(experiment)
    Regularisation(**experiment.config.regularisation)


def check_workers(experiment: Any) -> None:
    """Raises ``MissingExtraError`` where grain is missing that trains with ``data.workers``."""
    # Not of every experiment: what is described or evaluated is decoded by no process of grain.
    workers = experiment.config.data.workers
    if workers:
        require("grain", f"data.workers {workers}")


def check_shares(config: Any, count: int) -> None:
    """Raises ``ValueError`` where ``count`` devices cannot share a batch, or a part of it."""
    batch_size, parts = config.batch_size, config.optimizer.micro_batches
    if batch_size % count:
        raise ValueError(
            f"batch_size is {batch_size}, which {count} devices cannot share equally: choose a "
            "multiple of their number, or fewer devices (--devices)."
        )
    if batch_size // parts % count:
        raise ValueError(
            f"optimizer.micro_batches is {parts}, which leaves {batch_size // parts} images for a "
            f"part, and {count} devices cannot share them equally: choose fewer parts, or fewer "
            "devices (--devices)."
        )


def _check_parts(experiment: Any) -> None:
    """The last batch of an epoch is cut too, where it cannot be filled up."""
    parts = experiment.config.optimizer.micro_batches
    last = experiment.rows_of(experiment.steps_per_epoch - 1)
    if experiment.extra is None and last % parts:
        raise ValueError(
            f"optimizer.micro_batches is {parts}, but the last batch of an epoch has {last} "
            "examples, which it does not divide and which cannot be filled up beside mixup and "
            "CutMix, nor for a model that takes no mask: choose data.train_examples or batch_size "
            "accordingly."
        )


def _check_teacher(experiment: Any) -> None:
    """Also of one's own objective, which says itself whether it has one."""
    objective = objective_of(experiment.config, experiment.given)
    given = experiment.config.objective.teacher
    if bool(objective.teacher) != bool(given):
        wanted = "the directory of a run to learn from" if objective.teacher else "none"
        raise ValueError(
            f"objective.teacher is {given}, but {wanted} was expected with objective.name "
            f"{objective.name!r}."
        )


def _check_alignment(experiment: Any) -> None:
    c = experiment.config
    lambda_, steps = c.objective.gradient_alignment, c.attack.steps
    one = c.attack.name in ONE_STEP or steps == 1 or parts.is_reference(c.attack.name)
    attacked = objective_of(c, experiment.given).attack_loss is not None
    steps = 0 if c.attack.name == FREE else steps
    if lambda_ and not (one and attacked):
        raise ValueError(
            f"objective.gradient_alignment is {lambda_:g}, but GradAlign is for attacks of one "
            f"step: attack.name {c.attack.name!r} makes {steps}, and objective.name "
            f"{c.objective.name!r} attacks {'something' if attacked else 'nothing'}."
        )


def _check_updates(experiment: Any) -> None:
    """A user's own optimiser may return anything, which would broadcast, or fail late."""
    params = jax.eval_shape(experiment.classifier.init, jax.random.key(0))[0]
    optimizer = experiment.optimizer
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    check_gradient(
        updates, params, f"The update of optimizer.name {experiment.config.optimizer.name!r}"
    )
