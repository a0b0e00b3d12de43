"""SPSA: gradients estimated from function values only (Uesato et al., ICML 2018)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.ascent import loop
from awp_jax.attacks._losses import margin
from awp_jax.attacks._stepped import SteppedAttack, choose
from awp_jax.random import fold_keys

# Adam's own defaults (Kingma and Ba 2015), which the paper keeps.
_DECAY, _SQUARE_DECAY, _FLOOR = 0.9, 0.999, 1e-8


class SPSAState(NamedTuple):
    """Everything SPSA remembers; each leaf has the batch as its first axis."""

    keys: jax.Array
    images: jax.Array
    labels: jax.Array
    point: jax.Array
    mean: jax.Array
    square: jax.Array
    found: jax.Array
    success: jax.Array
    first: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SPSA(SteppedAttack):
    """Simultaneous perturbation stochastic approximation on the margin, with Adam.

    The gradient is the mean of ``(f(x + delta v) - f(x - delta v)) / (2 delta) v`` over random sign
    images ``v``; nothing is differentiated, so masked gradients do not mislead it. Costs
    ``samples`` forward passes per step, and one to look.

    Attributes:
        epsilon, norm, restarts, unroll: As in ``SteppedAttack``.
        steps: 100 (the paper).
        samples: Function values per step, two per random direction (256, the paper's first
            setting); even.
        delta: Length of the differences in pixel units (0.001).
        learning_rate: Of Adam, in pixel units (0.01, the paper).
        samples_per_pass: How many of them one forward pass holds, for each example.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import SPSA
        >>> logits_fn = lambda x: jnp.round(255 * x.mean((1, 2))) * jnp.array([[1.0, 0.0]])
        >>> images = jnp.zeros((1, 4, 4, 1))
        >>> attack = SPSA("8/255", steps=5, samples=32, delta=0.01)
        >>> attack(logits_fn, jax.random.key(0), images, jnp.array([1])).success
        Array([ True], dtype=bool)
    """

    steps: int = 100
    samples: int = 256
    delta: float = 0.001
    learning_rate: float = 0.01
    samples_per_pass: int = 32

    segment: ClassVar[int] = 10

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.samples, "samples", minimum=2)
        checks.positive_integer(self.samples_per_pass, "samples_per_pass", minimum=2)
        if self.samples % 2 or self.samples_per_pass % 2:
            raise ValueError("samples and samples_per_pass must be even: they come in pairs.")
        if not (self.delta > 0 and self.learning_rate > 0):
            raise ValueError("delta and learning_rate must be above 0.")

    def begin(self, function, keys, images, labels, rank, restart) -> SPSAState:
        """The clean image; a random start for restarts."""
        del rank
        point = jnp.where(restart > 0, self.ball.sample(keys, images), images)
        return SPSAState(
            keys=keys,
            images=images,
            labels=labels,
            point=point,
            mean=jnp.zeros_like(images),
            square=jnp.zeros_like(images),
            found=point,
            success=function(point).argmax(axis=1) != labels,
            first=jnp.zeros(labels.shape, jnp.int32),
        )

    def gradient(self, function, keys, point, labels) -> jax.Array:
        """The estimate, ``[batch, ...]``."""
        batch, pairs_at_once = labels.shape[0], min(self.samples_per_pass, self.samples) // 2
        passes = -(-self.samples // (2 * pairs_at_once))
        many_labels = jnp.tile(labels, pairs_at_once)

        def add(number, total):
            noise_keys = jax.vmap(lambda k: jax.random.split(k, pairs_at_once), out_axes=1)(
                fold_keys(keys, number)
            )
            draw = jax.vmap(jax.vmap(lambda k: jax.random.rademacher(k, point.shape[1:])))
            noise = draw(noise_keys).astype(point.dtype)
            shape = (pairs_at_once * batch, *point.shape[1:])
            above = (point[None] + self.delta * noise).reshape(shape)
            below = (point[None] - self.delta * noise).reshape(shape)
            slope = margin(function(above), many_labels) - margin(function(below), many_labels)
            slope = slope.reshape(pairs_at_once, batch) / (2 * self.delta)
            return total + jnp.einsum("sb,sb...->b...", slope.astype(point.dtype), noise)

        total = loop(add, jnp.zeros_like(point), passes)
        return total / (passes * pairs_at_once)

    def step(self, function, index, state: SPSAState) -> SPSAState:
        """One Adam step on the margin, then the projection."""
        s = state
        gradient = self.gradient(function, fold_keys(s.keys, index + 1), s.point, s.labels)
        mean = _DECAY * s.mean + (1 - _DECAY) * gradient
        square = _SQUARE_DECAY * s.square + (1 - _SQUARE_DECAY) * gradient**2
        count = (index + 1).astype(s.images.dtype)
        unbiased_mean = mean / (1 - _DECAY**count)
        unbiased_square = square / (1 - _SQUARE_DECAY**count)
        move = unbiased_mean / (jnp.sqrt(unbiased_square) + _FLOOR)
        point = self.ball.project(s.images, s.point + self.learning_rate * move)
        wrong = function(point).argmax(axis=1) != s.labels
        return s._replace(
            point=point,
            mean=mean,
            square=square,
            found=choose(wrong, point, s.found),
            first=jnp.where(wrong & ~s.success, index.astype(jnp.int32) + 1, s.first),
            success=s.success | wrong,
        )

    def candidate(self, state: SPSAState) -> jax.Array:
        """The latest misclassified iterate, else the last."""
        return choose(state.success, state.found, state.point)
