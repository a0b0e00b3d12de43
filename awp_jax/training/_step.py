"""One step of adversarial training with weight perturbation: a pure function of state and batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from awp_jax import checks, mapped, streams
from awp_jax.balls._protocol import shrunk
from awp_jax.objectives import ADVERSARIAL, CLASS_MEANS, CLEAN, HELPER, TEACHER, Objective, helpers
from awp_jax.random import check_key, example_keys, fold_keys, keys_at
from awp_jax.training._alignment import beside
from awp_jax.training._ascended import losses_in_parts, losses_of
from awp_jax.training._attack import Crafted, TrainingAttack, make_attack
from awp_jax.training._class_means import of_labels
from awp_jax.training._descent import BESIDE, Descent, StepModel
from awp_jax.training._free import Free, check_carried
from awp_jax.training._gathered import on_mesh
from awp_jax.training._loss_scale import LossScale, of_sum
from awp_jax.training._parts import Parts
from awp_jax.training._regularisation import Regularisation
from awp_jax.training._state import TrainState
from awp_jax.training._step_checks import (
    check_axis,
    check_free_step,
    check_parts,
    check_shareable,
    check_teacher,
)
from awp_jax.training._weights import Ascent, WeightPerturbation
from awp_jax.typing import BatchStats, Displacement, Images, Key, Labels, Params
from awp_jax.weights._displacement import moved

PGD_10, AWP = TrainingAttack(), WeightPerturbation()


def make_train_step(
    classifier: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    attack: TrainingAttack = PGD_10,
    weights: WeightPerturbation | None = AWP,
    regularisation: Regularisation | None = None,
    average_rate: Callable[..., Any] | None = None,
    skip_non_finite: bool = False,
    steps_per_epoch: int | None = None,
    micro_batches: int = 1,
    loss_scale: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    rules: str = "",
    axis_name: str | None = None,
    unroll: bool | None = None,
) -> Callable[..., Any]:
    """The training step (AWP, NeurIPS 2020, algorithm 2; TRADES and MART as in its D.3).

    For a in 1..A: attack the images at w + v, then K2 steps of weight ascent. Then the gradient at
    w + v (only here do BatchNorm's running statistics move), the optimiser at w + v, weight decay
    included, and back to w (eq. 11).

    Args:
        classifier: Fulfils the contract of ``awp_jax.models.Classifier``.
        objective: From ``awp_jax.objectives``.
        optimizer: Any optax optimiser, but not wrapped in ``awp`` or ``rwp``: the step perturbs the
            weights itself, and hands it w + v as parameters.
        attack: Not used by ``natural``, which attacks nothing.
        weights: AWP with its defaults unless given; ``None`` for no perturbation.
        regularisation: ``None`` for none.
        average_rate: ``step -> r``: after each step the average of the weights moves by ``r`` of
            its way to them (see ``averaging_rate``); ``None`` for no average.
        skip_non_finite: Whether a step whose loss, gradient or result is not finite leaves the
            state as it was, but for the count of steps.
        steps_per_epoch: For objectives with means of classes, which begin anew after so many.
        micro_batches: Into so many equal contiguous parts the batch is cut, which are attacked and
            differentiated one after the other, in the memory of one; v and the step are those of
            the whole batch. The classifier sees one part at a time, so its BatchNorm groups are
            those of a part: with ``n`` of them the numbers are those of ``micro_batches * n``
            groups of the whole batch, in the running statistics as well.
        loss_scale: A number by which losses are multiplied and their gradients divided, for a
            classifier that computes in float16; ``"dynamic"`` for ``torch.amp.GradScaler``'s rule,
            with ``skip_non_finite``, and a state from ``init_state(..., loss_scale="dynamic")``;
            ``None`` for 1. An ``own`` attack or weight perturbation takes its gradients without.
        mesh: Under plain ``jit`` over several devices: the mesh over whose axes batches are split.
            Needed with ``micro_batches``, and with an axis ``"fsdp"``, along which the state is
            split (``awp_jax.parallel.state_sharding``).
        rules: With that axis: along which others weights are split, ``"linear.kernel:0"``, see
            ``state_sharding``.
        axis_name: For a loop of your own that maps the step with ``jax.pmap`` or ``jax.shard_map``
            over an axis of this name: every device gets its equal, contiguous share of the batch,
            and the numbers are those of the whole batch, whatever the number of devices. The
            classifier must be made with the same ``axis_name``, and BatchNorm groups be 1 or a
            multiple of the devices (1 with self-supervision, which quadruples the batch). ``None``
            for the whole batch, also where plain ``jax.jit`` shards it.
        unroll: See ``awp_jax.ascent.loop``.

    Returns:
        ``step(state, images, labels, key, *, perturb_weights=True, adversarial=None,
        example_weights=None, mask=None, teacher=None)``: a pure function, not compiled yet (its
        parts are, so that it can also be called as it is).
        images: float ``[batch, height, width, channels]`` in [0, 1]; labels: int
        ``[batch]``, or float ``[batch, classes]``, a distribution for each
        example; key: one typed key for the whole run (folded by step and example);
        ``adversarial``: images to use in place of the attack's; ``example_weights``: float
        ``[batch]``, the loss is their weighted mean; ``mask``: bool ``[batch]``, False for padding
        behind the examples, which changes no number where BatchNorm has one group and the
        objective no rotations; ``teacher``: ``images -> logits``, a pytree such as
        ``classifier.logits_fn(...)``, for objectives that learn from one.
        It returns ``(state, metrics)`` with scalars ``loss``,
        ``gradient_norm``, ``weight_norm`` (of w before the step), ``perturbation_norm`` (of v),
        ``finite`` (whether loss, gradient, new weights and statistics are), and
        ``robust_accuracy`` and ``clean_accuracy`` (at w + v) for the inputs that the objective
        looks at; ``loss_scale`` where there is one.

    Raises:
        ValueError: When ``weights`` shares a backward pass that this objective's attack has not;
            when the step is traced, for a classifier whose BatchNorm does not know ``axis_name``.

    Example:
        One program over all devices, for a loop of your own; ``state`` and ``key`` are whole on
        each, images and labels split::

            classifier = models.create(..., axis_name="data")
            step = make_train_step(classifier, objectives.at(), optimizer, axis_name="data")
            step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data"), P("data"), P()),
                                         out_specs=P()))
    """
    if not isinstance(attack, TrainingAttack):
        raise ValueError(
            f"attack is {attack!r}, but a TrainingAttack was expected; objectives.natural() "
            "attacks nothing."
        )
    if objective.class_temperature is not None:
        checks.positive_integer(steps_per_epoch, f"steps_per_epoch of {objective.name}")
    weights = WeightPerturbation("none") if weights is None else weights
    if attack.free:
        check_free_step(objective, weights)
    if weights.shared_backward:
        check_shareable(objective, attack)
    checks.positive_integer(micro_batches, "micro_batches")
    scaling = LossScale(loss_scale)
    if scaling.is_dynamic and not skip_non_finite:
        raise ValueError(
            "loss_scale is 'dynamic', which skips steps whose gradient is not finite, but "
            "skip_non_finite is False: True was expected."
        )
    parts = Parts(micro_batches, axis_name, mesh, unroll)
    check_parts(classifier, objective, parts)
    classifier, on_parts = on_mesh(classifier, mesh, rules)
    craft, released = make_attack(
        classifier,
        objective,
        attack,
        share_backward=weights.shared_backward,
        unroll=unroll,
        axis_name=axis_name,
    )
    model = StepModel(classifier, objective, axis_name)
    # Compiled parts, for whoever calls the step outside jit; inside one, XLA inlines them.
    story = _Story(
        model=model,
        craft=jax.jit(craft),
        ascent_losses=functools.partial(losses_of, model),
        ascent_losses_in_parts=functools.partial(losses_in_parts, model, parts),
        descent=Descent(
            model,
            optimizer,
            Regularisation() if regularisation is None else regularisation,
            average_rate,
            skip_non_finite,
            released,
            steps_per_epoch,
            parts,
            scaling,
            Free(attack.ball, attack.step_size, attack.scale) if attack.free else None,
        ),
        weights=weights,
        unroll=unroll,
        attack=attack,
    )
    return on_parts(functools.partial(_step, story, jax.jit(story.descent)))


class _Story(NamedTuple):
    """What a step is made of."""

    model: StepModel
    craft: Callable[..., Any]
    ascent_losses: Callable[..., Any]
    ascent_losses_in_parts: Callable[..., Any]
    descent: Descent
    weights: WeightPerturbation
    unroll: bool | None
    attack: TrainingAttack


class _Batch(NamedTuple):
    """One batch, and what is drawn for it."""

    images: Images
    labels: Labels
    relative: jax.Array | None  # weights of the examples, of mean 1
    keys: jax.Array  # of the attack, one for each example
    dropout_key: jax.Array
    weights_key: jax.Array
    mask: jax.Array | None  # False for padding
    beside_keys: Any  # of GradAlign, one for each example
    places: jax.Array | None  # in the whole batch, of each example of a batch in parts


def _step(
    story: _Story,
    descend: Callable[..., Any],
    state: TrainState,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    perturb_weights: bool = True,
    adversarial: Any = None,
    example_weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    teacher: Any = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Attack and ascend, in turns; then descend. See ``make_train_step``."""
    check_key(key)
    check_axis(story.model.classifier, state.batch_stats, story.model.axis_name)
    parts = story.descent.parts
    parts.check(images.shape[0])
    images, labels, adversarial, example_weights, mask = parts.arranged(
        (images, labels, adversarial, example_weights, mask)
    )
    batch = _drawn(story.model, parts, state, images, labels, key, example_weights, mask)
    loss_scale = story.descent.loss_scale.of(state.loss_scale)
    method = story.weights if perturb_weights else WeightPerturbation("none")
    check_teacher(story.model.objective, teacher)
    crafted, batch_stats, v, perturbed = None, state.batch_stats, None, state.params
    attacked, free = adversarial, story.descent.free
    if free is not None:
        if adversarial is not None:
            raise ValueError(
                "adversarial was given, but the attack is free: its images are delta's."
            )
        check_carried(state.delta, images)
        attacked = free.attacked(images, state.delta[: images.shape[0]])
    for alternation in range(method.alternations if method.method == "awp" else 1):
        if adversarial is None and free is None:
            crafted = _attack(
                story, batch, state.step, perturbed, batch_stats, alternation, loss_scale
            )
            attacked, batch_stats = crafted.images, crafted.batch_stats
        inputs = _inputs(story.model.objective, parts, images, attacked, teacher)
        if story.model.objective.class_temperature is not None:
            inputs[CLASS_MEANS] = of_labels(state.class_means, labels)
        # From w with the v so far: it is the whole of v that is projected (eq. 15).
        v = _ascend(story, method, batch, state.params, batch_stats, inputs, v, crafted, loss_scale)
        if v is not None:
            perturbed = moved(state.params, v)
    if story.model.objective.gradient_alignment:
        inputs[BESIDE] = _beside(story, batch, state.step)
    # The images of the last alternation, made at the w + v before its ascent (algorithm 2).
    return descend(
        state,
        batch_stats,
        perturbed,
        inputs,
        labels,
        batch.relative,
        batch.dropout_key,
        mask,
        batch.places,
    )


