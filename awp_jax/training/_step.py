"""One step of adversarial training with weight perturbation: a pure function of state and batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from awp_jax import checks, mapped, streams
from awp_jax.attacks import cross_entropy
from awp_jax.objectives import ADVERSARIAL, CLASS_MEANS, CLEAN, HELPER, TEACHER, Objective, helpers
from awp_jax.random import check_key, example_keys, fold_keys
from awp_jax.training._alignment import beside
from awp_jax.training._attack import Crafted, TrainingAttack, make_attack, shrunk
from awp_jax.training._class_means import of_labels
from awp_jax.training._descent import BESIDE, Descent, StepModel, weighted
from awp_jax.training._regularisation import Regularisation
from awp_jax.training._state import TrainState
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
        looks at.

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
    if weights.shared_backward:
        _check_shareable(objective, attack)
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
        ascent_losses=functools.partial(_ascent_losses, model),
        descent=Descent(
            model,
            optimizer,
            Regularisation() if regularisation is None else regularisation,
            average_rate,
            skip_non_finite,
            released,
            steps_per_epoch,
        ),
        weights=weights,
        unroll=unroll,
        attack=attack,
    )
    return functools.partial(_step, story, jax.jit(story.descent))


class _Story(NamedTuple):
    """What a step is made of."""

    model: StepModel
    craft: Callable[..., Any]
    ascent_losses: Callable[..., Any]
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
    _check_axis(story.model.classifier, state.batch_stats, story.model.axis_name)
    batch = _drawn(story.model, state, images, labels, key, example_weights, mask)
    method = story.weights if perturb_weights else WeightPerturbation("none")
    _check_teacher(story.model.objective, teacher)
    crafted, batch_stats, v, perturbed = None, state.batch_stats, None, state.params
    attacked = adversarial
    for alternation in range(method.alternations if method.method == "awp" else 1):
        if adversarial is None:
            crafted = _attack(story, batch, state.step, perturbed, batch_stats, alternation)
            attacked, batch_stats = crafted.images, crafted.batch_stats
        inputs = _inputs(story.model.objective, images, attacked, teacher)
        if story.model.objective.class_temperature is not None:
            inputs[CLASS_MEANS] = of_labels(state.class_means, labels)
        # From w with the v so far: it is the whole of v that is projected (eq. 15).
        v = _ascend(story, method, batch, state.params, batch_stats, inputs, v, crafted)
        if v is not None:
            perturbed = moved(state.params, v)
    if story.model.objective.gradient_alignment:
        inputs[BESIDE] = _beside(story, batch, state.step)
    # The images of the last alternation, made at the w + v before its ascent (algorithm 2).
    return descend(
        state, batch_stats, perturbed, inputs, labels, batch.relative, batch.dropout_key, mask
    )


def _inputs(objective: Objective, images: Images, attacked: Any, teacher: Any) -> dict[str, Any]:
    """What the loss looks at, by name: images, and the logits of the teacher."""
    inputs = {CLEAN: images, ADVERSARIAL: attacked}
    if objective.teacher is not None:
        # Once for all that ascends and descends, and constant there.
        teacher = teacher if isinstance(teacher, Partial) else Partial(teacher)
        inputs[TEACHER] = _asked(teacher, inputs[objective.teacher])
    if HELPER in objective.inputs:
        inputs[HELPER] = helpers(images, attacked, objective.helper_scale)
    return inputs


# A part of its own, for whoever calls the step outside jit.
@jax.jit
def _asked(teacher: Any, images: Images) -> jax.Array:
    return jax.lax.stop_gradient(teacher(images))


def _drawn(
    model: StepModel,
    state: TrainState,
    images: Images,
    labels: Labels,
    key: Key,
    example_weights: jax.Array | None,
    mask: jax.Array | None,
) -> _Batch:
    """The batch with its keys: folded by step and by place in the whole batch."""
    step_key = jax.random.fold_in(key, state.step)
    first = mapped.first_example(images.shape[0], model.axis_name)
    relative = None
    if mask is not None:
        counts = 1.0 if example_weights is None else example_weights
        # Padding weighs nothing, neither in the loss nor in the mean it is divided by.
        example_weights = jnp.where(mask, counts, 0.0)
    if example_weights is not None:
        # Relative to their mean, so that the plain mean of weighted losses is the weighted mean.
        relative = example_weights / mapped.mean(example_weights.mean(), model.axis_name)
    keys = example_keys(step_key, images.shape[0], first)
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
    )


def _attack(
    story: _Story,
    batch: _Batch,
    step: jax.Array,
    params: Params,
    batch_stats: BatchStats,
    alternation: int,
) -> Crafted:
    """Adversarial images at w + v."""
    # Each alternation starts anew (line 6 of algorithm 2), from a point of its own.
    keys = fold_keys(batch.keys, alternation)
    dropout_keys = story.model.dropout_keys(batch.dropout_key, batch.images.shape[0])
    scale = None if story.attack.scale is None else story.attack.scale(step)
    return story.craft(
        params, batch_stats, batch.images, batch.labels, keys, dropout_keys, batch.mask, scale
    )


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
) -> Any:
    """The displacement of the weights on the attacked images, or ``None``."""
    # Its arrays are leaves: RWP's step, compiled outside jit, serves every batch.
    losses_fn = Partial(
        story.ascent_losses,
        batch_stats,
        inputs,
        batch.labels,
        batch.relative,
        batch.dropout_key,
        batch.mask,
    )
    return method.displace(
        Ascent(
            params=params,
            displacement=v,
            losses_fn=losses_fn,
            shared=None if crafted is None else crafted.weight_gradient,
            key=batch.weights_key,
            unroll=story.unroll,
            axis_name=story.model.axis_name,
        )
    )


def _ascent_losses(
    model: StepModel,
    batch_stats: BatchStats,
    inputs: dict[str, Any],
    labels: Labels,
    relative: jax.Array | None,
    dropout_key: jax.Array,
    mask: jax.Array | None,
    params: Params,
) -> tuple[jax.Array, jax.Array]:
    # Batch statistics, as the released proxy; the running ones never see it.
    values, (logits, _) = model.losses(
        "batch", params, batch_stats, inputs, labels, dropout_key, mask
    )
    # RWP compares the cross-entropy of the adversarial images, for TRADES too.
    last = logits[model.objective.attacked]
    criterion = cross_entropy(last, labels)
    if mask is not None:  # no range of losses selects padding
        criterion = jnp.where(mask, criterion, jnp.inf)
    return weighted(values, relative), criterion


def _check_teacher(objective: Objective, teacher: Any) -> None:
    if objective.teacher is not None and not callable(teacher):
        raise ValueError(
            f"teacher is {teacher!r}, but {objective.name} learns from one: images -> logits was "
            "expected, such as classifier.logits_fn(params, batch_stats)."
        )
    if objective.teacher is None and teacher is not None:
        raise ValueError(f"A teacher was given, but {objective.name} learns from none.")


def _check_axis(classifier: Any, batch_stats: BatchStats, axis_name: str | None) -> None:
    if axis_name is None:
        return
    known = getattr(classifier, "axis_name", None)
    if jax.tree.leaves(batch_stats) and known != axis_name:
        raise ValueError(
            f"axis_name is {axis_name!r}, but BatchNorm of {classifier.name} has {known!r}: make "
            "the classifier with the same axis_name."
        )
    if classifier.is_random and classifier.has_dropout:
        raise ValueError(
            f"{classifier.name} draws noise and has dropout, which a mapped step cannot draw as "
            "the whole batch would: use plain jax.jit."
        )


def _check_shareable(objective: Objective, attack: TrainingAttack) -> None:
    """The attack's gradient must be that of the loss that weights ascend, in the same mode."""
    if not objective.attacks_its_loss:
        raise ValueError(
            f"shared_backward needs an attack that ascends what the weights ascend, as that of AT; "
            f"{objective.name} attacks another loss."
        )
    if attack.own is not None:
        raise ValueError("shared_backward takes its gradient from PGD's last step, not from own.")
    if attack.batch_norm == "running" or attack.early_stop is not None or attack.steps < 1:
        raise ValueError(
            "shared_backward takes its gradient from the last step of the attack in batch "
            "statistics, so it needs attack steps of at least 1, no early_stop and batch_norm "
            f"'batch' or 'released', not steps {attack.steps}, early_stop {attack.early_stop} and "
            f"batch_norm {attack.batch_norm!r}."
        )


def augmentation_keys(key: Key, step: jax.Array, batch: int) -> jax.Array:
    """The keys ``[batch]`` with which step ``step`` augments its examples."""
    return fold_keys(example_keys(jax.random.fold_in(key, step), batch), streams.EXAMPLE_AUGMENT)
