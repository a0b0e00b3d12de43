"""Feature attack: move the features of an image onto those of another class."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.attacks._goal import Goal, Loss, Success, inequality
from awp_jax.attacks._gradient import loss_and_gradient
from awp_jax.attacks._in_ball import OF_THE_BALL, ball_of
from awp_jax.attacks._model import as_pytree_function, bounds_of
from awp_jax.attacks._result import AttackResult, choose
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.explicit import on_any_mesh
from awp_jax.pytrees import pytree_dataclass
from awp_jax.typing import Inputs, Key, Labels, LogitsFn, Radius
from awp_jax.words import KnownNames


class FeatureState(NamedTuple):
    """Everything the attack remembers; each leaf has the batch as its first axis."""

    keys: Key
    images: Inputs
    labels: Labels
    goal: jax.Array  # features to reach
    point: Inputs
    found: Any
    success: jax.Array
    first: jax.Array


class _Bound(NamedTuple):
    """What the steps need beside the logits; it rides in the arguments of the logits function."""

    features: Partial
    pool_images: Any
    pool_labels: Any


def _logits(logits: Callable[..., Any], bound: _Bound, images: Inputs) -> Any:
    del bound
    return logits(images)


def _features_of(logits_fn: Partial) -> Partial:
    """The features of the classifier that ``logits_fn`` belongs to, over the same parameters."""
    features_fn = getattr(logits_fn.func, "features_fn", None)
    if features_fn is None:
        raise ValueError(
            "The feature attack needs the model's features: give features_fn, or a logits_fn of a "
            "Classifier that has them."
        )
    return Partial(features_fn, *logits_fn.args)


def cosine_distance(first: jax.Array, second: jax.Array) -> jax.Array:
    """``1 - cos`` of each pair of rows.

    Args:
        first: ``[batch, ...]``.
        second: ``[batch, ...]``.

    Returns:
        ``[batch]``, in [0, 2]; 1 where a row is zero.
    """
    first, second = (x.reshape(x.shape[0], -1) for x in (first, second))
    # The floor is inside the root: a row of zeros has a finite gradient.
    lengths = jnp.sqrt((first**2).sum(1) * (second**2).sum(1) + 1e-24)
    return 1 - (first * second).sum(1) / lengths


@pytree_dataclass("ball", "step_size", "loss", "success")
@dataclasses.dataclass(frozen=True, kw_only=True)
class _FeatureSteps(SteppedAttack):
    """The steps, without the arrays."""

    step_size: Radius = 1 / 255
    loss: Loss = "cross_entropy"
    success: Success | None = None

    segment: ClassVar[int] = 10

    @property
    def goal(self) -> Goal:
        """What counts as success; the loss is only reported."""
        return Goal(self.loss, self.success)

    def begin(
        self,
        function: Partial,
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
        restart: jax.Array,
    ) -> FeatureState:
        """A random point, and the features of an example with another target."""
        del rank, restart
        bound = function.args[1]
        both = jax.vmap(jax.random.split)(keys)
        point = self.ball.sample(both[:, 0], images)

        def pick(key: Key, label: Any) -> jax.Array:
            pool = bound.pool_labels
            size = jax.tree.leaves(pool)[0].shape[0]
            scores = jax.random.uniform(key, (size,))
            every = jax.tree.map(lambda own, all_: jnp.broadcast_to(own, all_.shape), label, pool)
            # Uniform over those of another target: the others score below all of them.
            return jnp.where(inequality(pool, every), scores, -1.0).argmax()

        chosen = jax.vmap(pick)(both[:, 1], labels)
        imitated = jax.tree.map(lambda leaf: leaf[chosen], bound.pool_images)
        return FeatureState(
            keys=keys,
            images=images,
            labels=labels,
            goal=bound.features(imitated),
            point=point,
            found=point,
            success=self.goal.succeeded(function(point), labels),
            first=jnp.zeros(keys.shape, jnp.int32),
        )

    def step(self, function: Partial, index: jax.Array, state: FeatureState) -> FeatureState:
        """One step towards the features."""
        s, features = state, function.args[1].features
        _, _, gradient = loss_and_gradient(
            features, lambda found: -cosine_distance(found, s.goal), s.point
        )
        moved = self.ball.step(s.images, s.point, gradient, self.step_size)
        point = choose(s.success, s.point, moved)  # stop at success
        wrong = self.goal.succeeded(function(point), s.labels)
        new = wrong & ~s.success
        return s._replace(
            point=point,
            found=choose(new, point, s.found),
            first=jnp.where(new, index.astype(jnp.int32) + 1, s.first),
            success=s.success | wrong,
        )

    def candidate(self, state: FeatureState) -> Any:
        """The first success, else the last point."""
        return choose(state.success, state.found, state.point)


@dataclasses.dataclass(frozen=True)
class FeatureAttack(KnownNames):
    """Minimises the cosine distance of features to those of images of other classes.

    Lin et al., "Feature attack" (the strongest on some defences that AutoAttack finds hard); each
    restart draws a new start and a new image to imitate. Stops, per example, at success.

    Attributes:
        features_fn: ``images -> [batch, ...]``: penultimate features of the model; a
            ``jax.tree_util.Partial`` over the parameters is compiled once for all parameters.
            ``None``: the logits function is a ``Classifier``'s, whose features are used.
        epsilon, norm, ball: See ``InBall``.
        steps: Per restart (20 to 50 are usual).
        step_size: In the units of the ball's radius (1/255).
        success: As in ``PGD``; ``loss`` is what the result reports then.
        restarts: Images to imitate per example (100 are usual, and slow).
        pool: ``(images, labels)`` to draw from; ``None``: the batch itself. Then the result depends
            on the batch.
        unroll: See ``awp_jax.ascent.loop``.

    Raises:
        ValueError: For bad settings; when called, where the pool has no other class than an
            example's own, or the model has no features.
    """

    features_fn: Callable[..., Any] | None = None
    epsilon: dataclasses.InitVar[Any] = OF_THE_BALL
    norm: dataclasses.InitVar[Any] = OF_THE_BALL
    ball: Any = None
    steps: int = 50
    step_size: Radius = 1 / 255
    loss: Loss = "cross_entropy"
    success: Success | None = None
    restarts: int = 10
    pool: Any = None
    unroll: bool | None = None

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        if self.features_fn is not None and not callable(self.features_fn):
            raise ValueError(f"features_fn is {self.features_fn!r}, but a function was expected.")
        object.__setattr__(self, "ball", ball_of(epsilon, norm, self.ball))
        # Which checks the settings.
        self._steps()

    def _steps(self) -> _FeatureSteps:
        return _FeatureSteps(
            ball=self.ball,
            steps=self.steps,
            restarts=self.restarts,
            unroll=self.unroll,
            step_size=checks.radius(self.step_size, "step_size", None),
            loss=self.loss,
            success=self.success,
        )

    @on_any_mesh(logits_fn="images")
    def __call__(
        self, logits_fn: LogitsFn, key: Key, images: Inputs, labels: Labels
    ) -> AttackResult:
        """Attacks a batch.

        Args:
            logits_fn: ``images -> logits [batch, classes]`` of the same model.
            key: One typed key, or one per example.
            images: float ``[batch, height, width, channels]`` in [0, 1], or what the ball holds.
            labels: int ``[batch]``, or what ``success`` takes.

        Returns:
            An ``AttackResult``.
        """
        low, high = bounds_of(self.ball)
        check = checks.inputs_and_labels if self.success is None else checks.inputs_and_targets
        check(images, labels, low=low, high=high)
        pool_images, pool_labels = (images, labels) if self.pool is None else self.pool
        check(pool_images, pool_labels, low=low, high=high)
        # Within a trace labels cannot be looked at.
        if checks.is_concrete((labels, pool_labels)):
            first = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), pool_labels)
            own = jax.tree.map(
                lambda leaf, one: jnp.broadcast_to(one[:1], leaf.shape), labels, pool_labels
            )
            one_class = not bool(inequality(pool_labels, first).any())
            if one_class and not bool(inequality(labels, own).all()):
                raise ValueError(
                    "The pool holds no image of another class: hand in pool=(images, labels) of "
                    "several classes."
                )
        function = as_pytree_function(logits_fn)
        features_fn = _features_of(function) if self.features_fn is None else self.features_fn
        bound = _Bound(as_pytree_function(features_fn), pool_images, pool_labels)
        function = Partial(_logits, function, bound)
        return self._steps()(function, key, images, labels)