def _inputs(
    objective: Objective, parts: Parts, images: Images, attacked: Any, teacher: Any
) -> dict[str, Any]:
    """What the loss looks at, by name: images, and the logits of the teacher."""
    inputs = {CLEAN: images, ADVERSARIAL: attacked}
    if objective.teacher is not None:
        # Once for all that ascends and descends, and constant there.
        teacher = teacher if isinstance(teacher, Partial) else Partial(teacher)
        asked = functools.partial(_asked, teacher)
        inputs[TEACHER] = parts.rows(asked, inputs[objective.teacher])
    if HELPER in objective.inputs:
        inputs[HELPER] = helpers(images, attacked, objective.helper_scale)
    return inputs


# A part of its own, for whoever calls the step outside jit.
@jax.jit
def _asked(teacher: Any, images: Images) -> jax.Array:
    return jax.lax.stop_gradient(teacher(images))


def _drawn(
    model: StepModel,
    parts: Parts,
    state: TrainState,
    images: Images,
    labels: Labels,
    key: Key,
    example_weights: jax.Array | None,
    mask: jax.Array | None,
) -> _Batch:
    """The batch with its keys: folded by step and by place in the whole batch."""
    step_key = jax.random.fold_in(key, state.step)
    count = images.shape[0]
    places = None if parts.count == 1 else parts.places(count)
    relative = None
    if mask is not None:
        counts = 1.0 if example_weights is None else example_weights
        # Padding weighs nothing, neither in the loss nor in the mean it is divided by.
        example_weights = jnp.where(mask, counts, 0.0)
    if example_weights is not None:
        # Relative to their mean, so that the plain mean of weighted losses is the weighted mean.
        relative = example_weights / mapped.mean(example_weights.mean(), model.axis_name)
    if places is None:
        keys = example_keys(step_key, count, mapped.first_example(count, model.axis_name))
    else:
        keys = keys_at(step_key, places)
    aligned = model.objective.gradient_alignment
    return _Batch(
        images=images,
        labels=labels,
        relative=relative,
        keys=fold_keys(keys, streams.EXAMPLE_ATTACK),
        dropout_key=jax.random.fold_in(step_key, streams.STEP_DROPOUT),
        weights_key=jax.random.fold_in(step_key, streams.STEP_WEIGHTS),
        mask=mask,
        beside_keys=fold_keys(keys, streams.EXAMPLE_ALIGNMENT) if aligned else None,
        places=places,
    )


