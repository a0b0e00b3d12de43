"""What all attacks in a ball share: the ball, its short form, the goal and the start."""

import dataclasses
from dataclasses import KW_ONLY, InitVar
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.attacks._goal import Goal
from awp_jax.balls import Ball, InputBall
from awp_jax.balls._noise import noise_like
from awp_jax.balls._norms import is_float
from awp_jax.balls._protocol import check_ball
from awp_jax.typing import Inputs, Key, Radius
from awp_jax.words import KnownNames

STARTS = ("uniform", "gaussian", "none")

# TRADES and MART start from the clean input + 0.001 * N(0, 1) (docs/numerics.md).
GAUSSIAN_START = 0.001

USUAL = {"l2": 0.5, "l1": 12.0}  # RobustBench; Croce and Hein, ICML 2021


class _OfTheBall:
    """What ``attack.epsilon`` reads as: the radius is the ball's."""

    def __repr__(self) -> str:
        return "see attack.ball"


OF_THE_BALL = _OfTheBall()


def ball_of(epsilon: Radius, norm: Any, ball: Any) -> Any:
    """The ball of an attack, from its short form or as given.

    Raises:
        ValueError: For both, a ball that is none, a negative epsilon or an unknown norm; for a norm
            other than Linf without an epsilon: 8/255 in L2 would find every model robust.
    """
    given = [
        f"{name} {value!r}"
        for name, value in (("epsilon", epsilon), ("norm", norm))
        if value is not OF_THE_BALL
    ]
    if ball is not None:
        if given:
            raise ValueError(
                f"Both a ball and {' and '.join(given)} were given, but epsilon and norm are only "
                "short for ball=InputBall(norm, epsilon): give one of them."
            )
        return check_ball(ball, "inputs")
    if norm in USUAL and epsilon is OF_THE_BALL:
        raise ValueError(
            f"epsilon is missing, which with norm {norm!r} has no default: CIFAR-10 is usually "
            f"attacked at {USUAL[norm]:g}."
        )
    settings = {}
    if epsilon is not OF_THE_BALL:
        settings["radius"] = epsilon
    if norm is not OF_THE_BALL:
        settings["norm"] = norm
    return InputBall(**settings)


def is_l1(ball: Any) -> bool:
    """Whether a ball is the L1 ball of inputs, for which some attacks have rules of their own."""
    return isinstance(ball, InputBall) and ball.norm == "l1"


def check_start(start: Any) -> None:
    """Raises ``ValueError`` for a start that is neither a name nor a ball."""
    if isinstance(start, str):
        checks.choice(start, STARTS, "start")
    elif not isinstance(start, Ball):
        raise ValueError(
            f"start is {start!r}, but one of {', '.join(STARTS)}, or a ball to start in, was "
            "expected."
        )


def starting_point(ball: Any, start: Any, keys: Key, centre: Inputs) -> Any:
    """Where an ascent on inputs begins.

    Args:
        ball: What the attack moves in.
        start: ``"uniform"``: where the ball says, ``ball.start``. ``"gaussian"``: the centre +
            0.001 * N(0, 1), not clipped (TRADES, MART). ``"none"``: the centre. Or another ball, to
            start at a random point of that, whether it lies in the first or not.
        keys: A typed key for each example.
        centre: Clean inputs ``[batch, ...]``, or a pytree of them.
    """
    if not isinstance(start, str):
        return start.start(keys, centre)
    if start == "none":
        return centre
    if start == "uniform":
        # One call in place of forty small ones, which took as long as the steps of a short attack.
        ours = type(ball) is InputBall
        return _compiled_start(ball, keys, centre) if ours else ball.start(keys, centre)
    centre = jax.tree.map(jnp.asarray, centre)
    noise = noise_like(keys, centre, "l2")
    point = jax.tree.map(lambda x, n: x + GAUSSIAN_START * n if is_float(x) else x, centre, noise)
    # As released, it may be out of the bounds by a little; a ball of one's own knows no "little".
    hold = ball.hold if isinstance(ball, InputBall) else ball.project
    return hold(centre, point)


@jax.jit
def _compiled_start(ball: Any, keys: Key, centre: Inputs) -> Any:
    return ball.start(keys, centre)


@dataclasses.dataclass(frozen=True)
class InBall(KnownNames):
    """The fields that attacks in a ball of inputs have in common.

    Attributes:
        epsilon: Short for ``ball=InputBall(norm, epsilon)``: the radius in the units of inputs in
            [0, 1], a number or a fraction such as "8/255" (the default).
        steps: Number of steps.
        norm: With ``epsilon``: ``"linf"`` (the default), ``"l2"`` or ``"l1"``.
        ball: What the attack moves in: an ``awp_jax.balls.InputBall`` with other bounds, a mask, a
            radius for each example or feature, or any object with the methods of
            ``awp_jax.balls.Ball``.

    Inputs of half precision are moved, shown to the model and returned in float32.
    """

    # Handed on to the ball and not kept, so that the two cannot disagree.
    epsilon: InitVar[Any] = OF_THE_BALL
    steps: int = 20
    norm: InitVar[Any] = OF_THE_BALL
    _: KW_ONLY
    ball: Any = None

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        object.__setattr__(self, "ball", ball_of(epsilon, norm, self.ball))

    @property
    def goal(self) -> Goal:
        """What the attack wants."""
        return Goal()

    def _needs_input_ball(self, why: str) -> None:
        if not isinstance(self.ball, InputBall):
            raise ValueError(
                f"{type(self).__name__} {why}, so it needs an InputBall, not a "
                f"{type(self.ball).__name__}."
            )
