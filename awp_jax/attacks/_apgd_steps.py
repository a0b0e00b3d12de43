"""How APGD steps in Linf, L2 and balls of one's own: with momentum, and steps that halve."""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.attacks._result import choose
from awp_jax.balls import InputBall
from awp_jax.balls._input_norms import per_example
from awp_jax.balls._noise import noise_like
from awp_jax.balls._norms import is_float
from awp_jax.balls._protocol import scaled
from awp_jax.pytrees import flatten
from awp_jax.typing import Gradients, Inputs, Key, Labels, Radius


class APGDState(NamedTuple):
    """Everything APGD remembers; each leaf has the batch as its first axis."""

    keys: Key
    images: Inputs
    labels: Labels
    targets: Any
    point: Inputs
    gradient: Gradients
    best: Any
    best_gradient: Any
    best_loss: jax.Array
    found: Any  # the latest misclassified iterate
    success: jax.Array
    first: jax.Array  # number of steps at the first success
    share: jax.Array  # of the first step size
    memory: Any  # what only the rule of the steps knows


class Steps(Protocol):
    """A rule of APGD's steps: where they begin, where they lead, and what becomes of their size."""

    @property
    def passes(self) -> int:
        """How often the model is looked at after the start."""
        ...

    def start(self, keys: Key, images: Inputs) -> Any:
        """The random start."""
        ...

    def memory(self, images: Inputs, point: Inputs, loss: jax.Array) -> Any:
        """What is remembered at the start."""
        ...

    def counts(self, index: Any) -> Any:
        """Whether a misclassification in the pass ``index`` is a success (start: -1)."""
        ...

    def moved(self, index: jax.Array, state: APGDState) -> APGDState:
        """The state with the next point, which is looked at next."""
        ...

    def checked(self, index: jax.Array, state: APGDState, loss: jax.Array) -> APGDState:
        """The state with the next step size, given the losses in the point."""
        ...


class HalvedMemory(NamedTuple):
    """What ``HalvedSteps`` remembers, ``[batch, ...]``."""

    previous: Any  # the point before
    loss: jax.Array  # in the last point that was looked at
    checked_loss: jax.Array  # best loss at the last checkpoint
    rises: jax.Array  # steps since the last checkpoint in which the loss rose
    halved: jax.Array  # whether the last checkpoint halved the step size


@functools.cache
def checkpoints(steps: int) -> tuple[int, ...]:
    """After how many steps APGD may halve its step size: 22, 41, 57, 70, 80, 87, 93, 99 of 100.

    The first window is 22% of the steps, each next one 3% shorter, none shorter than 6%
    (Croce and Hein 2020, section 3.2, as rounded in fra31/auto-attack).

    Args:
        steps: Number of steps, at least 1.

    Returns:
        Increasing step counts, none above ``steps``.
    """
    # At least 1: a window of no steps would never end.
    window, least = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    ends, end = [], window
    while end <= steps:
        ends.append(end)
        window = max(window - max(int(0.03 * steps), 1), least)
        end += window
    return tuple(ends)


def sizes(ball: Any, first: Any, share: jax.Array, images: Inputs) -> Any:
    """The step size of each example.

    Args:
        ball: What the attack moves in.
        first: The first step size, in the forms of a radius.
        share: Of it, ``[batch]``.
        images: The inputs ``[batch, ...]``, or a pytree of them.

    Returns:
        Like ``images``; each leaf broadcasts against that of the inputs.
    """
    values, structure = flatten(first)
    parts = structure.flatten_up_to(images)
    return jax.tree.unflatten(
        structure,
        [
            jax.tree.map(lambda leaf, v=value: _for_examples(v, share, leaf, ball), part)
            for value, part in zip(values, parts, strict=True)
        ],
    )


