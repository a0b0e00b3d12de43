"""Fast adaptive boundary attack: the nearest misclassified image (Croce and Hein, ICML 2020)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.ascent import loop
from awp_jax.attacks._l1 import boundary_displacement_l1
from awp_jax.attacks._minimum_norm import DUAL
from awp_jax.attacks._model import check_logits, predict, prepare
from awp_jax.attacks._nearest import NearestResult
from awp_jax.attacks._result import choose
from awp_jax.attacks._stepped import SteppedAttack, advance, begin, ranked_targets
from awp_jax.balls import input_norms
from awp_jax.balls._input_norms import per_example
from awp_jax.balls._noise import noise_like
from awp_jax.pytrees import pytree_dataclass
from awp_jax.typing import Inputs, Key, Labels, LogitsFn, Radius

# Newton's method on a concave piecewise linear function needs a handful of steps; this is a cap.
_MOST_NEWTON_STEPS = 100


def boundary_displacement(
    point: jax.Array,
    normal: jax.Array,
    change: jax.Array,
    norm: str,
    low: Any = 0.0,
    high: Any = 1.0,
) -> jax.Array:
    """The shortest way to a hyperplane inside the box of the inputs.

    Solves ``min ||d||`` subject to ``<normal, d> = change`` and ``low <= point + d <= high``, as
    ``d_i = sign * min(t * s_i, room_i)`` with ``s = 1`` for Linf and ``s = |normal|`` for L2, the
    reached change is a concave, increasing, piecewise linear function of ``t``; Newton's method
    from ``t = 0`` never overshoots and ends on the exact solution once it is on the right piece.
    For L1 see ``boundary_displacement_l1``.

    Args:
        point: Images ``[batch, ...]`` in the box.
        normal: ``[batch, ...]``.
        change: ``[batch]``; where the box allows less, every pixel that helps goes to its bound.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        low: Least value, a number or of the shape of ``point``; ``None`` for no bound.
        high: Largest value.

    Returns:
        ``d [batch, ...]``; zero where ``normal`` is zero.
    """
    if norm == "l1":
        return boundary_displacement_l1(point, normal, change, low, high)
    shape = point.shape
    # Two axes: sums over several short ones are several times slower on CPU.
    above, below = (
        jnp.full_like(point, jnp.inf) if bound is None else jnp.abs(bound - point)
        for bound in (high, low)
    )
    point, normal, above, below = (x.reshape(shape[0], -1) for x in (point, normal, above, below))
    # Turned round where the change is negative: what is left to solve is an increase.
    normal = normal * jnp.where(change < 0, -1.0, 1.0).astype(normal.dtype)[:, None]
    change = jnp.abs(change)
    weight = jnp.abs(normal)
    room = jnp.where(normal > 0, above, jnp.where(normal < 0, below, 0.0))
    speed = weight if norm == "l2" else jnp.ones_like(weight)
    # Two roundings of t: a smaller step is no step, and would keep the loop going.
    tolerance = 2 * jnp.finfo(point.dtype).eps

    def newton(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, t, _ = carry
        travelled = speed * t[:, None]
        free = travelled < room
        reached = jnp.sum(weight * jnp.minimum(travelled, room), axis=1)
        slope = jnp.sum(jnp.where(free, weight * speed, 0.0), axis=1)
        # No slope: every pixel that helps is at its bound, and nothing more can be reached.
        increase = jnp.where(slope > 0, (change - reached) / jnp.where(slope > 0, slope, 1.0), 0.0)
        # The stop is per example, so that a result does not depend on the rest of its batch.
        moving = increase > tolerance * t
        return count + 1, jnp.where(moving, t + increase, t), moving

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        return (carry[0] < _MOST_NEWTON_STEPS) & carry[2].any()

    first = (jnp.int32(0), jnp.zeros_like(change), change > 0)
    t = jax.lax.while_loop(unfinished, newton, first)[1]
    return (jnp.sign(normal) * jnp.minimum(speed * t[:, None], room)).reshape(shape)


class FABState(NamedTuple):
    """Everything FAB remembers; each leaf has the batch as its first axis."""

    keys: Key
    images: Inputs
    labels: Labels
    targets: jax.Array
    point: jax.Array
    best: jax.Array
    radius: jax.Array  # of the nearest misclassified image; infinite while there is none
    success: jax.Array  # whether that is inside epsilon
    first: jax.Array


@pytree_dataclass("ball")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FAB(SteppedAttack):
    """Fast adaptive boundary attack (Croce and Hein, ICML 2020, algorithm 1).

    Each step linearises the decision boundary, goes to its nearest point in the pixel box with an
    overshoot ``eta``, pulled towards the clean image by at most ``alpha_max``, and steps back by
    ``beta`` where the image is misclassified. It minimises the norm; epsilon only says what counts
    as success, and how far restarts begin (at most epsilon / 2).

    The untargeted attack needs the gradients of all classes at every step; ``FABTargeted`` needs
    one, and is what AutoAttack runs.

    Attributes:
        epsilon, steps, norm, ball, restarts, unroll: As in ``SteppedAttack``; an ``InputBall`` in
            Linf, L2 or L1, with one radius or one for each example.
        alpha_max: 0.1, eta: 1.05, beta: 0.9 (the paper and fra31/auto-attack).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import FAB
        >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.full(1, 2.0)], axis=1)
        >>> images = jnp.full((1, 2, 2, 1), 0.6)
        >>> found = FAB(steps=20, norm="linf").nearest(
        ...     logits_fn, jax.random.key(0), images, jnp.array([0]))
        >>> bool(abs(found.radius[0] - 0.1) < 1e-3)
        True
    """

    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        self._needs_input_ball("minimises the norm of its ball")
        for name, value in (("alpha_max", self.alpha_max), ("beta", self.beta)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}, but a number in [0, 1] was expected.")
        if not self.eta >= 1:
            raise ValueError(f"eta is {self.eta!r}, but at least 1 was expected.")

    def check(self, images: Inputs) -> None:
        """Raises ``ValueError`` for pytrees, and for radii of features."""
        if not hasattr(images, "shape"):
            raise ValueError(
                f"{type(self).__name__} needs one array of inputs, not a {type(images).__name__}."
            )
        if self.ball.per_feature(images):
            raise ValueError(
                f"{type(self).__name__} needs one radius for all features of an example."
            )

    def begin(
        self,
        function: Callable[..., Any],
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
        restart: jax.Array,
    ) -> FABState:
        """The clean image; for restarts a random point at epsilon / 2."""
        self.check(images)
        noise = noise_like(keys, images, self.ball.norm)
        random_start = self.ball.on_sphere(images, noise, 0.5)
        logits = predict(function, images)
        wrong = logits.argmax(axis=1) != labels
        return FABState(
            keys=keys,
            images=images,
            labels=labels,
            targets=ranked_targets(logits, labels, rank) if self.targets else labels,
            point=jnp.where(restart > 0, random_start, images),
            best=images,
            radius=jnp.where(wrong, 0.0, jnp.inf).astype(images.dtype),
            success=wrong,
            first=jnp.zeros(labels.shape, jnp.int32),
        )

    def _boundary(self, function: Callable[..., Any], s: FABState) -> tuple[jax.Array, jax.Array]:
        """Difference of logits at the nearest linearised boundary, and its gradient."""

        def differences(x: jax.Array) -> jax.Array:
            logits = function(x)
            return logits - jnp.take_along_axis(logits, s.labels[:, None], axis=1)

        if self.targets:

            def to_target(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                value = jnp.take_along_axis(differences(x), s.targets[:, None], axis=1)[:, 0]
                # Of the sum: examples do not depend on each other, so one backward pass serves all.
                return value.sum(), value

            gradient, value = jax.grad(to_target, has_aux=True)(s.point)
            return value, gradient

        # One forward pass, and a pullback for each class.
        values, pullback = jax.vjp(differences, s.point)
        classes = values.shape[1]
        basis = jnp.broadcast_to(
            jnp.eye(classes, dtype=values.dtype)[:, None, :], (classes, *values.shape)
        )
        # Ten classes at a time: memory stays bounded for models with many.
        gradients = jax.lax.map(lambda row: pullback(row)[0], basis, batch_size=min(classes, 10))
        flat = gradients.reshape(classes, values.shape[0], -1)
        dual = jax.vmap(lambda rows: input_norms(rows, DUAL[self.ball.norm]))(flat)
        distance = jnp.abs(values.T) / (dual + 1e-12)
        is_label = jax.nn.one_hot(s.labels, classes, axis=0, dtype=bool)
        # The label's own difference is 0 everywhere, and would always be nearest.
        nearest = jnp.where(is_label, jnp.inf, distance).argmin(axis=0)
        chosen = jax.nn.one_hot(nearest, classes, axis=0, dtype=values.dtype)
        gradient = jnp.einsum("cb,cb...->b...", chosen, gradients)
        return jnp.take_along_axis(values, nearest[:, None], axis=1)[:, 0], gradient

    def step(self, function: Callable[..., Any], index: jax.Array, state: FABState) -> FABState:
        """One step of algorithm 1."""
        s = state
        norm = self.ball.norm
        value, normal = self._boundary(function, s)
        # What the mask holds has no part in the way to the boundary.
        normal = self.ball.hold(jnp.zeros_like(normal), normal)
        inner = (normal * (s.point - s.images)).reshape(len(value), -1).sum(axis=1)
        # The hyperplane is value + <normal, x - point> = 0: how much has to change from either end.
        from_clean = inner - value
        # Both projections as one batch: one loop of Newton's.
        both = boundary_displacement(
            jnp.concatenate([s.point, s.images]),
            jnp.concatenate([normal, normal]),
            jnp.concatenate([-value, from_clean]),
            norm,
            *self._box(s.images),
        )
        # 1e-8: alpha would be 0 / 0 where both ways have length 0.
        lengths = jnp.maximum(input_norms(both, norm), 1e-8)
        move, move_clean = jnp.split(both, 2)
        length, length_clean = jnp.split(lengths, 2)
        alpha = jnp.minimum(length / (length + length_clean), self.alpha_max)
        alpha = per_example(alpha, s.images)
        point = (1 - alpha) * (s.point + self.eta * move) + alpha * (
            s.images + self.eta * move_clean
        )
        point = self.ball.clip(s.images, point)
        wrong = function(point).argmax(axis=1) != s.labels
        radius = input_norms(point - s.images, norm).astype(s.radius.dtype)
        nearer = wrong & (radius < s.radius)
        limit = self.ball.lying(jnp.asarray(self.ball.radius, radius.dtype), s.images)
        inside = wrong & (radius <= limit.reshape(-1))
        return s._replace(
            point=choose(wrong, s.images + self.beta * (point - s.images), point),
            best=choose(nearer, point, s.best),
            radius=jnp.where(nearer, radius, s.radius),
            first=jnp.where(inside & ~s.success, index.astype(jnp.int32) + 1, s.first),
            success=s.success | inside,
        )

    def _box(self, images: Inputs) -> tuple[Any, Any]:
        """The bounds of two batches of the images, one after the other."""
        bounds = []
        for bound in (self.ball.low, self.ball.high):
            if bound is not None and jnp.ndim(bound):
                lying = jnp.broadcast_to(jnp.asarray(bound, images.dtype), images.shape)
                bound = jnp.concatenate([lying, lying])
            bounds.append(bound)
        return bounds[0], bounds[1]

    def candidates(self, state: FABState) -> tuple[Any, Any, Any]:
        """The nearest misclassified image where it is inside epsilon, else the clean image."""
        return state.success, state.best, state.images

    def candidate(self, state: FABState) -> jax.Array:
        """Chosen from ``candidates``."""
        return choose(*self.candidates(state))

    def nearest(
        self, logits_fn: LogitsFn, key: Key, images: Inputs, labels: Labels
    ) -> NearestResult:
        """The smallest perturbation that changes the decision, whatever its size.

        Args:
            logits_fn: ``images -> logits [batch, classes]``.
            key: One typed key, or one per example; only restarts draw from it.
            images: float ``[batch, height, width, channels]`` in [0, 1].
            labels: int ``[batch]``.

        Returns:
            A ``NearestResult``; radius 0 for misclassified clean images.
        """
        function, keys, images, classes = prepare(self, logits_fn, key, images, labels)
        self.check(images)
        check_logits(predict(function, images))
        best, radius = images, jnp.full(labels.shape, jnp.inf, images.dtype)
        for rank, restart in self.runs(classes):
            state = begin(self, function, keys, images, labels, rank, restart)
            body = Partial(advance, self, function)
            state = loop(body, state, self.steps, unroll=self.unroll)
            nearer = state.radius < radius
            best = choose(nearer, state.best, best)
            radius = jnp.where(nearer, state.radius, radius)
        return NearestResult(best, radius)


@pytree_dataclass("ball")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FABTargeted(FAB):
    """FAB towards one class at a time: the FAB-T of AutoAttack.

    Any misclassification counts, not only the target (fra31/auto-attack).

    Attributes:
        epsilon, steps, norm, ball, restarts, alpha_max, eta, beta, unroll: As in ``FAB``.
        targets: Number of target classes (9), ranks 2 to 10 of the clean logits; fewer classes:
            all wrong ones.
    """

    targets: int = 9  # type: ignore[misc]

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        checks.positive_integer(self.targets, "targets")
