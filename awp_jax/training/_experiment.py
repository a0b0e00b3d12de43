"""From a config to the things that train: data, model, objective, optimiser, compiled step."""

import dataclasses
import functools
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from awp_jax import data, files, parallel, parts, streams
from awp_jax.config import validate
from awp_jax.training._averaging import estimate_batch_stats
from awp_jax.training._batch import batch_function
from awp_jax.training._classifier import create_classifier, with_statistics
from awp_jax.training._compiled import compiled, runs_in_parts, several, step_of
from awp_jax.training._configured import (
    FREE,
    loss_scale_of,
    objective_of,
    replays_of,
    splits_of,
)
from awp_jax.training._optimizers import make_optimizer
from awp_jax.training._schedules import schedule
from awp_jax.training._settings import check_settings
from awp_jax.training._state import TrainState, init_state
from awp_jax.typing import Key


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a config stands for, except the state.

    Attributes:
        config: The validated config.
        splits: Train, validation and test sets.
        extra: More images, generated or pseudo-labelled, that fill the batches up, or ``None``.
        classifier: The model.
        optimizer: The optax optimiser.
        steps_per_epoch: Optimiser steps in an epoch; the last may have fewer examples.
        learning_rate: ``step -> rate``.
        key: The key of the run, from the seed.
        mesh: The devices; see ``awp_jax.parallel``.
        given: What was given as objects, see ``awp_jax.parts``.
        streamed: Whether batches come from a user's own iterator, all of one size.
        teacher: The model that the objective learns from, ``images -> logits``, see
            ``with_teacher``; ``None`` for no teacher.
    """

    config: ConfigDict
    splits: data.Splits
    extra: data.StoredImages | None
    classifier: Any
    optimizer: optax.GradientTransformation
    steps_per_epoch: int
    learning_rate: Any
    key: Key
    mesh: jax.sharding.Mesh
    given: parts.Parts = parts.NONE
    streamed: bool = False
    teacher: Any = None

    @property
    def examples(self) -> int:
        """Examples that are trained on in an epoch."""
        if self.streamed:
            return self.steps_per_epoch * self._original_batch
        return len(self.splits.train)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def init(self) -> TrainState:
        """A fresh state; ``initial_state`` also looks at ``init_from``."""
        # Compiled with its place: parameters arise where they stay, and are not copied there.
        return jax.jit(self._init, out_shardings=self.places)(
            jax.random.fold_in(self.key, streams.RUN_PARAMETERS)
        )

    @functools.cached_property
    def places(self) -> Any:
        """Where the arrays of the state lie, see ``parallel.state_sharding``."""
        rules = self.config.parallel.rules
        places = parallel.state_sharding(self.mesh, self._shapes, rules)
        # It follows the images, and not the weights.
        split = parallel.batch_sharding(self.mesh, self.config.batch_size)
        return places._replace(delta=jax.tree.map(lambda _: split, places.delta))

    @functools.cached_property
    def _shapes(self) -> TrainState:
        # Any typed key will do for shapes. Kept: a large model takes seconds to trace.
        return jax.eval_shape(self._init, self.key)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and places of the state, without computing it."""
        return jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
            self._shapes,
            self.places,
        )

    def _init(self, key: Key) -> TrainState:
        averaged = self.config.averaging.name != "none"
        means = objective_of(self.config, self.given).class_temperature is not None
        batch = self.config.batch_size, *self.splits.train.images.shape[1:]
        return init_state(
            self.classifier,
            self.optimizer,
            key,
            averaged=averaged,
            class_means=means,
            loss_scale=loss_scale_of(self.config),
            delta=batch if self.config.attack.name == FREE else None,
        )

    @functools.cached_property
    def pool(self) -> data.Dataset | data.StoredImages:
        """All that batches are gathered from: the training set, and behind it extra images."""
        train = self.splits.train
        # Extra images beside decoded ones are refused when an experiment is built.
        if self.extra is None or isinstance(train, data.StoredImages):
            return train
        return data.joined(train, self.extra)

    @property
    def on_host(self) -> bool:
        """Whether ``pool`` is too large for the devices: then batches come from the host.

        Of images in files only the rows of a batch are read then. Image files of any size are
        always decoded anew: what is cut out of them is another part in every epoch.
        """
        return (
            self.decoded
            or self.streamed
            or self.pool.images.nbytes > self.config.data.device_megabytes * 2**20
        )

    @property
    def decoded(self) -> bool:
        """Whether images are decoded from their files, see ``awp_jax.data.DecodedRows``."""
        return isinstance(self.splits.train.images, data.DecodedRows)

    def on_devices(self) -> tuple[jax.Array, jax.Array]:
        """Images (uint8) and labels of ``pool``, whole on every device."""
        pool = self.pool
        if isinstance(pool, data.StoredImages):
            pool = pool.in_memory()
        return jax.device_put((pool.images, pool.labels), parallel.replicated(self.mesh))

    @property
    def _original_batch(self) -> int:
        return _original_batch(self.config, self.extra is not None)

    @property
    def replays(self) -> int:
        """Steps that each batch is for, one behind the other."""
        return replays_of(self.config)

    def batch_of(self, step: Any) -> Any:
        """Which batch of the run a step (from 0) takes."""
        return step if self.replays == 1 else step // self.replays

    def order(self, epoch: int) -> jax.Array:
        """The order of the training examples in an epoch (from 0), int32 ``[n]``."""
        return self._order(jax.random.fold_in(self.key, streams.RUN_ORDER), epoch)

    # Cached properties hold compiled functions: made anew, each would compile anew.
    @functools.cached_property
    def _order(self) -> Any:
        # A function of key and epoch alone, so a run that goes on finds the order again.
        shuffled = functools.partial(data.epoch_order, n=self.examples)
        return jax.jit(shuffled, out_shardings=parallel.replicated(self.mesh))

    def batch_size_of(self, step: int) -> int:
        """Training examples in the batch of a step (from 0): the last of an epoch may have fewer.

        With extra images every batch is filled up to ``batch_size`` with them.
        """
        position = self.batch_of(step % self.steps_per_epoch) * self._original_batch
        return min(self._original_batch, self.examples - position)

    @property
    def padded(self) -> bool:
        """Whether the last batch of an epoch is filled up, so that all are one compiled step.

        Not where what is beside an example counts: groups of BatchNorm, mixup, CutMix, rotations.
        """
        c = self.config
        # There padding would shift the groups, be mixed into others, or be rotated without a mask.
        mixed = c.data.mixup or c.data.cutmix
        last, groups = self.examples % self._original_batch, c.model.batch_norm_groups
        # Of a batch in parts groups keep their size, where they do not share the last one equally.
        uneven = c.optimizer.micro_batches > 1 and last % groups
        together = mixed or c.objective.rotation_weight or (groups > 1 and not uneven)
        alone = self.classifier.takes_mask and self.extra is None
        return bool(last) and alone and not together

    def rows_of(self, step: int) -> int:
        """Rows of the batch of a step that is compiled, padding included."""
        return self._original_batch if self.padded else self.batch_size_of(step)

    def chosen(self, step: int, order: jax.Array) -> jax.Array:
        """Which examples of ``pool`` a step takes, int32 ``[batch]``."""
        return self._chosen(self.batch_of(step), order, self.key, batch_size=self.rows_of(step))

    @functools.cached_property
    def _chosen(self) -> Any:
        choose, _ = self._batch_functions
        everywhere = parallel.replicated(self.mesh)
        return jax.jit(choose, static_argnames="batch_size", out_shardings=everywhere)

    @functools.cached_property
    def _batch_functions(self) -> Any:
        return batch_function(
            self.config,
            original=self.examples,
            extra=0 if self.extra is None else len(self.extra),
            steps_per_epoch=self.steps_per_epoch // self.replays,
            original_batch=self._original_batch,
            num_classes=self.splits.train.num_classes,
            mesh=self.mesh,
            on_host=self.on_host,
            padded=self.padded,
        )

    def perturbs_weights(self, step: int) -> bool:
        """Whether weights are perturbed in a step (from 0): not before ``weights.start_epoch``."""
        # A plain bool, not a traced one: steps without perturbation are compiled without it.
        started = step >= self.config.weights.start_epoch * self.steps_per_epoch
        return started and self.config.weights.method != "none"

    @functools.cached_property
    def step(self) -> Any:
        """The compiled step, one program over all devices of the mesh.

        ``step(state, images, labels, order, key, batch_size=..., perturb_weights=...)`` gathers
        from ``pool`` (or is handed the batch, where ``on_host``: see ``Feed``), augments and
        trains, and returns ``(state, metrics)``; ``state`` is donated.
        It is compiled once per ``batch_size``, see ``rows_of`` (and once more when weight
        perturbation starts later).
        """
        return compiled(self, self._step)

    @functools.cached_property
    def steps(self) -> Any:
        """``steps_per_call`` steps as one program, with the arguments of ``step``.

        Where ``on_host``, images and labels are tuples, the batches of these steps; metrics have an
        axis of the steps.
        """
        return compiled(self, several(self._step, self.on_host, self.steps_per_call))

    @property
    def steps_per_call(self) -> int:
        """How many steps ``steps`` makes; 1 where a step is no single program."""
        return 1 if runs_in_parts(self) else self.config.training.steps_per_call

    @functools.cached_property
    def _step(self) -> Any:
        _, gather = self._batch_functions
        return step_of(self, self._classifier_of_parts, gather)

    def steps_of_call(self, step: int, end: int) -> int:
        """How many steps, from ``step`` to below ``end`` at most, the next call makes: all, or one.

        Calls of all begin with an epoch or behind a checkpoint in its middle, one behind the other,
        and what is left is made one by one: two programs serve all. A function of the step, so that
        a run that goes on makes the same calls.
        """
        count, every = self.steps_per_call, self.config.checkpoint.every_steps
        first = step - step % self.steps_per_epoch
        last = first + self.steps_per_epoch
        if every:
            first = max(first, step - step % every)
            last = min(last, step - step % every + every)
        if (step - first) % count or step + count > min(last, end):
            return 1
        shapes = {(self.rows_of(s), self.perturbs_weights(s)) for s in (step, step + count - 1)}
        return count if len(shapes) == 1 else 1

    @property
    def _classifier_of_parts(self) -> Any:
        micro_batches = self.config.optimizer.micro_batches
        if micro_batches == 1:
            return self.classifier
        shape, classes = self.classifier.image_shape, self.classifier.num_classes
        return create_classifier(
            self.config, shape, classes, self.given, micro_batches=micro_batches
        )

    def averaged(self, state: TrainState) -> TrainState:
        """The state whose parameters are the average, with BatchNorm statistics of its own.

        They are estimated on the training images, as they are, in whole batches of the config's
        size (a smaller last one is left out).
        """
        train, size = self.splits.train, self.config.batch_size
        # One size compiles once; what is left out changes a mean over batches by little.
        whole = len(train) // size * size
        batches = (
            data.as_float(jax.numpy.asarray(train.images[start : start + size]))
            for start in range(0, whole, size)
        )
        params, moving = parallel.gathered(self.mesh, (state.average, state.batch_stats))
        batch_stats = estimate_batch_stats(self.classifier, params, moving, batches)
        return state._replace(params=state.average, batch_stats=batch_stats)


