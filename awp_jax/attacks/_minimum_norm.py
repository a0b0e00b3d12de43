"""Attacks that look for the smallest perturbation: DDN and FMN."""

import dataclasses
from dataclasses import KW_ONLY
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.ascent import loop
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._model import check_logits, predict, prepare
from awp_jax.attacks._nearest import NearestResult
from awp_jax.attacks._result import choose
from awp_jax.balls import InputBall, input_norms
from awp_jax.balls._input_norms import per_example
from awp_jax.balls._inputs import NORMS
from awp_jax.balls._norms import reciprocal
from awp_jax.explicit import on_any_mesh
from awp_jax.pytrees import pytree_dataclass
from awp_jax.random import fold_keys
from awp_jax.typing import Inputs, Key, Labels, LogitsFn
from awp_jax.words import KnownNames

# In which norm the gradient of a linear function says how far its level sets are apart.
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


# FAB's eta, for the same purpose.
_OVERSHOOT = 1.05


class MinimumNormState(NamedTuple):
    """Everything these attacks remember; each leaf has the batch as its first axis."""

    keys: Key
    images: Inputs
    labels: Labels
    point: jax.Array
    limit: jax.Array  # the norm that the next point may have
    best: jax.Array
    radius: jax.Array  # of the best point; infinite while there is none


class Seen(NamedTuple):
    """What one pass says of the current points."""

    gradient: jax.Array  # of the loss that is ascended
    loss: jax.Array
    length: jax.Array  # of the perturbation, in the attack's norm
    success: jax.Array


@dataclasses.dataclass(frozen=True)
class MinimumNorm(KnownNames):
    """What DDN and FMN share: a norm that shrinks where the attack succeeds and grows elsewhere.

    Attributes:
        steps: Number of gradient steps.
        gamma: By which share of itself the norm changes in a step, in (0, 1).
        low: Least value of an input, or ``None`` for no bound.
        high: Largest value.
        targeted: The labels are classes to reach.
        unroll: See ``awp_jax.ascent.loop``.
    """

    steps: int = 100
    _: KW_ONLY
    gamma: float = 0.05
    low: Any = 0.0
    high: Any = 1.0
    targeted: bool = False
    unroll: bool | None = None

    norm: ClassVar[Any] = "l2"
    loss: ClassVar[str] = "cross_entropy"
    eot: ClassVar[int] = 0

    def __post_init__(self) -> None:
        checks.positive_integer(self.steps, "steps")
        if not (checks.is_number(self.gamma) and 0 < self.gamma < 1):
            raise ValueError(f"gamma is {self.gamma!r}, but a number in (0, 1) was expected.")
        _ = self.goal, self.ball  # which check their settings

    @property
    def goal(self) -> Goal:
        """What the attack wants."""
        return Goal(self.loss, targeted=self.targeted)

    @property
    def ball(self) -> InputBall:
        """The bounds of the inputs, as a ball."""
        return InputBall(self.norm, 0.0, self.low, self.high)

    def first_limit(self, images: Inputs) -> jax.Array:
        """The norm of the first perturbation, ``[batch]``."""
        raise NotImplementedError

    def move(self, index: jax.Array, state: MinimumNormState, seen: Seen) -> MinimumNormState:
        """The next norm and point."""
        raise NotImplementedError

    @on_any_mesh(logits_fn="images")
    def __call__(
        self, logits_fn: LogitsFn, key: Key, images: Inputs, labels: Labels
    ) -> NearestResult:
        """Looks for the nearest input that is misclassified; targeted: that is of the class asked.

        Args:
            logits_fn: ``images -> logits [batch, classes]``; a ``jax.tree_util.Partial`` over the
                parameters is compiled once for all parameters.
            key: One typed key, or one per example; only DDN draws from it, where a gradient is 0.
            images: float ``[batch, ...]`` in [low, high].
            labels: int ``[batch]``.

        Returns:
            A ``NearestResult``: the model was seen to take each of its images for another class.

        Raises:
            ValueError: For bad images or labels, or a model that returns NaN.
        """
        if not hasattr(images, "shape"):
            raise ValueError(
                f"{type(self).__name__} needs one array of inputs, not a {type(images).__name__}."
            )
        function, keys, images, _ = prepare(self, logits_fn, key, images, labels)
        images = jnp.asarray(images)
        check_logits(predict(function, images))
        limit = self.first_limit(images)
        nowhere = jnp.full_like(limit, jnp.inf)
        state = MinimumNormState(keys, images, jnp.asarray(labels), images, limit, images, nowhere)
        state = loop(Partial(_advance, self, function), state, self.steps, unroll=self.unroll)
        return NearestResult(state.best, state.radius)

    def farthest(self, images: Inputs) -> jax.Array:
        """The norm of the way to the farthest corner of the box, ``[batch]``."""
        if self.low is None or self.high is None:
            return jnp.full(images.shape[0], jnp.inf, images.dtype)
        return input_norms(jnp.maximum(images - self.low, self.high - images), self.norm)

    def annealed(self, index: jax.Array, first: float, last: float) -> jax.Array:
        """A number that goes from ``first`` to ``last`` along a half wave of the cosine."""
        phase = jnp.pi * index.astype(jnp.float32) / self.steps
        return last + (first - last) * (1 + jnp.cos(phase)) / 2


