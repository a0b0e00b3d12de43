"""One step of adversarial training with weight perturbation: a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from awp_jax.attacks import cross_entropy
from awp_jax.objectives import ADVERSARIAL, CLEAN, Objective, self_supervised
from awp_jax.random import check_key, example_keys, fold_keys
from awp_jax.training._attack import TrainingAttack, make_attack
from awp_jax.training._regularisation import Regularisation
from awp_jax.training._state import TrainState
from awp_jax.training._weights import Ascent, WeightPerturbation

# What the keys of a step are folded with.
_AUGMENT, _DROPOUT, _RANDOM_WEIGHTS, _ATTACK = range(4)


def make_train_step(
    classifier: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    attack: TrainingAttack | None = None,
    weights: WeightPerturbation | None = None,
    regularisation: Regularisation | None = None,
    average_rate: Callable | None = None,
    unroll: bool | None = None,
) -> Callable:
    """The training step (AWP, NeurIPS 2020, algorithm 2; TRADES and MART as in its D.3).

    For a in 1..A: attack the images at w + v, then K2 steps of weight ascent. Then the gradient at
    w + v (only here do BatchNorm's running statistics move), the optimiser at w + v, weight decay
    included, and back to w (eq. 11).

    Args:
        classifier: Fulfils the contract of ``awp_jax.models.Classifier``.
        objective: From ``awp_jax.objectives``.
        optimizer: Any optax optimiser; it is handed w + v as parameters.
        attack: ``None`` for the defaults; not used by ``natural``.
        weights: ``None`` for the defaults.
        regularisation: ``None`` for none.
        average_rate: ``step -> r``: after each step the average of the weights moves by ``r`` of
            its way to them (see ``averaging_rate``); ``None`` for no average.
        unroll: See ``awp_jax.ascent.loop``.

    Returns:
        ``step(state, images, labels, key, *, perturb_weights=True, adversarial=None,
        example_weights=None)``: a pure function, not compiled yet (its parts are, so that it can
        also be called as it is). images: float ``[batch, height, width, channels]`` in [0, 1];
        labels: int ``[batch]``, or float ``[batch, classes]``, a distribution for each example;
        key: one typed key for the whole run (folded by step and example); ``adversarial``: images
        to use in place of the attack's; ``example_weights``: float ``[batch]``, the loss is their
        weighted mean. It returns ``(state, metrics)`` with scalars ``loss``, ``gradient_norm``, and
        ``robust_accuracy`` and ``clean_accuracy`` (at w + v) for the inputs that the objective
        looks at.

    Raises:
        ValueError: When ``weights`` shares a backward pass that this objective's attack has not.
    """
    attack = TrainingAttack() if attack is None else attack
    weights = WeightPerturbation() if weights is None else weights
    regularisation = Regularisation() if regularisation is None else regularisation
    if weights.shared_backward:
        _check_shareable(objective, attack)
    craft, released = make_attack(
        classifier, objective, attack, share_backward=weights.shared_backward, unroll=unroll
    )
    craft = jax.jit(craft)

    def losses(mode, params, batch_stats, inputs, labels, dropout_key):
        """``[batch]`` losses, with the logits of each input and the new statistics beside them."""
        logits = {}
        for place, name in enumerate(objective.inputs):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, place)
            logits[name], batch_stats = classifier.apply(
                params, batch_stats, inputs[name], mode=mode, key=key
            )
        values = objective.loss(logits, labels)
        if objective.rotation_weight:
            extra, batch_stats = self_supervised(
                classifier, params, batch_stats, inputs[objective.inputs[-1]], mode, dropout_key
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
            perturbed
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, perturbed)
        params = regularisation.constrain(optax.apply_updates(state.params, updates))
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        truth = labels if labels.ndim == 1 else labels.argmax(axis=1)
        for name, label in ((CLEAN, "clean_accuracy"), (ADVERSARIAL, "robust_accuracy")):
            if name in logits:
                metrics[label] = jnp.mean(logits[name].argmax(axis=1) == truth)
        if released:  # the clean forward pass that the released code makes for its log
            logits_now, batch_stats = classifier.apply(
                params, batch_stats, inputs[CLEAN], mode="update", key=dropout_key
            )
            metrics["clean_accuracy"] = jnp.mean(logits_now.argmax(axis=1) == truth)
        average = state.average
        if average_rate is not None:
            rate = average_rate(state.step)
            average = jax.tree.map(
                lambda a, w: ((1 - rate) * a + rate * w).astype(w.dtype), average, params
            )
        return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

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
        step_key = jax.random.fold_in(key, state.step)
        dropout_key = jax.random.fold_in(step_key, _DROPOUT)
        keys = fold_keys(example_keys(step_key, images.shape[0]), _ATTACK)
        method = weights if perturb_weights else WeightPerturbation("none")
        relative = None
        if example_weights is not None:
            relative = example_weights / example_weights.mean()

        crafted, batch_stats, v, perturbed = None, state.batch_stats, None, state.params
        for alternation in range(method.alternations if method.method == "awp" else 1):
            attacked = adversarial
            if attacked is None:
                keys_now = fold_keys(keys, alternation)
                crafted = craft(perturbed, batch_stats, images, labels, keys_now, dropout_key)
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
                    key=jax.random.fold_in(step_key, _RANDOM_WEIGHTS),
                    unroll=unroll,
                )
            )
            if v is not None:
                perturbed = jax.tree.map(jnp.add, state.params, v)
        return descend(state, batch_stats, perturbed, inputs, labels, relative, dropout_key)

    return step


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
    return fold_keys(example_keys(jax.random.fold_in(key, step), batch), _AUGMENT)