def _attack(
    story: _Story,
    batch: _Batch,
    step: jax.Array,
    params: Params,
    batch_stats: BatchStats,
    alternation: int,
    loss_scale: Any,
) -> Crafted:
    """Adversarial images at w + v."""
    parts, rows = story.descent.parts, batch.images.shape[0]
    # Each alternation starts anew (line 6 of algorithm 2), from a point of its own.
    keys = fold_keys(batch.keys, alternation)
    scale = None if story.attack.scale is None else story.attack.scale(step)
    loss_scale = of_sum(loss_scale, rows * mapped.devices(story.model.axis_name))
    count = None
    if batch.mask is not None and parts.count > 1:
        # Of the mean part: the mean over parts is then that of all examples.
        count = mapped.mean(batch.mask.sum(), story.model.axis_name) / parts.count

    def part(images: Images, labels: Labels, keys: Key, mask: Any, places: Any) -> Any:
        dropout = story.model.dropout_keys(batch.dropout_key, images.shape[0], places=places)
        made = story.craft(
            params, batch_stats, images, labels, keys, dropout, mask, scale, count, loss_scale
        )
        return made.weight_gradient, made.batch_stats, made.images

    gradient, batch_stats, images = parts.mean(
        part, batch.images, batch.labels, keys, batch.mask, batch.places, mask=batch.mask
    )
    if parts.count > 1 and gradient is not None:  # the same on all devices, as it was in each part
        gradient = mapped.mean(gradient, story.model.axis_name)
    return Crafted(images, batch_stats, gradient)


