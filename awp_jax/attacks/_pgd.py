"""PGD, and what is PGD by another name: FGSM and its random starts, CW by PGD."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.ascent import loop
from awp_jax.attacks._goal import Goal, Loss, Success
from awp_jax.attacks._gradient import loss_and_gradient, model_key
from awp_jax.attacks._in_ball import OF_THE_BALL, InBall, ball_of, check_start, starting_point
from awp_jax.attacks._losses import HingedMargin
from awp_jax.attacks._model import (
    as_pytree_function,
    check_logits,
    in_float32,
    prepare,
    ranked_verdict,
)
from awp_jax.attacks._result import AttackResult, worse
from awp_jax.balls import InputBall
from awp_jax.balls._protocol import check_step_size, scaled
from awp_jax.explicit import on_any_mesh
from awp_jax.pytrees import pytree_dataclass
from awp_jax.random import example_keys, fold_keys
from awp_jax.typing import Inputs, Key, Labels, LogitsFn, Radius
from awp_jax.words import known_names


@pytree_dataclass("ball", "step_size", "loss", "success", "start")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(InBall):
    """Projected gradient descent (Madry et al. 2018; AWP, NeurIPS 2020, eq. 14).

    ``attack = PGD(epsilon="8/255", steps=20); attack(logits_fn, key, images, labels)`` is a pure
    function: it can be called as it is, or inside ``jit``, ``vmap`` and ``shard_map``. The attack
    is a pytree whose radius and step size are leaves: it may be built from tracers, or mapped.

    Attributes:
        epsilon, norm, ball: See ``InBall``.
        steps: Number of gradient steps (10 for training, 20 or 100 for tests in the AWP papers).
        step_size: In the units of the ball's radius; ``None`` for 2.5 * radius / steps (Madry et
            al., section 5).
        loss: ``"cross_entropy"``, ``"margin"``, ``"dlr"`` or ``(outputs, targets) -> [batch]`` to
            ascend; outputs and targets may be any pytree.
        success: ``None`` for classification: logits ``[batch, classes]``, labels ``[batch]``. Else
            ``(outputs, targets) -> bool [batch]``, for any other task.
        targeted: The labels are classes to reach: the loss is descended.
        start: ``"uniform"``: a random point, as the ball's ``start`` says; ``"gaussian"``: the
            clean input + 0.001 N(0, 1) (TRADES); ``"none"``: the clean input; or a ball to start
            in, whether it lies in the first or not.
        restarts: Independent runs; the worst is kept per example.
        momentum: Decay mu of the accumulated gradient ``g <- mu g + grad / mean|grad|``, along
            which steps are taken (MI-FGSM, Dong et al. 2018, eq. 6, there 1.0); 0 for none.
        eot: 0 for a deterministic ``logits_fn(images)``. Above: the model is randomised and called
            as ``logits_fn(images, key)``; each step follows the average gradient of this many
            passes, and the verdict is one more pass.
        unroll: See ``awp_jax.ascent.loop``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import PGD
        >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) * jnp.array([[1.0, 0.0]])
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.52), jnp.array([0, 1])
        >>> PGD(epsilon="8/255", steps=5)(logits_fn, jax.random.key(0), images, labels).success
        Array([ True,  True], dtype=bool)

    Raises:
        ValueError: For a negative epsilon, an unknown norm, loss or start, steps below 0, or a ball
            without a radius where ``step_size`` is missing; when called, for images outside the
            ball's bounds, wrong dtypes or wrong shapes.
    """

    step_size: Radius = None
    loss: Loss = "cross_entropy"
    success: Success | None = None
    targeted: bool = False
    start: Any = "uniform"
    restarts: int = 1
    momentum: float = 0.0
    eot: int = 0
    unroll: bool | None = None

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        checks.positive_integer(self.steps, "steps", minimum=0)
        checks.positive_integer(self.eot, "eot", minimum=0)
        if not self.momentum >= 0:
            raise ValueError(f"momentum is {self.momentum!r}, but at least 0 was expected.")
        checks.positive_integer(self.restarts, "restarts")
        check_start(self.start)
        _ = self.goal  # which checks the loss
        check_step_size(self.ball, self.step_size, "step_size to PGD")
        if self.step_size is not None:
            size = jax.tree.map(lambda s: checks.radius(s, "step_size", None), self.step_size)
            object.__setattr__(self, "step_size", size)

    @property
    def goal(self) -> Goal:
        """What the attack wants."""
        return Goal(self.loss, self.success, self.targeted)

    @property
    def size(self) -> Any:
        """Of a step, in the units of the ball's radius."""
        if self.step_size is not None:
            return self.step_size
        return scaled(self.ball.radius, 2.5 / max(self.steps, 1))

    @on_any_mesh(logits_fn="images")
    def perturb(self, logits_fn: LogitsFn, key: Key, images: Inputs, labels: Labels) -> Any:
        """One run without the verdict.

        Args:
            logits_fn: ``images -> logits [batch, classes]``, or other outputs.
            key: One typed key, or one per example.
            images: float ``[batch, ...]`` within the ball's bounds, or a pytree of them.
            labels: int ``[batch]``, or what the loss takes.

        Returns:
            The last iterate, like ``images``, inside the ball.
        """
        images = in_float32(images)
        keys = example_keys(key, jax.tree.leaves(images)[0].shape[0])
        point = starting_point(self.ball, self.start, keys, images)
        if self.steps == 0:
            # A start may lie outside (TRADES', another ball's), and no step has projected it.
            return self.ball.project(images, point)
        # Momentum as a plain float: it is a constant of the compiled step.
        rule = _Rule(self.ball, self.size, self.goal, float(self.momentum), self.eot)
        function = as_pytree_function(logits_fn)
        body = Partial(_pgd_step, rule, function, images, labels, keys if self.eot else None)
        # None is no leaf: without momentum nothing is carried but the point.
        velocity = jax.tree.map(jnp.zeros_like, images) if self.momentum else None
        return loop(body, (point, velocity), self.steps, unroll=self.unroll)[0]

    @on_any_mesh(logits_fn="images")
    def __call__(
        self, logits_fn: LogitsFn, key: Key, images: Inputs, labels: Labels
    ) -> AttackResult:
        """Attacks a batch.

        Args:
            logits_fn: ``images -> logits [batch, classes]``, or what ``loss`` and ``success`` take;
                a ``jax.tree_util.Partial`` over the parameters is compiled once for all parameters.
            key: One typed key, or one per example (then the result does not depend on batching).
            images: float ``[batch, height, width, channels]`` in [0, 1]; or inputs of any rank of
                at least 2, or a pytree of them, within the ball's bounds.
            labels: int ``[batch]``, or targets that ``loss`` and ``success`` take.

        Returns:
            An ``AttackResult``.

        Raises:
            ValueError: For bad images or labels, or a model that returns NaN.
        """
        function, keys, images, _ = prepare(self, logits_fn, key, images, labels)
        result = None
        for restart in range(self.restarts):
            # One run draws from the keys as they are. In turn: memory is that of a single run.
            keys_now = keys if self.restarts == 1 else fold_keys(keys, restart)
            point = self.perturb(function, keys_now, images, labels)
            # The number after the last step: a draw that no gradient has followed.
            judge_key = model_key(keys_now, self.steps) if self.eot else None
            found = ranked_verdict(function, point, labels, judge_key, self.goal)
            result = found if result is None else worse(result, found)
        assert result is not None  # restarts >= 1
        check_logits(result.result.loss)
        return result.result


