"""Auto-PGD, untargeted and targeted (Croce and Hein, ICML 2020)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks, streams
from awp_jax.attacks._goal import Goal, Loss, Success
from awp_jax.attacks._gradient import loss_and_gradient, model_key
from awp_jax.attacks._losses import cross_entropy, targeted_dlr, targeted_margin
from awp_jax.attacks._model import predict
from awp_jax.attacks._result import choose
from awp_jax.attacks._stepped import SteppedAttack, ranked_targets
from awp_jax.balls import InputBall
from awp_jax.balls._input_norms import per_example
from awp_jax.balls._norms import is_float
from awp_jax.balls._protocol import check_step_size, scaled
from awp_jax.pytrees import flatten, pytree_dataclass
from awp_jax.random import fold_keys


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
    images: Any
    labels: Any
    targets: Any
    point: Any
    previous: Any
    gradient: Any
    loss: jax.Array  # in the last point that was evaluated
    share: jax.Array  # of the first step size
    best: Any
    best_gradient: Any
    best_loss: jax.Array
    checked_loss: jax.Array  # best loss at the last checkpoint
    rises: jax.Array  # steps since the last checkpoint in which the loss rose
    halved: jax.Array  # whether the last checkpoint halved the step size
    found: Any  # the latest misclassified iterate
    success: jax.Array
    first: jax.Array  # number of steps at the first success


@pytree_dataclass("ball", "step_size", "loss", "success")
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(SteppedAttack):
    """Auto-PGD: momentum, and a step size that halves itself (Croce and Hein, ICML 2020).

    Starts on the sphere (Linf: a uniform draw rescaled so that its largest entry is epsilon; L2: a
    Gaussian one of length epsilon) with step size 2 epsilon. At each of ``checkpoints(steps)`` the
    step is halved where the loss rose in at most ``rho`` of the steps since the last one, or where
    the best loss did not improve and the step was not halved then; those examples go on from their
    best point, with its gradient. Returned is the latest misclassified iterate, else the one with
    the highest loss.

    Attributes:
        epsilon, steps, norm, ball, restarts, unroll: As in ``SteppedAttack``. In a ball that is no
            ``InputBall`` it starts at ``ball.start``.
        loss: ``"cross_entropy"``, ``"dlr"``, ``"margin"`` or ``(outputs, targets) -> [batch]``.
        success, targeted: As in ``PGD``: with ``targeted`` the labels are classes to reach.
        step_size: The first one, in the units of the ball's radius; ``None`` for twice that.
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
    success: Success | None = None
    targeted: bool = False
    step_size: Any = None
    rho: float = 0.75
    momentum: float = 0.75
    eot: int = 0  # type: ignore[misc]

    def __post_init__(self, epsilon: Any, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        _ = self.goal  # which checks the loss
        if isinstance(self.ball, InputBall):
            # The published APGD for L1 takes sparse steps, which these are not.
            checks.choice(self.ball.norm, ("linf", "l2"), "norm")
        check_step_size(self.ball, self.step_size, type(self).__name__)
        checks.positive_integer(self.eot, "eot", minimum=0)

    @property
    def goal(self) -> Goal:
        """What the attack wants."""
        return Goal(self.loss, self.success, self.targeted)

    def objective(self, outputs: Any, labels: Any, targets: Any) -> jax.Array:
        """The loss to ascend, ``[batch]``."""
        del targets
        return self.goal.ascended(outputs, labels)

    def _evaluate(
        self, function: Callable, point: Any, keys: jax.Array, labels: Any, targets: Any, index: Any
    ) -> tuple[jax.Array, jax.Array, Any]:
        key = model_key(keys, index) if self.eot else None
        outputs, loss, gradient = loss_and_gradient(
            function, lambda z: self.objective(z, labels, targets), point, key, self.eot
        )
        return self.goal.succeeded(outputs, labels), loss, gradient

    def _targets(
        self, function: Callable, keys: jax.Array, images: Any, labels: Any, rank: jax.Array
    ) -> Any:
        del function, keys, images, rank
        return labels

    def begin(
        self,
        function: Callable,
        keys: jax.Array,
        images: Any,
        labels: Any,
        rank: jax.Array,
        restart: jax.Array,
    ) -> APGDState:
        """The state at the random start."""
        del restart
        if isinstance(self.ball, InputBall):
            point = self.ball.on_sphere(images, noise_like(keys, images, self.ball.norm))
        else:
            point = self.ball.start(keys, images)
        targets = self._targets(function, keys, images, labels, rank)
        wrong, loss, gradient = self._evaluate(
            function, point, keys, labels, targets, streams.MODEL_START
        )
        batch = keys.shape[0]
        return APGDState(
            keys=keys,
            images=images,
            labels=labels,
            targets=targets,
            point=point,
            previous=point,
            gradient=gradient,
            loss=loss,
            share=jnp.ones((batch,), jnp.float32),
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

    def _size(self, share: jax.Array, images: Any) -> Any:
        """The step size of each example, in the forms of a radius."""
        first = scaled(self.ball.radius, 2.0) if self.step_size is None else self.step_size
        values, structure = flatten(first)
        parts = structure.flatten_up_to(images)
        return jax.tree.unflatten(
            structure,
            [
                jax.tree.map(lambda leaf, v=value: _for_examples(v, share, leaf, self.ball), part)
                for value, part in zip(values, parts, strict=True)
            ],
        )

    def step(self, function: Callable, index: jax.Array, state: APGDState) -> APGDState:
        """One step (algorithm 1 of the paper)."""
        s = state
        stepped = self.ball.step(s.images, s.point, s.gradient, self._size(s.share, s.images))
        momentum = jnp.where(index > 0, self.momentum, 1.0)

        def moved(point: jax.Array, stepped: jax.Array, previous: jax.Array) -> jax.Array:
            if not is_float(point):
                return point
            new = momentum.astype(point.dtype)
            return point + new * (stepped - point) + (1 - new) * (point - previous)

        point = self.ball.project(s.images, jax.tree.map(moved, s.point, stepped, s.previous))
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

    def _check(self, index: jax.Array, s: APGDState, point: Any, gradient: Any) -> APGDState:
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
            share=jnp.where(halve, s.share / 2, s.share),
            halved=jnp.where(at_checkpoint, halve, s.halved),
            checked_loss=jnp.where(at_checkpoint, s.best_loss, s.checked_loss),
            rises=jnp.where(at_checkpoint, 0, s.rises),
        )

    def candidate(self, state: APGDState) -> Any:
        """The latest misclassified iterate, else the one with the highest loss."""
        return choose(state.success, state.found, state.best)

    def highest_loss(self, state: APGDState, loss: jax.Array) -> jax.Array:
        """The highest cross-entropy on the way, when that is what was ascended."""
        known = (self.goal.loss is cross_entropy or not self.goal.classifies) and not self.targets
        return jnp.maximum(loss, state.best_loss) if known else loss


def noise_like(keys: jax.Array, images: Any, norm: str) -> Any:
    """A random direction for each example: Gaussian for L2, else U(-1, 1)."""
    draw = jax.random.normal if norm == "l2" else _uniform
    leaves, structure = jax.tree.flatten(images)
    drawn = []
    for number, leaf in enumerate(leaves):
        leaf_keys = keys if len(leaves) == 1 else fold_keys(keys, number)
        if is_float(leaf):
            shape, dtype = leaf.shape[1:], leaf.dtype
            leaf = jax.vmap(functools.partial(draw, shape=shape, dtype=dtype))(leaf_keys)
        drawn.append(leaf)
    return jax.tree.unflatten(structure, drawn)


def _uniform(key: jax.Array, shape: tuple, dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


def _for_examples(value: Any, share: jax.Array, like: jax.Array, ball: Any) -> jax.Array:
    """A radius times the share of each example, with the axes of the inputs."""
    value = jnp.asarray(value, like.dtype if is_float(like) else share.dtype)
    if isinstance(ball, InputBall):
        value = ball.lying(value, like)
    return per_example(share.astype(value.dtype), like) * value


@pytree_dataclass("ball", "step_size", "loss", "success")
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGDTargeted(APGD):
    """APGD on the targeted DLR loss, once for each of the most likely wrong classes.

    Croce and Hein, ICML 2020, section 4: with 9 targets, ranks 2 to 10 of the clean logits. With
    fewer classes all wrong classes are tried; below 4 classes, where the targeted DLR is not
    defined, ``z_t - z_y`` takes its place.

    Attributes:
        epsilon, steps, norm, ball, restarts, step_size, rho, momentum, eot, unroll: As in ``APGD``;
            labels are the true ones, and any other class is a success.
        loss, success, targeted: Not used.
        targets: Number of target classes (9, fra31/auto-attack).
    """

    targets: int = 9  # type: ignore[misc]

    def __post_init__(self, epsilon: Any, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        checks.positive_integer(self.targets, "targets")
        if self.success is not None or self.targeted:
            raise ValueError(
                "APGDTargeted chooses its targets itself and looks for any other class: for "
                "targets or a success of your own use APGD(targeted=True) or APGD(success=...)."
            )

    def objective(self, outputs: Any, labels: Any, targets: Any) -> jax.Array:
        """The targeted loss to ascend, ``[batch]``."""
        loss = targeted_dlr if outputs.shape[1] >= 4 else targeted_margin
        return loss(outputs, labels, targets)

    def _targets(
        self, function: Callable, keys: jax.Array, images: Any, labels: Any, rank: jax.Array
    ) -> Any:
        logits = predict(
            function, images, model_key(keys, streams.MODEL_TARGETS) if self.eot else None
        )
        return ranked_targets(logits, labels, rank)