def _beside(story: _Story, batch: _Batch, step: jax.Array) -> Any:
    ball = story.attack.ball
    if story.attack.scale is not None:
        ball = shrunk(ball, jnp.asarray(story.attack.scale(step), batch.images.dtype))
    return beside(ball, batch.beside_keys, batch.images)


def _ascend(
    story: _Story,
    method: WeightPerturbation,
    batch: _Batch,
    params: Params,
    batch_stats: BatchStats,
    inputs: dict[str, Any],
    v: Displacement,
    crafted: Crafted | None,
    loss_scale: Any,
) -> Any:
    """The displacement of the weights on the attacked images, or ``None``."""
    parts, over_parts = story.descent.parts, None
    rows = inputs, batch.labels, batch.relative, batch.mask, batch.places
    losses = story.ascent_losses if parts.count == 1 else story.ascent_losses_in_parts
    # Its arrays are leaves: RWP's step, compiled outside jit, serves every batch.
    whole = Partial(losses, batch_stats, batch.dropout_key, *rows)
    if parts.count > 1:

        def over_parts(gradient_fn: Callable[..., Any]) -> Any:
            def part(*rows: Any) -> Any:
                own = Partial(story.ascent_losses, batch_stats, batch.dropout_key, *rows)
                return gradient_fn(own), (), ()

            return parts.mean(part, *rows)[0]

    return method.displace(
        Ascent(
            params=params,
            displacement=v,
            losses_fn=whole,
            shared=None if crafted is None else crafted.weight_gradient,
            key=batch.weights_key,
            unroll=story.unroll,
            axis_name=story.model.axis_name,
            over_parts=over_parts,
            loss_scale=loss_scale,
        )
    )