@pytree_dataclass("ball", "step_size", "goal")
@dataclasses.dataclass(frozen=True)
class _Rule:
    """What a compiled step depends on: not the number of steps."""

    ball: Any
    step_size: Radius
    goal: Goal
    momentum: float
    eot: int


def _pgd_step(
    rule: _Rule,
    logits_fn: Partial,
    images: Inputs,
    labels: Labels,
    keys: Key | None,
    index: jax.Array,
    state: tuple[Any, Any],
) -> tuple[Any, Any]:
    point, velocity = state
    key = None if keys is None else model_key(keys, index)
    _, _, gradient = loss_and_gradient(
        logits_fn, lambda outputs: rule.goal.ascended(outputs, labels), point, key, rule.eot
    )
    if velocity is not None:
        velocity = jax.tree.map(
            lambda v, g: rule.momentum * v + _in_units_of_mean(g), velocity, gradient
        )
        gradient = velocity
    return rule.ball.step(images, point, gradient, rule.step_size), velocity


def _in_units_of_mean(gradient: jax.Array) -> jax.Array:
    if not jnp.issubdtype(gradient.dtype, jnp.floating):
        return gradient
    axes = tuple(range(1, gradient.ndim))
    # 1e-30 keeps a zero gradient zero instead of NaN.
    return gradient / jnp.maximum(jnp.abs(gradient).mean(axes, keepdims=True), 1e-30)


@known_names
def FGSM(
    epsilon: Radius = OF_THE_BALL,
    *,
    norm: Any = OF_THE_BALL,
    ball: Any = None,
    step_size: Radius = None,
    loss: Loss = "cross_entropy",
    success: Success | None = None,
    targeted: bool = False,
) -> PGD:
    """Fast gradient sign method (Goodfellow et al. 2015; AWP eq. 13).

    One step of length epsilon from the clean image: ``x + epsilon * sign(gradient)``, clipped to
    the bounds; for L2 along the normalised gradient.

    Args:
        epsilon, norm, ball: As in ``PGD``.
        step_size: ``None`` for the radius.
        loss, success, targeted: As in ``PGD``.

    Returns:
        An attack, called as ``attack(logits_fn, key, images, labels)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import FGSM
        >>> logits_fn = lambda images: images.mean((1, 2)) @ jnp.array([[1.0, -1.0]])
        >>> images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
        >>> found = FGSM(0.1)(logits_fn, jax.random.key(0), images, labels)
        >>> bool(jnp.allclose(found.images, 0.4))
        True
    """
    ball = ball_of(epsilon, norm, ball)
    check_step_size(ball, step_size, "step_size to FGSM")
    return PGD(
        ball=ball,
        steps=1,
        step_size=ball.radius if step_size is None else step_size,
        loss=loss,
        success=success,
        targeted=targeted,
        start="none",
    )