def _advance(
    attack: MinimumNorm, function: Partial, index: jax.Array, state: MinimumNormState
) -> MinimumNormState:
    """Looks at the current points, keeps the nearest successes, and moves."""
    goal = attack.goal

    def total(point: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = function(point)
        loss = goal.ascended(logits, state.labels)
        return loss.sum(), (loss, goal.succeeded(logits, state.labels))

    gradient, (loss, success) = jax.grad(total, has_aux=True)(state.point)
    length = input_norms(state.point - state.images, attack.norm)
    nearer = success & (length < state.radius)
    state = state._replace(
        best=choose(nearer, state.point, state.best),
        radius=jnp.where(nearer, length, state.radius),
    )
    return attack.move(index, state, Seen(gradient, loss, length, success))


@pytree_dataclass("low", "high")
@dataclasses.dataclass(frozen=True)
class DDN(MinimumNorm):
    """Decoupled direction and norm (Rony et al., CVPR 2019, algorithm 1), for L2.

    Ascends the cross-entropy by steps whose length goes from 1 to 0.01 along a cosine. After each
    the perturbation gets the norm of the moment, which shrinks by ``1 - gamma`` where the last
    point was a success and grows by ``1 + gamma`` elsewhere. (The released code also rounds to 256
    levels, which is left to the caller.)

    Attributes:
        steps: 100 (the paper; also 300 and 1000).
        epsilon: The first norm, in the units of the inputs (1, the paper).
        gamma: 0.05 (the paper).
        low, high, targeted, unroll: As in ``MinimumNorm``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import DDN
        >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.full(1, 2.0)], axis=1)
        >>> images = jnp.full((1, 2, 2, 1), 0.6)
        >>> found = DDN()(logits_fn, jax.random.key(0), images, jnp.array([0]))
        >>> bool(abs(found.radius[0] - 0.2) < 0.01)
        True

    Raises:
        ValueError: For bad settings.
    """

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (checks.is_number(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon is {self.epsilon!r}, but a number above 0 was expected.")

    def first_limit(self, images: Inputs) -> jax.Array:
        """Epsilon."""
        return jnp.full(images.shape[0], self.epsilon, images.dtype)

    def move(self, index: jax.Array, state: MinimumNormState, seen: Seen) -> MinimumNormState:
        """A step along the gradient, then the norm of the moment."""
        limit = state.limit * jnp.where(seen.success, 1 - self.gamma, 1 + self.gamma)
        # Where nothing succeeds it would grow for ever.
        limit = jnp.minimum(limit, self.farthest(state.images)).astype(state.limit.dtype)
        way, dtype = self.ball.direction(seen.gradient), state.images.dtype
        # Where the loss is flat the released code goes anywhere rather than nowhere.
        flat = input_norms(way, "l2") == 0
        noise = jax.vmap(lambda key: jax.random.normal(key, way.shape[1:], dtype))(
            fold_keys(state.keys, index)
        )
        way = choose(flat, self.ball.direction(noise), way)
        size = self.annealed(index, 1.0, 0.01).astype(dtype)
        moved = state.point - state.images + size * way
        moved = self.ball.direction(moved) * per_example(limit, moved)
        return state._replace(limit=limit, point=self.ball.clip(state.images, state.images + moved))


@pytree_dataclass("low", "high")
@dataclasses.dataclass(frozen=True)
class FMN(MinimumNorm):
    """Fast minimum-norm attack (Pintor et al., NeurIPS 2021, algorithm 1), for Linf, L2 and L1.

    Ascends the margin by steps of the L2-normalised gradient, projected on a ball around the clean
    input. Until the first success its radius is the distance to the linearised boundary; then it
    shrinks by ``1 - gamma`` at successes, at least to the best one, and grows by ``1 + gamma``
    elsewhere. Step length and gamma fall along a cosine, gamma to 0.001.

    As published it may come to rest short of the boundary, where a share of each step leads out of
    the bounds and is cut off again (L2 and L1 on images with black or white pixels). So here
    gradients are 0 where an input is at its bound and would leave it, and until the first success
    the distance counts 1.05 times; ``as_published`` turns both off.

    Attributes:
        steps: 100; more come nearer.
        norm: ``"l2"``, ``"linf"`` or ``"l1"``.
        step_size: Length of the first step in L2, in the units of the inputs (1, the paper).
        last_step_size: Of the last one; ``None`` for a hundredth of the first.
        gamma: The first one (0.05, the paper).
        as_published: Exactly the paper's algorithm.
        low, high, targeted, unroll: As in ``MinimumNorm``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import FMN
        >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.full(1, 2.0)], axis=1)
        >>> images = jnp.full((1, 2, 2, 1), 0.6)
        >>> found = FMN(norm="linf")(logits_fn, jax.random.key(0), images, jnp.array([0]))
        >>> bool(abs(found.radius[0] - 0.1) < 0.005)
        True

    Raises:
        ValueError: For bad settings.
    """

    norm: str = "l2"  # type: ignore[misc]
    step_size: float = 1.0
    last_step_size: float | None = None
    as_published: bool = False

    loss: ClassVar[str] = "margin"

    def __post_init__(self) -> None:
        checks.choice(self.norm, NORMS, "norm")
        super().__post_init__()
        for name in ("step_size", "last_step_size"):
            value = getattr(self, name)
            optional = name == "last_step_size" and value is None
            if not optional and not (checks.is_number(value) and value > 0):
                raise ValueError(f"{name} is {value!r}, but a number above 0 was expected.")
        if not isinstance(self.as_published, bool):
            raise ValueError(
                f"as_published is {self.as_published!r}, but True or False was expected."
            )

    def first_limit(self, images: Inputs) -> jax.Array:
        """None yet: the boundary's distance decides."""
        return jnp.full(images.shape[0], jnp.inf, images.dtype)

    def move(self, index: jax.Array, state: MinimumNormState, seen: Seen) -> MinimumNormState:
        """The radius of the next ball, a step, and the projection on ball and bounds."""
        gamma = self.annealed(index, self.gamma, 0.001)
        gradient = seen.gradient if self.as_published else self._with_room(state.point, seen)
        overshoot = 1.0 if self.as_published else _OVERSHOOT
        boundary = jnp.abs(seen.loss) * reciprocal(input_norms(gradient, DUAL[self.norm]))
        shrunk = jnp.minimum(state.limit * (1 - gamma), state.radius)
        grown = jnp.where(
            jnp.isfinite(state.radius),
            state.limit * (1 + gamma),
            seen.length + overshoot * boundary,
        )
        limit = jnp.where(seen.success, shrunk, grown)
        limit = jnp.minimum(limit, self.farthest(state.images)).astype(state.limit.dtype)
        last = self.step_size / 100 if self.last_step_size is None else self.last_step_size
        size = self.annealed(index, self.step_size, last).astype(state.images.dtype)
        # The gradient is normalised in L2 whatever the attack's norm (the paper, section 2).
        way = InputBall("l2", 0.0, None, None).direction(gradient)
        inner = InputBall(self.norm, per_example(limit, state.images), None, None)
        point = inner.project(state.images, state.point + size * way)
        return state._replace(limit=limit, point=self.ball.clip(state.images, point))

    def _with_room(self, point: jax.Array, seen: Seen) -> jax.Array:
        """The gradient, zero where the point can go no further that way."""
        gradient = seen.gradient
        up = True if self.high is None else point < self.high
        down = True if self.low is None else point > self.low
        return jnp.where(jnp.where(gradient > 0, up, down), gradient, 0)