def _for_examples(value: Any, share: jax.Array, like: jax.Array, ball: Any) -> jax.Array:
    """A radius times the share of each example, with the axes of the inputs."""
    value = jnp.asarray(value, like.dtype if is_float(like) else share.dtype)
    if isinstance(ball, InputBall):
        value = ball.lying(value, like)
    return per_example(share.astype(value.dtype), like) * value


@dataclasses.dataclass(frozen=True)
class HalvedSteps:
    """The rule of Croce and Hein, ICML 2020 (algorithm 1).

    Attributes:
        ball, step_size, steps, rho, momentum: Of the attack.
    """

    ball: Any
    step_size: Radius
    steps: int
    rho: float
    momentum: float

    @property
    def passes(self) -> int:
        """One for each step."""
        return self.steps

    def start(self, keys: Key, images: Inputs) -> Any:
        """On the sphere; in a ball of one's own, where that says."""
        if isinstance(self.ball, InputBall):
            return self.ball.on_sphere(images, noise_like(keys, images, self.ball.norm))
        return self.ball.start(keys, images)

    def memory(self, images: Inputs, point: Inputs, loss: jax.Array) -> HalvedMemory:
        """Nothing rose yet, and the first checkpoint may not halve for want of progress."""
        del images
        return HalvedMemory(
            point, loss, loss, jnp.zeros(loss.shape, jnp.int32), jnp.ones(loss.shape, bool)
        )

    def counts(self, index: Any) -> bool:
        """Every pass does."""
        del index
        return True

    def size(self, share: jax.Array, images: Inputs) -> Any:
        """The step size of each example: at first 2 epsilon."""
        first = scaled(self.ball.radius, 2.0) if self.step_size is None else self.step_size
        return sizes(self.ball, first, share, images)

    def moved(self, index: jax.Array, state: APGDState) -> APGDState:
        """A step of steepest ascent, and from the second on a quarter of the step before."""
        s = state
        stepped = self.ball.step(s.images, s.point, s.gradient, self.size(s.share, s.images))
        # Projected before the momentum is added and again afterwards (algorithm 1); the index is
        # traced, so that one compiled step serves all.
        momentum = jnp.where(index > 0, self.momentum, 1.0)

        def heavy(point: jax.Array, stepped: jax.Array, previous: jax.Array) -> jax.Array:
            if not is_float(point):
                return point
            new = momentum.astype(point.dtype)
            return point + new * (stepped - point) + (1 - new) * (point - previous)

        point = jax.tree.map(heavy, s.point, stepped, s.memory.previous)
        return s._replace(
            point=self.ball.project(s.images, point), memory=s.memory._replace(previous=s.point)
        )

    def checked(self, index: jax.Array, state: APGDState, loss: jax.Array) -> APGDState:
        """Halves step sizes at checkpoints; those examples go on from their best point."""
        s, memory = state, state.memory
        rises = memory.rises + (loss > memory.loss).astype(jnp.int32)
        # NumPy: the schedule is a constant of the compiled step, and the index is looked up in it.
        ends = np.array(checkpoints(self.steps))
        windows = np.diff(ends, prepend=0)
        here = index + 1 == ends
        at_checkpoint, window = here.any(), jnp.sum(jnp.where(here, windows, 0))
        oscillates = rises.astype(loss.dtype) <= self.rho * window.astype(loss.dtype)
        # Not twice in a row: a step size that was just halved has a window to show what it can do.
        stalls = ~memory.halved & (memory.checked_loss >= s.best_loss)
        halve = at_checkpoint & (oscillates | stalls)
        return s._replace(
            # `previous` stays: the next momentum leads from the last point to the best one.
            point=choose(halve, s.best, s.point),
            gradient=choose(halve, s.best_gradient, s.gradient),
            share=jnp.where(halve, s.share / 2, s.share),
            memory=memory._replace(
                loss=loss,
                checked_loss=jnp.where(at_checkpoint, s.best_loss, memory.checked_loss),
                rises=jnp.where(at_checkpoint, 0, rises),
                halved=jnp.where(at_checkpoint, halve, memory.halved),
            ),
        )