@known_names
def FGSMRS(
    epsilon: Radius = OF_THE_BALL,
    *,
    norm: Any = OF_THE_BALL,
    ball: Any = None,
    alpha: float = 1.25,
    loss: Loss = "cross_entropy",
    success: Success | None = None,
) -> PGD:
    """FGSM from a random start (FGSM-RS; Wong, Rice and Kolter, ICLR 2020, algorithm 3).

    ``delta ~ U(-epsilon, epsilon)``, one step of ``alpha * epsilon`` along the sign of the
    gradient, and back into the ball.

    Args:
        epsilon, norm, ball: As in ``PGD``; the ball needs a radius.
        alpha: Length of the step in units of the radius (1.25, the paper: 10/255 in 8/255).
        loss, success: As in ``PGD``.

    Returns:
        An attack, called as ``attack(logits_fn, key, images, labels)``.

    Example:
        >>> from awp_jax.attacks import FGSMRS
        >>> round(255 * FGSMRS("8/255").size, 6)
        10.0
    """
    ball = ball_of(epsilon, norm, ball)
    check_step_size(ball, None, "step_size to PGD, with start='uniform'")
    size = scaled(ball.radius, checks.radius(alpha, "alpha", None))
    return PGD(ball=ball, steps=1, step_size=size, loss=loss, success=success)


@known_names
def NFGSM(
    epsilon: Radius = OF_THE_BALL,
    *,
    norm: Any = OF_THE_BALL,
    ball: Any = None,
    k: float = 2.0,
    alpha: float = 1.0,
    loss: Loss = "cross_entropy",
    success: Success | None = None,
) -> PGD:
    """Noise-FGSM (de Jorge et al., NeurIPS 2022, algorithm 1): for training only.

    Noise of ``k * epsilon``, then a step of ``alpha * epsilon``, and no way back into the ball of
    radius epsilon: the result may be ``(k + alpha) * epsilon`` away, which is what keeps training
    by one step from collapsing. Bounds are kept.

    Args:
        epsilon, norm, ball: As in ``PGD``; the ball has to be an ``InputBall``.
        k: Of the noise, in units of the radius (2, the paper).
        alpha: Of the step, in units of the radius (1, the paper).
        loss, success: As in ``PGD``.

    Returns:
        An attack, called as ``attack(logits_fn, key, images, labels)``.
    """
    ball = ball_of(epsilon, norm, ball)
    if not isinstance(ball, InputBall):
        raise ValueError(
            f"NFGSM leaves the ball that it is given, so it needs an InputBall, not a "
            f"{type(ball).__name__}."
        )
    k, alpha = (checks.radius(value, name, None) for value, name in ((k, "k"), (alpha, "alpha")))
    return PGD(
        # Wide enough for noise and step together: what the projection keeps are the bounds.
        ball=_of_radius(ball, scaled(ball.radius, k + alpha)),
        steps=1,
        step_size=scaled(ball.radius, alpha),
        start=_of_radius(ball, scaled(ball.radius, k)),
        loss=loss,
        success=success,
    )


def _of_radius(ball: InputBall, radius: Radius) -> InputBall:
    # Noise may well be wider than the range of the inputs, which the constructor refuses.
    leaves = jax.tree.leaves(ball)
    first = len(jax.tree.leaves(ball.radius))
    return jax.tree.unflatten(jax.tree.structure(ball), [*jax.tree.leaves(radius), *leaves[first:]])


@known_names
def CW(
    epsilon: Radius = OF_THE_BALL,
    *,
    norm: Any = OF_THE_BALL,
    ball: Any = None,
    steps: int = 100,
    kappa: float = 10.0,
    step_size: Radius = None,
    restarts: int = 1,
    targeted: bool = False,
) -> PGD:
    """CW-infinity: PGD on the margin ``max_{j != y} z_j - z_y`` (AWP, NeurIPS 2020, Table 2).

    Args:
        epsilon, norm, ball: As in ``PGD``.
        steps: Number of gradient steps (100 in the paper).
        kappa: Confidence in units of logits at which the margin is cut off (10 in the released RWP
            code).
        step_size: As in ``PGD``.
        restarts: As in ``PGD``.
        targeted: As in ``PGD``.

    Returns:
        An attack, called as ``attack(logits_fn, key, images, labels)``.
    """
    return PGD(
        ball=ball_of(epsilon, norm, ball),
        steps=steps,
        step_size=step_size,
        loss=HingedMargin(float(kappa)),
        restarts=restarts,
        targeted=targeted,
    )