def _original_batch(config: ConfigDict, with_extra: bool) -> int:
    """Training examples in a whole batch."""
    share = config.data.original_fraction if with_extra else 1
    return round(share * config.batch_size)


def build(
    config: ConfigDict,
    splits: data.Splits | None = None,
    *,
    devices: int | None = None,
    given: parts.Parts = parts.NONE,
    streamed: bool = False,
    sharded: bool = False,
) -> Experiment:
    """Everything that ``config`` stands for.

    Args:
        config: In the schema of ``awp_jax.config.default``.
        splits: Data to use in place of what ``config.data`` names.
        devices: Use the first so many; ``None`` for all.
        given: Parts to use in place of what the config's names find, see ``awp_jax.parts``.
        streamed: Whether batches come from a user's own iterator.
        sharded: Whether the mesh is that of ``config.parallel``, and not of ``"data"`` alone: for
            what trains. What judges has other devices, and no momentum.

    Returns:
        The experiment; nothing is compiled yet.

    Raises:
        ValueError: One sentence, for any bad value, unknown name, or missing data.
    """
    config = validate(config)
    mesh = parallel.data_mesh(devices, config.parallel.mesh if sharded else parallel.ONLY_DATA)
    d = config.data
    if splits is None:
        splits = splits_of(config, given)
    if d.label_noise:
        noisy = data.with_label_noise(splits.train, d.label_noise, config.seed)
        splits = dataclasses.replace(splits, train=noisy)
    extra = None
    if d.extra:
        labels = files.several(d.extra_labels) if d.extra_labels else None
        classes = splits.train.num_classes
        extra = data.open_extra(files.several(d.extra), labels, num_classes=classes)
    n = len(splits.train)
    if config.batch_size > n:
        raise ValueError(f"batch_size is {config.batch_size}, but there are {n} training examples.")
    config = with_statistics(config, splits.train)
    shape, classes = splits.train.images.shape[1:], splits.train.num_classes
    classifier = create_classifier(config, shape, classes, given)
    original = _original_batch(config, extra is not None)
    batches = data.steps_per_epoch(n, original, keep_last=not streamed)
    steps_per_epoch = batches * replays_of(config)
    learning_rate = schedule(
        config.schedule.name,
        config.optimizer.learning_rate,
        config.epochs,
        steps_per_epoch,
        milestones=tuple(config.schedule.milestones),
        factor=config.schedule.factor,
        peak=config.schedule.peak,
        warmup_epochs=config.schedule.warmup_epochs,
    )
    # Made in place on all devices of the mesh, also those of other processes.
    key = jax.jit(jax.random.key, out_shardings=parallel.replicated(mesh))(config.seed)
    experiment = Experiment(
        config=config,
        splits=splits,
        extra=extra,
        classifier=classifier,
        optimizer=make_optimizer(
            config.optimizer,
            learning_rate,
            jax.random.fold_in(key, streams.RUN_OPTIMIZER),
            parts.own(config, "optimizer", given),
        ),
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate,
        key=key,
        mesh=mesh,
        given=given,
        streamed=streamed,
    )
    check_settings(experiment)
    return experiment
