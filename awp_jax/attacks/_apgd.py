"""Auto-PGD, untargeted and targeted (Croce and Hein, ICML 2020)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks, streams
from awp_jax.attacks._gradient import loss_and_gradient, model_key
from awp_jax.attacks._losses import targeted_dlr, targeted_margin
from awp_jax.attacks._model import predict
from awp_jax.attacks._pgd import Loss, loss_function
from awp_jax.attacks._stepped import (
    SteppedAttack,
    choose,
    per_example,
    ranked_targets,
)
from awp_jax.balls import image_norms


def checkpoints(steps: int) -> tuple[int, ...]:
    """After how many steps APGD may halve its step size: 22, 41, 57, 70, 80, 87, 93, 99 of 100.

    The first window is 22% of the steps, each next one 3% shorter, none shorter than 6%
    (Croce and Hein 2020, section 3.2, as rounded in fra31/auto-attack).

    Args:
        steps: Number of steps, at least 1.

    Returns:
        Increasing step counts, none above ``steps``.
    """
    window, least = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    ends, end = [], window
    while end <= steps:
        ends.append(end)
        window = max(window - max(int(0.03 * steps), 1), least)
        end += window
    return tuple(ends)


class APGDState(NamedTuple):
    """Everything APGD remembers; each leaf has the batch as its first axis."""

    keys: jax.Array
    images: jax.Array
    labels: jax.Array
    targets: jax.Array
    point: jax.Array
    previous: jax.Array
    gradient: jax.Array
    loss: jax.Array  # in the last point that was evaluated
    step_size: jax.Array
    best: jax.Array
    best_gradient: jax.Array
    best_loss: jax.Array
    checked_loss: jax.Array  # best loss at the last checkpoint
    rises: jax.Array  # steps since the last checkpoint in which the loss rose
    halved: jax.Array  # whether the last checkpoint halved the step size
    found: jax.Array  # the latest misclassified iterate
    success: jax.Array
    first: jax.Array  # number of steps at the first success


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class APGD(SteppedAttack):
    """Auto-PGD: momentum, and a step size that halves itself (Croce and Hein, ICML 2020).

    Starts on the sphere (Linf: a uniform draw rescaled so that its largest entry is epsilon; L2: a
    Gaussian one of length epsilon) with step size 2 epsilon. At each of ``checkpoints(steps)`` the
    step is halved where the loss rose in at most ``rho`` of the steps since the last one, or where
    the best loss did not improve and the step was not halved then; those examples go on from their
    best point, with its gradient. Returned is the latest misclassified iterate, else the one with
    the highest loss.

    Attributes:
        epsilon, steps, norm, restarts, unroll: As in ``SteppedAttack``.
        loss: ``"cross_entropy"``, ``"dlr"``, ``"margin"`` or ``(logits, labels) -> [batch]``.
        rho: Share of rising steps below which the step is halved (0.75, the paper).
        momentum: Weight of the new step (0.75, the paper's alpha); the first has weight 1.
        eot: Random passes to average gradients and losses over; above 0 the model is called as
            ``logits_fn(images, key)``. AutoAttack's ``rand`` has 20.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import APGD
        >>> logits_fn = lambda images: images.mean((1, 2)) * jnp.array([[1.0, 2.0, 3.0]])
        >>> images = jnp.full((1, 4, 4, 1), 0.02)
        >>> attack = APGD("8/255", steps=10, loss="dlr")
        >>> attack(logits_fn, jax.random.key(0), images, jnp.array([2])).success
        Array([ True], dtype=bool)

    Raises:
        ValueError: For bad settings, or the DLR loss with fewer than 3 classes.
    """

    loss: Loss = "cross_entropy"
    rho: float = 0.75
    momentum: float = 0.75
    eot: int = 0  # type: ignore[misc]

    def __post_init__(self):
        super().__post_init__()
        loss_function(self.loss)
        checks.positive_integer(self.eot, "eot", minimum=0)

    def objective(self, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss to ascend, ``[batch]``."""
        del targets
        return loss_function(self.loss)(logits, labels)

    def _evaluate(self, function, point, keys, labels, targets, index):
        key = model_key(keys, index) if self.eot else None
        logits, loss, gradient = loss_and_gradient(
            function, lambda z: self.objective(z, labels, targets), point, key, self.eot
        )
        return logits.argmax(axis=1) != labels, loss, gradient

    def _targets(self, function, keys, images, labels, rank):
        del function, keys, images, rank
        return labels

    def begin(self, function, keys, images, labels, rank, restart) -> APGDState:
        """The state at the random start."""
        del restart
        draw = jax.random.normal if self.norm == "l2" else _uniform
        noise = jax.vmap(lambda k: draw(k, images.shape[1:], images.dtype))(keys)
        # 1e-30 guards against a draw of zeros only.
        length = self.epsilon / jnp.maximum(image_norms(noise, self.norm), 1e-30)
        point = self.ball.project(images, images + per_example(length, images) * noise)
        targets = self._targets(function, keys, images, labels, rank)
        wrong, loss, gradient = self._evaluate(
            function, point, keys, labels, targets, streams.MODEL_START
        )
        batch = labels.shape[0]
        return APGDState(
            keys=keys,
            images=images,
            labels=labels,
            targets=targets,
            point=point,
            previous=point,
            gradient=gradient,
            loss=loss,
            step_size=jnp.full((batch,), 2 * self.epsilon, images.dtype),
            best=point,
            best_gradient=gradient,
            best_loss=loss,
            checked_loss=loss,
            rises=jnp.zeros((batch,), jnp.int32),
            halved=jnp.ones((batch,), bool),
            found=point,
            success=wrong,
            first=jnp.zeros((batch,), jnp.int32),
        )

    def step(self, function, index, state: APGDState) -> APGDState:
        """One step (algorithm 1 of the paper)."""
        s = state
        stepped = self.ball.step(s.images, s.point, s.gradient, per_example(s.step_size, s.images))
        new = jnp.where(index > 0, self.momentum, 1.0).astype(s.images.dtype)
        point = self.ball.project(
            s.images, s.point + new * (stepped - s.point) + (1 - new) * (s.point - s.previous)
        )
        wrong, loss, gradient = self._evaluate(function, point, s.keys, s.labels, s.targets, index)
        better = loss > s.best_loss
        s = s._replace(
            previous=s.point,
            found=choose(wrong, point, s.found),
            first=jnp.where(wrong & ~s.success, index.astype(jnp.int32) + 1, s.first),
            success=s.success | wrong,
            best=choose(better, point, s.best),
            best_gradient=choose(better, gradient, s.best_gradient),
            best_loss=jnp.where(better, loss, s.best_loss),
            rises=s.rises + (loss > s.loss).astype(jnp.int32),
            loss=loss,
        )
        return self._check(index, s, point, gradient)

    def _check(self, index, s: APGDState, point, gradient) -> APGDState:
        """Halves step sizes at checkpoints."""
        ends = np.array(checkpoints(self.steps))
        windows = np.diff(ends, prepend=0)
        here = index + 1 == ends
        at_checkpoint, window = here.any(), jnp.sum(jnp.where(here, windows, 0))
        oscillates = s.rises <= self.rho * window.astype(s.loss.dtype)
        stalls = ~s.halved & (s.checked_loss >= s.best_loss)
        halve = at_checkpoint & (oscillates | stalls)
        return s._replace(
            point=choose(halve, s.best, point),
            gradient=choose(halve, s.best_gradient, gradient),
            step_size=jnp.where(halve, s.step_size / 2, s.step_size),
            halved=jnp.where(at_checkpoint, halve, s.halved),
            checked_loss=jnp.where(at_checkpoint, s.best_loss, s.checked_loss),
            rises=jnp.where(at_checkpoint, 0, s.rises),
        )

    def candidate(self, state: APGDState) -> jax.Array:
        """The latest misclassified iterate, else the one with the highest loss."""
        return choose(state.success, state.found, state.best)

    def highest_loss(self, state: APGDState, loss: jax.Array) -> jax.Array:
        """The highest cross-entropy on the way, when that is what was ascended."""
        known = self.loss == "cross_entropy" and not self.targets
        return jnp.maximum(loss, state.best_loss) if known else loss


def _uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class APGDTargeted(APGD):
    """APGD on the targeted DLR loss, once for each of the most likely wrong classes.

    Croce and Hein, ICML 2020, section 4: with 9 targets, ranks 2 to 10 of the clean logits. With
    fewer classes all wrong classes are tried; below 4 classes, where the targeted DLR is not
    defined, ``z_t - z_y`` takes its place.

    Attributes:
        epsilon, steps, norm, restarts, rho, momentum, eot, unroll: As in ``APGD``.
        loss: Not used.
        targets: Number of target classes (9, fra31/auto-attack).
    """

    targets: int = 9  # type: ignore[misc]

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.targets, "targets")

    def objective(self, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """The targeted loss to ascend, ``[batch]``."""
        loss = targeted_dlr if logits.shape[1] >= 4 else targeted_margin
        return loss(logits, labels, targets)

    def _targets(self, function, keys, images, labels, rank) -> Any:
        logits = predict(
            function, images, model_key(keys, streams.MODEL_TARGETS) if self.eot else None
        )
        return ranked_targets(logits, labels, rank)
