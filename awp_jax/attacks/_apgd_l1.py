"""How APGD steps in L1: sparsely, and from larger balls into the ball (Croce and Hein, 2021)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.attacks._apgd_steps import APGDState, sizes
from awp_jax.attacks._l1 import sparse_direction
from awp_jax.attacks._result import choose
from awp_jax.balls import InputBall
from awp_jax.balls._noise import noise_like
from awp_jax.balls._norms import is_float
from awp_jax.pytrees import flatten
from awp_jax.typing import Gradients, Inputs, Key, PyTree, Radius

# fra31/auto-attack, autopgd_base.py, from here to the next comment.
FIRST_SHARE = 0.2  # of the entries that the first steps move
RESET_BELOW = 0.95  # of the entries displaced at the last checkpoint
SPARSER = 1.5  # the next steps move this times fewer entries than are displaced
SHRINK = 1.5  # steps, where the displacement became no sparser
LEAST_SHARE = 0.1  # of the first step size
WINDOW = 0.04  # of the steps, between checkpoints
# Croce and Hein, ICML 2021, section 4.4: 30, 30 and 40% of the steps in 3, 2 and 1 epsilon.
LARGER_RADII = (3.0, 2.0, 1.0)
LARGER_SHARE = 0.3
LEAST_STEPS = 5  # with which each of the three balls gets one


class SparseMemory(NamedTuple):
    """What ``SparseSteps`` remembers, ``[batch]``."""

    density: jax.Array  # share of the entries that a step moves
    displaced: jax.Array  # entries that the best point moved at the last checkpoint


def phases(steps: int, larger_radii: bool) -> tuple[tuple[float, int], ...]:
    """The balls of a run, as ``(times the radius, steps)``.

    Example:
        >>> from awp_jax.attacks._apgd_l1 import phases
        >>> phases(100, larger_radii=True)
        ((3.0, 30), (2.0, 30), (1.0, 40))
    """
    if not larger_radii:
        return ((1.0, steps),)
    larger = math.ceil(LARGER_SHARE * steps)
    return tuple(zip(LARGER_RADII, (larger, larger, steps - 2 * larger), strict=True))


class Place(NamedTuple):
    """Where in the schedule a pass is."""

    factor: Any  # of the radius
    begins: Any  # whether the pass looks at the start of a phase, and is no step
    checks: Any  # whether a checkpoint follows
    last: Any  # whether this is the phase in the ball itself


@dataclasses.dataclass(frozen=True)
class SparseSteps:
    """The rule of Croce and Hein, ICML 2021 (section 4), as in fra31/auto-attack.

    A step moves the entries with the largest gradients, all equally, by an L1 length; there is no
    momentum. At checkpoints, a constant number of steps apart, the next steps are made 1.5 times
    sparser than the best displacement is. Where that lost more than 5% of its entries the step size
    is reset to the first and the ascent goes on from the best point, elsewhere the step size is
    divided by 1.5, down to a tenth of the first.

    Of a pytree of inputs with a radius for each, each ball takes a sparse step of its own; how
    sparse, and who goes on from the best point, is decided over all of them.

    Attributes:
        ball: An ``InputBall`` in L1.
        step_size, steps, larger_radii, released_counts: Of the attack.
    """

    ball: InputBall
    step_size: Radius
    steps: int
    larger_radii: bool
    released_counts: bool

    @property
    def passes(self) -> int:
        """One for each step, and one where each later phase begins."""
        return self.steps + len(phases(self.steps, self.larger_radii)) - 1

    def start(self, keys: Key, images: Inputs) -> Any:
        """Standard normal noise, projected."""
        noise, ball = noise_like(keys, images, "l2"), self._ball(self._place(-1).factor)
        point = _each(jnp.add, images, noise)
        if not self.larger_radii:
            return ball.clip(images, self._put(ball, images, point, noise))
        for _ in range(2):  # as released: where the noise is drawn, and where the phase begins
            point = self._put(ball, images, point, _each(jnp.subtract, point, images))
        return ball.clip(images, point)

    def memory(self, images: Inputs, point: Inputs, loss: jax.Array) -> SparseMemory:
        """As if all entries were displaced; with larger radii, what the start displaces."""
        del loss
        if self.larger_radii:
            return self._remembered(images, point)
        every = self._entries(images)
        return SparseMemory(jnp.full_like(every, FIRST_SHARE), every)

    def counts(self, index: Any) -> Any:
        """In the last phase: only there the ball is the attack's."""
        return self._place(index).last

    def moved(self, index: jax.Array, state: APGDState) -> APGDState:
        """A sparse step; where a phase begins, the best point so far in that phase's ball."""
        s, place = state, self._place(index)
        ball = self._ball(place.factor)
        first = ball.radius if self.step_size is None else _times(self.step_size, place.factor)

        way = self._direction(s.images, s.gradient, s.memory.density)
        size = sizes(ball, first, s.share, s.images)
        moved = _each(lambda p, n, w: p + n.astype(p.dtype) * w, s.point, size, way)
        moves = _each(jnp.subtract, moved, s.images)
        displaced = _each(jnp.add, s.images, moves)
        if not self.larger_radii:
            return s._replace(point=self._put(ball, s.images, displaced, moves))
        displaced = choose(place.begins, s.best, displaced)
        moves = choose(place.begins, _each(jnp.subtract, s.best, s.images), moves)
        point = self._put(ball, s.images, displaced, moves)
        point = choose(place.begins, ball.clip(s.images, point), point)
        # What was found in a larger ball is no more than a start.
        fresh = self._remembered(s.images, point)
        return s._replace(
            point=point,
            best_loss=jnp.where(place.begins, -jnp.inf, s.best_loss),
            share=jnp.where(place.begins, 1.0, s.share),
            memory=choose(jnp.broadcast_to(place.begins, s.share.shape), fresh, s.memory),
        )

    def checked(self, index: jax.Array, state: APGDState, loss: jax.Array) -> APGDState:
        """At checkpoints: the next density and step size, and who goes on from the best point."""
        del loss
        s, checks = state, self._place(index).checks
        now = self._remembered(s.images, s.best)
        # Nothing displaced at the last checkpoint is 0 / 0 or infinite: no reset, as released.
        sparser = now.displaced / s.memory.displaced < RESET_BELOW
        shrunk = jnp.clip(s.share / SHRINK, LEAST_SHARE, 1.0)
        share = jnp.where(sparser, 1.0, shrunk).astype(s.share.dtype)
        reset = checks & sparser
        return s._replace(
            point=choose(reset, s.best, s.point),
            gradient=choose(reset, s.best_gradient, s.gradient),
            share=jnp.where(checks, share, s.share),
            memory=choose(jnp.broadcast_to(checks, s.share.shape), now, s.memory),
        )

    def _place(self, index: Any) -> Place:
        """Where in the schedule the pass ``index`` is; the start of the run is -1."""
        factors, steps = zip(*phases(self.steps, self.larger_radii), strict=True)
        begins = np.cumsum([-1, *(n + 1 for n in steps[:-1])])
        phase = jnp.sum(jnp.asarray(index) >= begins) - 1
        taken = index - jnp.asarray(begins)[phase]
        windows = jnp.asarray([max(int(WINDOW * n), 1) for n in steps])
        return Place(
            jnp.asarray(factors, jnp.float32)[phase],
            taken == 0,
            (taken > 0) & (taken % windows[phase] == 0),
            phase == len(steps) - 1,
        )

    def _ball(self, factor: Any) -> InputBall:
        if not self.larger_radii:
            return self.ball
        return dataclasses.replace(self.ball, radius=_times(self.ball.radius, factor))

    def _put(self, ball: InputBall, images: Inputs, displaced: Any, moves: Any) -> Any:
        """``displaced``, which is ``images`` plus ``moves``, projected.

        The released code adds what its projection changes, so an entry that is put back may stay
        off its place by a rounding error, and counts as displaced.
        """
        inside = ball.project(images, displaced)
        if not self.released_counts:
            return inside
        return _each(lambda x, d, i, m: d + ((i - x) - m), images, displaced, inside, moves)

    def _movable(self, images: Inputs) -> Any:
        """1 for what may move, 0 for what the mask holds and for integers."""
        zeros = jax.tree.map(jnp.zeros_like, images)
        ones = jax.tree.map(lambda x: jnp.full_like(x, is_float(x)), images)
        return self.ball.hold(zeros, ones)

    def _entries(self, images: Inputs) -> jax.Array:
        """How many entries of each example may move, ``[batch]``."""
        return _count(self._movable(images))

    def _remembered(self, images: Inputs, point: Inputs) -> SparseMemory:
        """What follows from the entries that ``point`` displaces."""
        moves = jax.tree.map(lambda p, x: p != x, point, images)
        displaced = _count(moves)
        entries = jnp.maximum(self._entries(images), 1.0)
        return SparseMemory(displaced / entries / SPARSER, displaced)

    def _direction(self, images: Inputs, gradient: Gradients, density: jax.Array) -> Any:
        """The sparse direction of each ball: one for all inputs, or one for each radius."""
        movable = self._movable(images)
        held = jax.tree.map(lambda g, m: jnp.where(m == 0, jnp.zeros_like(g), g), gradient, movable)
        _, structure = flatten(self.ball.radius)
        parts = structure.flatten_up_to(held)
        counts = [_count(part) for part in structure.flatten_up_to(movable)]
        return jax.tree.unflatten(
            structure,
            [sparse_direction(part, density, n) for part, n in zip(parts, counts, strict=True)],
        )


def _each(work: Callable[..., Any], first: Any, *rest: Any) -> Any:
    """``work`` on the leaves that can move; the others are those of ``first``."""
    return jax.tree.map(lambda x, *more: work(x, *more) if is_float(x) else x, first, *rest)


def _count(tree: PyTree) -> jax.Array:
    """Entries other than 0 of each example, ``[batch]`` in float32."""
    counts = [
        jnp.sum(leaf.astype(bool).reshape(leaf.shape[0], -1), axis=1, dtype=jnp.float32)
        for leaf in jax.tree.leaves(tree)
    ]
    return sum(counts[1:], counts[0])


def _times(radius: Radius, factor: jax.Array) -> Any:
    """A radius times a factor, in the radius' own precision."""

    def times(value: Any) -> jax.Array:
        value = jnp.asarray(value, jnp.result_type(value, float))
        return value * factor.astype(value.dtype)

    return jax.tree.map(times, radius)
