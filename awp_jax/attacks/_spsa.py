"""SPSA: gradients estimated from function values only (Uesato et al., ICML 2018)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.ascent import loop
from awp_jax.attacks._goal import Goal, Loss, Success
from awp_jax.attacks._result import choose
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.balls._norms import is_float
from awp_jax.pytrees import pytree_dataclass
from awp_jax.random import fold_keys
from awp_jax.typing import Inputs, Key, Labels, Radius

# Adam's own defaults (Kingma and Ba 2015), which the paper keeps.
_DECAY, _SQUARE_DECAY, _FLOOR = 0.9, 0.999, 1e-8


class SPSAState(NamedTuple):
    """Everything SPSA remembers; each leaf has the batch as its first axis."""

    keys: Key
    images: Inputs
    labels: Labels
    point: Inputs
    mean: Any
    square: Any
    found: Any
    success: jax.Array
    first: jax.Array


@pytree_dataclass("ball", "loss", "success")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SPSA(SteppedAttack):
    """Simultaneous perturbation stochastic approximation on the margin, with Adam.

    The gradient is the mean of ``(f(x + delta v) - f(x - delta v)) / (2 delta) v`` over random sign
    images ``v``; nothing is differentiated, so masked gradients do not mislead it. Costs
    ``samples`` forward passes per step, and one to look.

    Attributes:
        epsilon, norm, ball, restarts, unroll: As in ``SteppedAttack``.
        loss: As in ``PGD``; ``"margin"``, the paper.
        success, targeted: As in ``PGD``.
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

    steps: int = dataclasses.field(default=100, kw_only=False)
    loss: Loss = "margin"
    success: Success | None = None
    targeted: bool = False
    samples: int = 256
    delta: float = 0.001
    learning_rate: float = 0.01
    samples_per_pass: int = 32

    segment: ClassVar[int] = 10

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        _ = self.goal  # which checks the loss
        checks.positive_integer(self.samples, "samples", minimum=2)
        checks.positive_integer(self.samples_per_pass, "samples_per_pass", minimum=2)
        if self.samples % 2 or self.samples_per_pass % 2:
            raise ValueError("samples and samples_per_pass must be even: they come in pairs.")
        if not (self.delta > 0 and self.learning_rate > 0):
            raise ValueError("delta and learning_rate must be above 0.")

    @property
    def goal(self) -> Goal:
        """What the attack wants."""
        return Goal(self.loss, self.success, self.targeted)

    def begin(
        self,
        function: Callable[..., Any],
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
        restart: jax.Array,
    ) -> SPSAState:
        """The clean image; a random start for restarts."""
        del rank
        # Both are computed: `restart` is traced, and one compilation serves all runs.
        point = jax.tree.map(
            lambda drawn, clean: jnp.where(restart > 0, drawn, clean),
            self.ball.sample(keys, images),
            images,
        )
        return SPSAState(
            keys=keys,
            images=images,
            labels=labels,
            point=point,
            mean=jax.tree.map(jnp.zeros_like, images),
            square=jax.tree.map(jnp.zeros_like, images),
            found=point,
            success=self.goal.succeeded(function(point), labels),
            first=jnp.zeros(keys.shape, jnp.int32),
        )

    def gradient(
        self, function: Callable[..., Any], keys: Key, point: Inputs, labels: Labels
    ) -> Any:
        """The estimate, like ``point``."""
        # The last pass is a whole one too, and the mean goes over all that is drawn: with samples
        # that do not divide, a few more than asked for.
        pairs_at_once = min(self.samples_per_pass, self.samples) // 2
        passes = -(-self.samples // (2 * pairs_at_once))
        # All examples of the first direction, then of the next: the order of the reshape below.
        many_labels = jax.tree.map(lambda leaf: _repeated(leaf, pairs_at_once), labels)

        def losses(points: Any) -> jax.Array:
            return self.goal.ascended(function(points), many_labels)

        def add(number: jax.Array, total: Any) -> Any:
            # [directions, batch]: those of an example come from its own key, whatever its batch.
            noise_keys = jax.vmap(lambda k: jax.random.split(k, pairs_at_once), out_axes=1)(
                fold_keys(keys, number)
            )
            noise = _signs(noise_keys, point)

            def shifted(sign: float) -> Any:
                return jax.tree.map(
                    lambda p, n: (
                        (p[None] + sign * self.delta * n).reshape(-1, *p.shape[1:])
                        if is_float(p)
                        else _repeated(p, pairs_at_once)
                    ),
                    point,
                    noise,
                )

            # A directional derivative for each draw; times the signs, which are their own
            # reciprocals, it estimates the gradient.
            slope = (losses(shifted(1.0)) - losses(shifted(-1.0))) / (2 * self.delta)
            slope = slope.reshape(pairs_at_once, -1)
            return jax.tree.map(
                lambda t, n: (
                    t + jnp.einsum("sb,sb...->b...", slope.astype(n.dtype), n) if is_float(t) else t
                ),
                total,
                noise,
            )

        # One pass after the other: memory is that of `samples_per_pass`, not of all samples.
        total = loop(add, jax.tree.map(jnp.zeros_like, point), passes)
        return jax.tree.map(lambda t: t / (passes * pairs_at_once) if is_float(t) else t, total)

    def step(self, function: Callable[..., Any], index: jax.Array, state: SPSAState) -> SPSAState:
        """One Adam step on the loss, then the projection."""
        s = state
        gradient = self.gradient(function, fold_keys(s.keys, index + 1), s.point, s.labels)
        mean = _decayed(_DECAY, s.mean, gradient)
        square = _decayed(_SQUARE_DECAY, s.square, jax.tree.map(jnp.square, gradient))

        def moved(point: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
            if not is_float(point):
                return point
            count = (index + 1).astype(point.dtype)
            # Both means start at zero (Adam's correction of their bias).
            unbiased_mean = mean / (1 - _DECAY**count)
            unbiased_square = square / (1 - _SQUARE_DECAY**count)
            move = unbiased_mean / (jnp.sqrt(unbiased_square) + _FLOOR)
            return point + self.learning_rate * move

        point = self.ball.project(s.images, jax.tree.map(moved, s.point, mean, square))
        # A pass of its own: those of the estimate look at points around it only.
        wrong = self.goal.succeeded(function(point), s.labels)
        return s._replace(
            point=point,
            mean=mean,
            square=square,
            found=choose(wrong, point, s.found),
            first=jnp.where(wrong & ~s.success, index.astype(jnp.int32) + 1, s.first),
            success=s.success | wrong,
        )

    def candidate(self, state: SPSAState) -> Any:
        """The latest misclassified iterate, else the last."""
        return choose(state.success, state.found, state.point)


def _repeated(leaf: jax.Array, times: int) -> jax.Array:
    return jnp.tile(leaf, (times,) + (1,) * (leaf.ndim - 1))


def _decayed(decay: float, average: Any, new: Any) -> Any:
    return jax.tree.map(
        lambda a, n: decay * a + (1 - decay) * n if is_float(a) else a, average, new
    )


def _signs(keys: Key, point: Inputs) -> Any:
    """Random signs ``[directions, batch, ...]`` like the inputs, from keys of as many."""
    leaves, structure = jax.tree.flatten(point)

    def draw(leaf: jax.Array, number: int) -> jax.Array:
        if not is_float(leaf):
            return leaf

        def one(key: Key) -> jax.Array:
            # A pytree of one array draws what the array alone would.
            key = key if len(leaves) == 1 else jax.random.fold_in(key, number)
            return jax.random.rademacher(key, leaf.shape[1:])

        return jax.vmap(jax.vmap(one))(keys).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [draw(leaf, i) for i, leaf in enumerate(leaves)])
