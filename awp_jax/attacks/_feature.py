"""Feature attack: move the features of an image onto those of another class."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.attacks._model import as_pytree_function
from awp_jax.attacks._result import AttackResult
from awp_jax.attacks._stepped import SteppedAttack, choose


class FeatureState(NamedTuple):
    """Everything the attack remembers; each leaf has the batch as its first axis."""

    keys: jax.Array
    images: jax.Array
    labels: jax.Array
    goal: jax.Array  # features to reach
    point: jax.Array
    found: jax.Array
    success: jax.Array
    first: jax.Array


class _Bound(NamedTuple):
    """What the steps need beside the logits; it rides in the arguments of the logits function."""

    features: Partial
    pool_images: jax.Array
    pool_labels: jax.Array


def _logits(logits, bound, images):
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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _FeatureSteps(SteppedAttack):
    """The steps, without the arrays."""

    step_size: float = 1 / 255

    segment: ClassVar[int] = 10

    def begin(self, function, keys, images, labels, rank, restart) -> FeatureState:
        del rank, restart
        bound = function.args[1]
        both = jax.vmap(jax.random.split)(keys)
        point = self.ball.sample(both[:, 0], images)

        def pick(key, label):
            scores = jax.random.uniform(key, bound.pool_labels.shape)
            return jnp.where(bound.pool_labels != label, scores, -1.0).argmax()

        chosen = jax.vmap(pick)(both[:, 1], labels)
        return FeatureState(
            keys=keys,
            images=images,
            labels=labels,
            goal=bound.features(bound.pool_images[chosen]),
            point=point,
            found=point,
            success=function(point).argmax(axis=1) != labels,
            first=jnp.zeros(labels.shape, jnp.int32),
        )

    def step(self, function, index, state: FeatureState) -> FeatureState:
        s, features = state, function.args[1].features
        gradient = jax.grad(lambda x: -cosine_distance(features(x), s.goal).sum())(s.point)
        moved = self.ball.step(s.images, s.point, gradient, self.step_size)
        point = choose(s.success, s.point, moved)  # stop at success
        wrong = function(point).argmax(axis=1) != s.labels
        new = wrong & ~s.success
        return s._replace(
            point=point,
            found=choose(new, point, s.found),
            first=jnp.where(new, index.astype(jnp.int32) + 1, s.first),
            success=s.success | wrong,
        )

    def candidate(self, state: FeatureState) -> jax.Array:
        return choose(state.success, state.found, state.point)


@dataclasses.dataclass(frozen=True)
class FeatureAttack:
    """Minimises the cosine distance of features to those of images of other classes.

    Lin et al., "Feature attack" (the strongest on some defences that AutoAttack finds hard); each
    restart draws a new start and a new image to imitate. Stops, per example, at success.

    Attributes:
        features_fn: ``images -> [batch, ...]``: penultimate features of the model; a
            ``jax.tree_util.Partial`` over the parameters is compiled once for all parameters.
            ``None``: the logits function is a ``Classifier``'s, whose features are used.
        epsilon: Radius in pixel units.
        steps: Per restart (20 to 50 are usual).
        step_size: In pixel units (1/255).
        norm: ``"linf"`` or ``"l2"``.
        restarts: Images to imitate per example (100 are usual, and slow).
        pool: ``(images, labels)`` to draw from; ``None``: the batch itself. Then the result depends
            on the batch.
        unroll: See ``awp_jax.ascent.loop``.

    Raises:
        ValueError: For bad settings; when called, where the pool has no other class than an
            example's own, or the model has no features.
    """

    features_fn: Callable | None = None
    epsilon: Any = 8 / 255
    steps: int = 50
    step_size: Any = 1 / 255
    norm: str = "linf"
    restarts: int = 10
    pool: Any = None
    unroll: bool | None = None

    def __post_init__(self):
        if self.features_fn is not None and not callable(self.features_fn):
            raise ValueError(f"features_fn is {self.features_fn!r}, but a function was expected.")
        self._steps()

    def _steps(self) -> _FeatureSteps:
        size = float(checks.radius(self.step_size, "step_size", self.norm))
        return _FeatureSteps(
            self.epsilon, self.steps, self.norm, self.restarts, self.unroll, step_size=size
        )

    def __call__(
        self, logits_fn: Callable, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> AttackResult:
        """Attacks a batch.

        Args:
            logits_fn: ``images -> logits [batch, classes]`` of the same model.
            key: One typed key, or one per example.
            images: float ``[batch, height, width, channels]`` in [0, 1].
            labels: int ``[batch]``.

        Returns:
            An ``AttackResult``.
        """
        checks.images_and_labels(images, labels)
        pool_images, pool_labels = (images, labels) if self.pool is None else self.pool
        checks.images_and_labels(pool_images, pool_labels)
        if checks.is_concrete((labels, pool_labels)):
            first = pool_labels[0]
            one_class = bool((pool_labels == first).all())
            if one_class and bool((labels == first).any()):
                raise ValueError(
                    "The pool holds no image of another class: hand in pool=(images, labels) of "
                    "several classes."
                )
        function = as_pytree_function(logits_fn)
        features_fn = _features_of(function) if self.features_fn is None else self.features_fn
        bound = _Bound(as_pytree_function(features_fn), pool_images, pool_labels)
        function = Partial(_logits, function, bound)
        return self._steps()(function, key, images, labels)
