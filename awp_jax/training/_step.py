"""One step of adversarial training with weight perturbation: a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from awp_jax import mapped, streams
from awp_jax.attacks import cross_entropy
from awp_jax.objectives import ADVERSARIAL, CLEAN, ROTATIONS, Objective, self_supervised
from awp_jax.random import check_key, example_keys, fold_keys
from awp_jax.training._attack import TrainingAttack, make_attack
from awp_jax.training._regularisation import Regularisation
from awp_jax.training._state import TrainState
from awp_jax.training._weights import Ascent, WeightPerturbation


def make_train_step(
    classifier: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    attack: TrainingAttack | None = None,
    weights: WeightPerturbation | None = None,
    regularisation: Regularisation | None = None,
    average_rate: Callable | None = None,
    skip_non_finite: bool = False,
    axis_name: str | None = None,
    unroll: bool | None = None,
) -> Callable:
    """The training step (AWP, NeurIPS 2020, algorithm 2; TRADES and MART as in its D.3).

    For a in 1..A: attack the images at w + v, then K2 steps of weight ascent. Then the gradient at
    w + v (only here do BatchNorm's running statistics move), the optimiser at w + v, weight decay
    included, and back to w (eq. 11).

    Args:
        classifier: Fulfils the contract of ``awp_jax.models.Classifier``.
        objective: From ``awp_jax.objectives``.
        optimizer: Any optax optimiser, but not wrapped in ``awp`` or ``rwp``: the step perturbs the
            weights itself, and hands it w + v as parameters.
        attack: ``None`` for the defaults; not used by ``natural``.
        weights: ``None`` for AWP with its defaults; ``WeightPerturbation("none")`` for no
            perturbation.
        regularisation: ``None`` for none.
        average_rate: ``step -> r``: after each step the average of the weights moves by ``r`` of
            its way to them (see ``averaging_rate``); ``None`` for no average.
        skip_non_finite: Whether a step whose loss, gradient or result is not finite leaves the
            state as it was, but for the count of steps.
        axis_name: For a loop of your own that maps the step with ``jax.pmap`` or ``jax.shard_map``
            over an axis of this name: every device gets its equal, contiguous share of the batch,
            and the numbers are those of the whole batch, whatever the number of devices. The
            classifier must be made with the same ``axis_name``, and BatchNorm groups be 1 or a
            multiple of the devices (1 with self-supervision, which quadruples the batch). ``None``
            for the whole batch, also where plain ``jax.jit`` shards it.
        unroll: See ``awp_jax.ascent.loop``.

    Returns:
        ``step(state, images, labels, key, *, perturb_weights=True, adversarial=None,
        example_weights=None)``: a pure function, not compiled yet (its parts are, so that it can
        also be called as it is). images: float ``[batch, height, width, channels]`` in [0, 1];
        labels: int ``[batch]``, or float ``[batch, classes]``, a distribution for each example;
        key: one typed key for the whole run (folded by step and example); ``adversarial``: images
        to use in place of the attack's; ``example_weights``: float ``[batch]``, the loss is their
        weighted mean. It returns ``(state, metrics)`` with scalars ``loss``, ``gradient_norm``,
        ``weight_norm`` (of w before the step), ``perturbation_norm`` (of v), ``finite`` (whether
        loss, gradient, new weights and statistics are), and ``robust_accuracy`` and
        ``clean_accuracy`` (at w + v) for the inputs that the objective looks at.

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
    attack = TrainingAttack() if attack is None else attack
    weights = WeightPerturbation() if weights is None else weights
    regularisation = Regularisation() if regularisation is None else regularisation
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
    craft = jax.jit(craft)

    def dropout_keys(key, batch, copies=1):
        """A key for each example, where its place on this device is not that in the batch."""
        if key is None or axis_name is None or classifier.is_random or not classifier.has_dropout:
            return key
        first, whole = mapped.first_example(batch, axis_name), batch * mapped.devices(axis_name)
        return jnp.concatenate(
            [example_keys(key, batch, copy * whole + first) for copy in range(copies)]
        )

    def losses(mode, params, batch_stats, inputs, labels, dropout_key):
        """``[batch]`` losses, with the logits of each input and the new statistics beside them."""
        logits = {}
        for place, name in enumerate(objective.inputs):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, place)
            logits[name], batch_stats = classifier.apply(
                params,
                batch_stats,
                inputs[name],
                mode=mode,
                key=dropout_keys(key, labels.shape[0]),
            )
        values = objective.loss(logits, labels)
        if objective.rotation_weight:
            extra, batch_stats = self_supervised(
                classifier,
                params,
                batch_stats,
                inputs[objective.inputs[-1]],
                mode,
                dropout_keys(dropout_key, labels.shape[0], ROTATIONS),
            )
            values = values + objective.rotation_weight * extra
        return values, (logits, batch_stats)

    def ascent_losses(batch_stats, inputs, labels, relative, dropout_key, params):
        # Batch statistics, as the released proxy; the running ones never see it.
        values, (logits, _) = losses("batch", params, batch_stats, inputs, labels, dropout_key)
        return _weighted(values, relative), cross_entropy(logits[objective.inputs[-1]], labels)

    def descend(state, batch_stats, perturbed, inputs, labels, relative, dropout_key):
        def mean_loss(params):
            values, aux = losses("update", params, batch_stats, inputs, labels, dropout_key)
            return _weighted(values, relative).mean() + regularisation.penalty(params), aux

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            mapped.vary(perturbed, axis_name)
        )
        loss, grads = mapped.mean((loss, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, perturbed)
        params = regularisation.constrain(optax.apply_updates(state.params, updates))
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "weight_norm": optax.tree.norm(state.params),
            "perturbation_norm": optax.tree.norm(
                jax.tree.map(jnp.subtract, perturbed, state.params)
            ),
        }
        truth = labels if labels.ndim == 1 else labels.argmax(axis=1)
        for name, label in ((CLEAN, "clean_accuracy"), (ADVERSARIAL, "robust_accuracy")):
            if name in logits:
                metrics[label] = accuracy(logits[name], truth)
        if released:  # the clean forward pass that the released code makes for its log
            logits_now, batch_stats = classifier.apply(
                params,
                batch_stats,
                inputs[CLEAN],
                mode="update",
                key=dropout_keys(dropout_key, labels.shape[0]),
            )
            metrics["clean_accuracy"] = accuracy(logits_now, truth)
        average = state.average
        if average_rate is not None:
            rate = average_rate(state.step)
            average = jax.tree.map(
                lambda a, w: ((1 - rate) * a + rate * w).astype(w.dtype), average, params
            )
        after = TrainState(state.step + 1, params, batch_stats, opt_state, average)
        # The norm of everything is finite only where everything is.
        numbers = loss, metrics["gradient_norm"], optax.tree.norm((params, batch_stats))
        metrics["finite"] = jnp.isfinite(jnp.stack(numbers)).all()
        if skip_non_finite:
            after = jax.tree.map(
                lambda new, old: jnp.where(metrics["finite"], new, old),
                after,
                state._replace(step=after.step),
            )
        return after, metrics

    def accuracy(logits, truth):
        return mapped.mean(jnp.mean(logits.argmax(axis=1) == truth), axis_name)

    descend = jax.jit(descend)

    def step(
        state,
        images,
        labels,
        key,
        *,
        perturb_weights=True,
        adversarial=None,
        example_weights=None,
    ):
        check_key(key)
        _check_axis(classifier, state.batch_stats, axis_name)
        step_key = jax.random.fold_in(key, state.step)
        dropout_key = jax.random.fold_in(step_key, streams.STEP_DROPOUT)
        first = mapped.first_example(images.shape[0], axis_name)
        keys = fold_keys(example_keys(step_key, images.shape[0], first), streams.EXAMPLE_ATTACK)
        method = weights if perturb_weights else WeightPerturbation("none")
        relative = None
        if example_weights is not None:
            relative = example_weights / mapped.mean(example_weights.mean(), axis_name)

        crafted, batch_stats, v, perturbed = None, state.batch_stats, None, state.params
        for alternation in range(method.alternations if method.method == "awp" else 1):
            attacked = adversarial
            if attacked is None:
                keys_now = fold_keys(keys, alternation)
                place_keys = dropout_keys(dropout_key, images.shape[0])
                crafted = craft(perturbed, batch_stats, images, labels, keys_now, place_keys)
                attacked, batch_stats = crafted.images, crafted.batch_stats
            inputs = {CLEAN: images, ADVERSARIAL: attacked}
            v = method.displace(
                Ascent(
                    params=state.params,
                    displacement=v,
                    losses_fn=Partial(
                        ascent_losses, batch_stats, inputs, labels, relative, dropout_key
                    ),
                    shared=None if crafted is None else crafted.weight_gradient,
                    key=jax.random.fold_in(step_key, streams.STEP_WEIGHTS),
                    unroll=unroll,
                    axis_name=axis_name,
                )
            )
            if v is not None:
                perturbed = jax.tree.map(jnp.add, state.params, v)
        return descend(state, batch_stats, perturbed, inputs, labels, relative, dropout_key)

    return step


