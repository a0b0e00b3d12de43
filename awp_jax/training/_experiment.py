"""From a config to the things that train: data, model, objective, optimiser, compiled step."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from awp_jax import checks, data, models, objectives, parallel
from awp_jax.attacks import PGD
from awp_jax.config import validate
from awp_jax.training._schedules import schedule
from awp_jax.training._state import TrainState, init_state
from awp_jax.training._step import (
    TrainingAttack,
    WeightPerturbation,
    augmentation_keys,
    make_train_step,
)


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
    classifier = models.create(m.name, image_shape=image_shape, num_classes=num_classes, **options)
    return models.with_parametric_noise(classifier) if m.pni else classifier


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
        mesh: The devices; see ``awp_jax.parallel``.
    """

    config: ConfigDict
    splits: data.Splits
    classifier: Any
    optimizer: optax.GradientTransformation
    steps_per_epoch: int
    learning_rate: Any
    key: jax.Array
    mesh: jax.sharding.Mesh

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def init(self) -> TrainState:
        """The state before the first step."""
        build = functools.partial(init_state, self.classifier, self.optimizer)
        everywhere = parallel.replicated(self.mesh)
        return jax.jit(build, out_shardings=everywhere)(jax.random.fold_in(self.key, 1))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and places of the state, without computing it."""
        shapes = jax.eval_shape(
            functools.partial(init_state, self.classifier, self.optimizer), self.key
        )
        everywhere = parallel.replicated(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes
        )

    def on_devices(self) -> tuple[jax.Array, jax.Array]:
        """The training images (uint8) and labels, whole on every device."""
        train = self.splits.train
        return jax.device_put((train.images, train.labels), parallel.replicated(self.mesh))

    def order(self, epoch: int) -> jax.Array:
        """The order of the training examples in an epoch (from 0), int32 ``[n]``."""
        return self._order(jax.random.fold_in(self.key, 2), epoch)

    @functools.cached_property
    def _order(self) -> Any:
        shuffled = functools.partial(data.epoch_order, n=len(self.splits.train))
        return jax.jit(shuffled, out_shardings=parallel.replicated(self.mesh))

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
        """The compiled step, one program over all devices of the mesh.

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
        steps_per_epoch, full_batch, mesh = self.steps_per_epoch, config.batch_size, self.mesh

        def step(state, images, labels, order, key, *, batch_size, perturb_weights):
            position = (state.step % steps_per_epoch) * full_batch
            chosen = jax.lax.dynamic_slice(order, (position,), (batch_size,))
            keys = augmentation_keys(key, state.step, batch_size)
            # What follows each example: its device, for the whole step.
            chosen, keys = jax.lax.with_sharding_constraint(
                (chosen, keys), parallel.batch_sharding(mesh, batch_size)
            )
            batch = data.as_float(data.augment(keys, images[chosen], **augmentation))
            return train(state, batch, labels[chosen], key, perturb_weights=perturb_weights)

        return jax.jit(
            step,
            donate_argnums=0,
            static_argnames=("batch_size", "perturb_weights"),
            out_shardings=parallel.replicated(mesh),
        )


def build(
    config: ConfigDict, splits: data.Splits | None = None, *, devices: int | None = None
) -> Experiment:
    """Everything that ``config`` stands for.

    Args:
        config: In the schema of ``awp_jax.config.default``.
        splits: Data to use in place of what ``config.data`` names.
        devices: Use the first so many; ``None`` for all.

    Returns:
        The experiment; nothing is compiled yet.

    Raises:
        ValueError: One sentence, for any bad value, unknown name, or missing data.
    """
    config = validate(config)
    mesh = parallel.data_mesh(devices)
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
        key=jax.jit(jax.random.key, out_shardings=parallel.replicated(mesh))(config.seed),
        mesh=mesh,
    )


def subset(dataset: data.Dataset, examples: int) -> data.Dataset:
    """The first ``examples`` of a data set, or all when there are fewer."""
    checks.positive_integer(examples, "examples")
    return dataset.select(np.arange(min(examples, len(dataset))))
