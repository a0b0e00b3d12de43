"""From a config to the things that train: data, model, objective, optimiser, compiled step."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from awp_jax import checks, data, models, objectives
from awp_jax.attacks import PGD
from awp_jax.config import validate
from awp_jax.training._attack import TrainingAttack
from awp_jax.training._schedules import schedule
from awp_jax.training._state import TrainState, init_state
from awp_jax.training._step import augmentation_keys, make_train_step
from awp_jax.training._weights import WeightPerturbation


def training_attack(config: ConfigDict) -> TrainingAttack:
    """The training attack of a config."""
    a = config.attack
    return TrainingAttack(a.norm, a.epsilon, a.steps, a.step_size, a.start, a.batch_norm)


def weight_perturbation(config: ConfigDict) -> WeightPerturbation:
    """The weight perturbation of a config."""
    w = config.weights
    return WeightPerturbation(w.method, w.gamma, w.steps, w.alternations, w.size, w.scope)


def evaluation_attack(config: ConfigDict, **changes: Any) -> PGD:
    """The attack by which a config measures robustness (PGD-20 in the papers).

    Args:
        config: A validated config.
        **changes: Replace arguments of ``awp_jax.attacks.PGD``.
    """
    settings = {
        "epsilon": config.evaluation.epsilon or config.attack.epsilon,
        "step_size": config.evaluation.step_size or config.attack.step_size,
        "steps": config.evaluation.steps,
        "norm": config.attack.norm,
        "restarts": config.evaluation.restarts,
    }
    return PGD(**(settings | changes))


def create_classifier(config: ConfigDict, image_shape: Any, num_classes: int) -> Any:
    """The classifier of a config for images of this shape.

    Raises:
        ValueError: For an unknown model or option, or a data set without statistics when
            ``model.normalize`` is set.
    """
    m = config.model
    options: dict[str, Any] = {
        "dtype": m.dtype,
        "batch_norm_groups": m.batch_norm_groups,
        "activation": m.activation,
    }
    if m.width is not None:
        options["width"] = m.width
    if m.normalize:
        options["mean"], options["std"] = data.statistics(config.data.name)
    return models.create(m.name, image_shape=image_shape, num_classes=num_classes, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a config stands for, except the state.

    Attributes:
        config: The validated config.
        splits: Train, validation and test sets.
        classifier: The model.
        optimizer: The optax optimiser.
        steps_per_epoch: Optimiser steps in an epoch; the last may have fewer examples.
        learning_rate: ``step -> rate``.
        key: The key of the run, from the seed.
    """

    config: ConfigDict
    splits: data.Splits
    classifier: Any
    optimizer: optax.GradientTransformation
    steps_per_epoch: int
    learning_rate: Any
    key: jax.Array

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def init(self) -> TrainState:
        """The state before the first step."""
        build = functools.partial(init_state, self.classifier, self.optimizer)
        return jax.jit(build)(jax.random.fold_in(self.key, 1))

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, without computing it."""
        return jax.eval_shape(
            functools.partial(init_state, self.classifier, self.optimizer), self.key
        )

    def order(self, epoch: int) -> jax.Array:
        """The order of the training examples in an epoch (from 0), int32 ``[n]``."""
        return data.epoch_order(jax.random.fold_in(self.key, 2), epoch, len(self.splits.train))

    def batch_size_of(self, step: int) -> int:
        """Examples in the batch of a step (from 0): the last of an epoch may be smaller."""
        position = (step % self.steps_per_epoch) * self.config.batch_size
        return min(self.config.batch_size, len(self.splits.train) - position)

    def perturbs_weights(self, step: int) -> bool:
        """Whether weights are perturbed in a step (from 0): not before ``weights.start_epoch``."""
        started = step >= self.config.weights.start_epoch * self.steps_per_epoch
        return started and self.config.weights.method != "none"

    @functools.cached_property
    def step(self) -> Any:
        """The compiled step.

        ``step(state, images, labels, order, key, batch_size=..., perturb_weights=...)`` gathers,
        augments and trains, and returns ``(state, metrics)``; ``state`` is donated. It is compiled
        once per batch size (and once more when weight perturbation starts later).
        """
        config = self.config
        augmentation = {
            "crop_padding": config.data.crop_padding,
            "crop_mode": config.data.crop_mode,
            "flip": config.data.flip,
            "rotation_degrees": config.data.rotation_degrees,
        }
        train = make_train_step(
            self.classifier,
            objectives.create(
                config.objective.name,
                beta=config.objective.beta,
                lambda_=config.objective.lambda_,
            ),
            self.optimizer,
            attack=training_attack(config),
            weights=weight_perturbation(config),
        )
        steps_per_epoch, full_batch = self.steps_per_epoch, config.batch_size

        def step(state, images, labels, order, key, *, batch_size, perturb_weights):
            position = (state.step % steps_per_epoch) * full_batch
            chosen = jax.lax.dynamic_slice(order, (position,), (batch_size,))
            keys = augmentation_keys(key, state.step, batch_size)
            batch = data.as_float(data.augment(keys, images[chosen], **augmentation))
            return train(state, batch, labels[chosen], key, perturb_weights=perturb_weights)

        return jax.jit(step, donate_argnums=0, static_argnames=("batch_size", "perturb_weights"))


def build(config: ConfigDict, splits: data.Splits | None = None) -> Experiment:
    """Everything that ``config`` stands for.

    Args:
        config: In the schema of ``awp_jax.config.default``.
        splits: Data to use in place of what ``config.data`` names.

    Returns:
        The experiment; nothing is compiled yet.

    Raises:
        ValueError: One sentence, for any bad value, unknown name, or missing data.
    """
    config = validate(config)
    d = config.data
    if splits is None:
        splits = data.load(
            d.name,
            path=d.path,
            train_examples=d.train_examples,
            test_examples=d.test_examples,
            validation_examples=d.validation_examples,
            seed=config.seed,
        )
    n = len(splits.train)
    if config.batch_size > n:
        raise ValueError(f"batch_size is {config.batch_size}, but there are {n} training examples.")
    classifier = create_classifier(config, splits.train.images.shape[1:], splits.train.num_classes)
    steps_per_epoch = data.steps_per_epoch(n, config.batch_size)
    learning_rate = schedule(
        config.schedule.name,
        config.optimizer.learning_rate,
        config.epochs,
        steps_per_epoch,
        milestones=tuple(config.schedule.milestones),
        factor=config.schedule.factor,
        peak=config.schedule.peak,
    )
    o = config.optimizer
    # As torch.optim.SGD: decay joins the gradient, then momentum, then the rate.
    optimizer = optax.chain(
        optax.add_decayed_weights(o.weight_decay),
        optax.sgd(learning_rate, momentum=o.momentum or None, nesterov=o.nesterov),
    )
    return Experiment(
        config=config,
        splits=splits,
        classifier=classifier,
        optimizer=optimizer,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        key=jax.random.key(config.seed),
    )


def subset(dataset: data.Dataset, examples: int) -> data.Dataset:
    """The first ``examples`` of a data set, or all when there are fewer."""
    checks.positive_integer(examples, "examples")
    return dataset.select(np.arange(min(examples, len(dataset))))
