"""One step of adversarial training with weight perturbation: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from awp_jax import checks
from awp_jax.ascent import ascend
from awp_jax.balls import NORMS, ImageBall
from awp_jax.objectives import ADVERSARIAL, CLEAN, Objective
from awp_jax.random import check_key, example_keys, fold_keys
from awp_jax.training._state import TrainState
from awp_jax.weights import adversarial_displacement, random_displacement

# What the keys of a step are folded with.
_AUGMENT, _DROPOUT, _RANDOM_WEIGHTS, _ATTACK = range(4)


@dataclasses.dataclass(frozen=True)
class TrainingAttack:
    """The PGD attack of the training loop (paper: K1 = 10 steps of 2/255 within 8/255).

    Attributes:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        epsilon: Radius in pixel units.
        steps: K1.
        step_size: In pixel units.
        start: ``None`` for the objective's own; see ``ImageBall.start``.
        batch_norm: ``None`` for the objective's own. ``"batch"``: batch statistics, running ones
            stay as they are. ``"running"``: running statistics. ``"released"``: as the released AT
            code, batch statistics with every forward pass of the attack, and one clean pass after
            the update, moving the running ones.
    """

    norm: str = "linf"
    epsilon: Any = 8 / 255
    steps: int = 10
    step_size: Any = 2 / 255
    start: str | None = None
    batch_norm: str | None = None

    def __post_init__(self):
        checks.choice(self.norm, NORMS, "norm")
        object.__setattr__(self, "epsilon", checks.radius(self.epsilon, "epsilon", self.norm))
        step_size = checks.radius(self.step_size, "step_size", self.norm)
        object.__setattr__(self, "step_size", step_size)
        checks.positive_integer(self.steps, "steps", minimum=0)
        if self.batch_norm is not None:
            checks.choice(self.batch_norm, ("batch", "running", "released"), "attack_batch_norm")


@dataclasses.dataclass(frozen=True)
class WeightPerturbation:
    """How weights are perturbed in training.

    Attributes:
        method: ``"none"``, ``"awp"`` or ``"random"``.
        gamma: Relative radius, without unit.
        steps: K2, ascent steps per alternation.
        alternations: A; each attacks the images at w + v, then ascends; eta2 = gamma / (A * K2).
        size: ``"l2"`` or ``"l1"``.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``.
    """

    method: str = "awp"
    gamma: Any = 0.01
    steps: int = 1
    alternations: int = 1
    size: str = "l2"
    scope: str = "leaf"

    def __post_init__(self):
        checks.choice(self.method, ("none", "awp", "random"), "weight perturbation")
        object.__setattr__(self, "gamma", checks.radius(self.gamma, "gamma"))
        checks.positive_integer(self.steps, "steps")
        checks.positive_integer(self.alternations, "alternations")


def make_train_step(
    classifier: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    attack: TrainingAttack | None = None,
    weights: WeightPerturbation | None = None,
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
        unroll: See ``awp_jax.ascent.loop``.

    Returns:
        ``step(state, images, labels, key, *, perturb_weights=True, adversarial=None)``: a pure
        function, not compiled yet. images: float ``[batch, height, width, channels]`` in [0, 1];
        labels: int ``[batch]``; key: one typed key for the whole run (folded by step and example);
        ``adversarial``: images to use in place of the attack's. It returns ``(state, metrics)``
        with scalars ``loss``, ``gradient_norm``, and ``robust_accuracy`` and ``clean_accuracy``
        (at w + v) for the inputs that the objective looks at.
    """
    attack = TrainingAttack() if attack is None else attack
    weights = WeightPerturbation() if weights is None else weights
    start = attack.start or objective.start
    attack_mode = attack.batch_norm or objective.attack_batch_norm
    # TRADES and MART attack in evaluation mode in their released code too.
    released = attack_mode == "released" and objective.attack_batch_norm == "batch"
    if attack_mode == "released":
        attack_mode = "update" if released else objective.attack_batch_norm
    ball = ImageBall(attack.norm, attack.epsilon)

    def craft(params, batch_stats, images, labels, keys, dropout_key):
        """Adversarial images at ``params``, and the statistics that the attack has left."""
        attack_loss = objective.attack_loss
        if attack_loss is None:
            return images, batch_stats

        def forward(x, stats):
            return classifier.apply(params, stats, x, mode=attack_mode, key=dropout_key)

        clean_logits = None
        if objective.attack_uses_clean_logits:
            clean_logits, batch_stats = forward(images, batch_stats)

        def gradient_fn(point, stats):
            def loss(x):
                logits, new_stats = forward(x, stats)
                return attack_loss(logits, labels, clean_logits).sum(), new_stats

            return jax.grad(loss, has_aux=True)(point)

        adversarial, batch_stats = ascend(
            gradient_fn,
            ball,
            images,
            ball.start(keys, images, start),
            batch_stats,
            steps=attack.steps,
            step_size=attack.step_size,
            unroll=unroll,
        )
        if released:  # one more forward pass, by which the released code picks among restarts
            _, batch_stats = forward(adversarial, batch_stats)
        return ball.project(images, adversarial), batch_stats

    def losses(params, batch_stats, inputs, labels, dropout_key, mode):
        """Mean loss, with the logits of each input and the new statistics beside it."""
        logits = {}
        for place, name in enumerate(objective.inputs):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, place)
            logits[name], batch_stats = classifier.apply(
                params, batch_stats, inputs[name], mode=mode, key=key
            )
        return objective.loss(logits, labels).mean(), (logits, batch_stats)

    def step(state, images, labels, key, *, perturb_weights=True, adversarial=None):
        check_key(key)
        step_key = jax.random.fold_in(key, state.step)
        dropout_key = jax.random.fold_in(step_key, _DROPOUT)
        keys = fold_keys(example_keys(step_key, images.shape[0]), _ATTACK)
        method = weights.method if perturb_weights else "none"
        alternations = weights.alternations if method == "awp" else 1

        batch_stats, given = state.batch_stats, adversarial
        v, perturbed = None, state.params
        for alternation in range(alternations):
            if given is None:
                adversarial, batch_stats = craft(
                    perturbed,
                    batch_stats,
                    images,
                    labels,
                    fold_keys(keys, alternation),
                    dropout_key,
                )
            inputs = {CLEAN: images, ADVERSARIAL: adversarial}
            if method == "awp":

                def ascent_gradient(params, inputs=inputs, stats=batch_stats):
                    # Batch statistics, as the released proxy; the running ones never see it.
                    loss = jax.grad(losses, has_aux=True)
                    return loss(params, stats, inputs, labels, dropout_key, "batch")[0]

                v = adversarial_displacement(
                    state.params,
                    ascent_gradient,
                    weights.gamma,
                    steps=weights.steps,
                    displacement=v,
                    step_size=weights.gamma / (weights.alternations * weights.steps),
                    size=weights.size,
                    scope=weights.scope,
                    unroll=unroll,
                )
                perturbed = jax.tree.map(jnp.add, state.params, v)
        if method == "random":
            random_key = jax.random.fold_in(step_key, _RANDOM_WEIGHTS)
            v = random_displacement(state.params, random_key, weights.gamma, scope=weights.scope)
            perturbed = jax.tree.map(jnp.add, state.params, v)

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(losses, has_aux=True)(
            perturbed, batch_stats, inputs, labels, dropout_key, "update"
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, perturbed)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        for name, label in ((CLEAN, "clean_accuracy"), (ADVERSARIAL, "robust_accuracy")):
            if name in logits:
                metrics[label] = jnp.mean(logits[name].argmax(axis=1) == labels)
        if released:  # the clean forward pass that the released code makes for its log
            logits_now, batch_stats = classifier.apply(
                params, batch_stats, images, mode="update", key=dropout_key
            )
            metrics["clean_accuracy"] = jnp.mean(logits_now.argmax(axis=1) == labels)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def augmentation_keys(key: jax.Array, step: jax.Array, batch: int) -> jax.Array:
    """The keys ``[batch]`` with which step ``step`` augments its examples."""
    return fold_keys(example_keys(jax.random.fold_in(key, step), batch), _AUGMENT)