def _check_axis(classifier: Any, batch_stats: Any, axis_name: str | None) -> None:
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


def _weighted(losses: jax.Array, relative: jax.Array | None) -> jax.Array:
    return losses if relative is None else losses * relative


def _check_shareable(objective: Objective, attack: TrainingAttack) -> None:
    """The attack's gradient must be that of the loss that weights ascend, in the same mode."""
    if not objective.attacks_its_loss:
        raise ValueError(
            f"shared_backward needs an attack that ascends what the weights ascend, as that of AT; "
            f"{objective.name} attacks another loss."
        )
    if attack.batch_norm == "running" or attack.early_stop is not None or attack.steps < 1:
        raise ValueError(
            "shared_backward takes its gradient from the last step of the attack in batch "
            "statistics, so it needs attack steps of at least 1, no early_stop and batch_norm "
            f"'batch' or 'released', not steps {attack.steps}, early_stop {attack.early_stop} and "
            f"batch_norm {attack.batch_norm!r}."
        )


def augmentation_keys(key: jax.Array, step: jax.Array, batch: int) -> jax.Array:
    """The keys ``[batch]`` with which step ``step`` augments its examples."""
    return fold_keys(example_keys(jax.random.fold_in(key, step), batch), streams.EXAMPLE_AUGMENT)
