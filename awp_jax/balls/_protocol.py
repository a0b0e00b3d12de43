"""What a ball is: the contract that every adversary moves on."""

import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from awp_jax.typing import Key, Radius

Point = TypeVar("Point")


@runtime_checkable
class Ball(Protocol[Point]):
    """A set around a centre in which an adversary moves. Any class with these methods is one.

    A point is what the adversary changes, any pytree of arrays: for inputs the inputs themselves,
    ``[batch, ...]``; for weights the displacement from the weights. Attacks give balls of inputs
    one typed key for each example, ``[batch]``; a ball of weights gets one key.

    A ball may also have a ``radius``. It gives attacks a default for the size of a step, which is
    in the same units; without it they ask for one at once. A class that is a pytree has its
    numbers traced, so that another radius compiles nothing anew; any other object is a constant,
    and compiled once for each object.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.balls import Ball
        >>> class Brighter:  # pixels may only rise, by 0.1 at most
        ...     def start(self, key, centre):
        ...         return centre
        ...     def step(self, centre, point, gradient, size):
        ...         return self.project(centre, point + size * jnp.sign(gradient))
        ...     def project(self, centre, point):
        ...         return jnp.clip(point, centre, jnp.minimum(centre + 0.1, 1.0))
        ...     def sample(self, key, centre):
        ...         draw = lambda k, x: x + 0.1 * jax.random.uniform(k, x.shape)
        ...         return self.project(centre, jax.vmap(draw)(key, centre))
        ...     def distance(self, centre, point):
        ...         return abs(point - centre).reshape(len(centre), -1).max(axis=1)
        >>> isinstance(Brighter(), Ball)
        True
    """

    def start(self, key: Key, centre: Any) -> Point:
        """Where an ascent begins."""
        ...

    def step(self, centre: Any, point: Point, gradient: Point, size: Any) -> Point:
        """One step of steepest ascent in the ball's norm, of length ``size``, projected."""
        ...

    def project(self, centre: Any, point: Point) -> Point:
        """The nearest point inside."""
        ...

    def sample(self, key: Key, centre: Any) -> Point:
        """A random point inside."""
        ...

    def distance(self, centre: Any, point: Point) -> Any:
        """From the centre in the ball's norm: ``[batch]``, or one number for each scope."""
        ...


_METHODS = ("start", "step", "project", "sample", "distance")


def check_ball(ball: Any, moves: str) -> Any:
    """``ball`` when it has the methods of one.

    Args:
        ball: Anything.
        moves: What shall move in it, ``"inputs"`` or ``"weights"``: balls of ours say which they
            are for, as their points are inputs, or displacements of weights.

    Raises:
        ValueError: Otherwise, with the first method that is missing.
    """
    missing = [name for name in _METHODS if not callable(getattr(ball, name, None))]
    # A class has the methods too, but nobody to call them on.
    if missing or isinstance(ball, type):
        what = f"the class {ball.__name__}" if isinstance(ball, type) else f"{ball!r}"
        why = "an object of it" if isinstance(ball, type) else f"something with {missing[0]}(...)"
        raise ValueError(f"ball is {what}, but {why} was expected: see awp_jax.balls.Ball.")
    own = getattr(ball, "moves", moves)
    if own != moves:
        fitting = "InputBall(norm, epsilon)" if moves == "inputs" else "WeightBall(gamma)"
        raise ValueError(
            f"ball is a {type(ball).__name__}, in which {own} move, but {moves} shall move: give "
            f"{fitting}, or a ball of your own."
        )
    return ball


def check_step_size(ball: Any, step_size: Radius, what: str) -> None:
    """Raises ``ValueError`` where a step has no size: none was given, and the ball has no radius.

    Args:
        ball: Any ball.
        step_size: What was given, or ``None``.
        what: To give, for the message: ``"step_size to PGD"``.
    """
    if step_size is None and getattr(ball, "radius", None) is None:
        raise ValueError(
            f"{type(ball).__name__} has no radius to derive the size of a step from: give {what}."
        )


def shrunk(ball: Any, factor: Any) -> Any:
    """The ball with ``factor`` times its radius."""
    return dataclasses.replace(ball, radius=scaled(ball.radius, factor))


def scaled(radius: Radius, factor: Any) -> Any:
    """A radius times a factor: a number, an array, or a pytree of them."""
    return jax.tree.map(lambda r: r * factor, radius)
