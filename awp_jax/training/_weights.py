"""How weights are perturbed in a training step: one function per method."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from awp_jax import checks, mapped
from awp_jax.balls._protocol import check_step_size
from awp_jax.typing import Displacement, Key, Params, Radius
from awp_jax.weights import (
    adversarial_displacement,
    loss_range_gradient,
    perturb,
    random_displacement,
    robust_displacement,
)
from awp_jax.weights._displacement import check_gradient, default_step, weight_ball

# The released default for AT (csdongxian/AWP), which is what is trained by default; for TRADES and
# MART it is 0.005, as in Table 2 of the paper and as `awp_jax.weights.awp` has it.
GAMMA = 0.01


class Ascent(NamedTuple):
    """What a method may look at.

    Attributes:
        params: Weights w.
        displacement: v of the alternation before; ``None`` in the first.
        losses_fn: ``params -> (losses [batch], cross-entropies [batch])`` on the attacked images; a
            ``jax.tree_util.Partial``.
        shared: Of the last backward pass of the attack, the gradient in the weights, or ``None``.
        key: Of the step.
        unroll: See ``awp_jax.ascent.loop``.
        axis_name: The mapped axis over which the batch is split, or ``None``.
        over_parts: ``over_parts(gradient_fn)`` is the mean of ``gradient_fn(losses_fn)`` over the
            parts of the batch, each with a ``losses_fn`` of its own, in the memory of a part.
            ``losses_fn`` above is of the whole batch: there a batch in parts costs one more forward
            pass, which takes the place of what a backward pass would keep.
        loss_scale: By which losses are multiplied while they are differentiated, or ``None``.
    """

    params: Params
    displacement: Displacement
    losses_fn: Callable[..., Any]
    shared: Any
    key: Key
    unroll: bool | None
    axis_name: str | None = None
    over_parts: Callable[..., Any] | None = None
    loss_scale: Any = None


@dataclasses.dataclass(frozen=True)
class WeightPerturbation:
    """How weights are perturbed in training.

    Attributes:
        method: ``"none"``, ``"awp"``, ``"rwp"`` (robust weight perturbation) or ``"random"``; or a
            function ``(ascent, ball) -> displacement`` of your own, which may look at all that an
            ``awp_jax.training.Ascent`` holds, and returns a pytree like the weights.
        gamma: Short for ``ball=WeightBall(gamma)``, for RWP with scope ``"global"``: relative
            radius, without unit (0.01, as released for AT; 0.005 for TRADES and MART).
        ball: What v moves in, any ball of weights with a radius.
        steps: K2, ascent steps per alternation; ``None`` for the method's own: 10 for RWP, else 1.
        alternations: A of AWP; each attacks the images at w + v, then ascends; eta2 is the radius /
            (A * K2).
        c_min: Of RWP, in nats: only examples of at most this cross-entropy are ascended.
        loss_range: Of AWP: ``(p, q)`` ascends only examples with ``p <= cross-entropy < q`` (LSC;
            RWP, IJCAI 2022, figure 1c); empty for all.
        shared_backward: Of AWP: the ascent gradient comes from the backward pass of the last PGD
            step, at the images before that step, in place of a forward and a backward pass of its
            own at the images after it.

    Raises:
        ValueError: For unknown names, values out of range, and options of another method.
    """

    method: Any = "awp"
    gamma: dataclasses.InitVar[Any] = None
    _: dataclasses.KW_ONLY
    ball: Any = None
    steps: Any = None
    alternations: int = 1
    c_min: float = 1.7
    loss_range: tuple[float, ...] = ()
    shared_backward: bool = False

    def __post_init__(self, gamma: Radius) -> None:
        if not callable(self.method):
            checks.choice(self.method, METHODS, "weight perturbation")
        robust = self.method == "rwp"
        scope = "global" if robust else "leaf"
        object.__setattr__(self, "ball", weight_ball(gamma, self.ball, GAMMA, scope=scope))
        check_step_size(self.ball, getattr(self.ball, "reach", None), "it one")
        if self.steps is None:
            object.__setattr__(self, "steps", 10 if robust else 1)
        checks.positive_integer(self.steps, "steps")
        checks.positive_integer(self.alternations, "alternations")
        if not self.c_min == self.c_min:
            raise ValueError("c_min is nan, but a loss in nats, such as 1.7, was expected.")
        limits = tuple(self.loss_range)
        if limits and not (len(limits) == 2 and limits[0] < limits[1]):
            raise ValueError(
                f"loss_range is {self.loss_range!r}, but (p, q) in nats with p < q, or () for all "
                "examples, was expected."
            )
        for name, value, least in (
            ("alternations", self.alternations, 1),
            ("loss_range", limits, ()),
            ("shared_backward", self.shared_backward, False),
        ):
            if value != least and self.method not in ("none", "awp"):
                raise ValueError(
                    f"{name} is {value!r}, which only weight perturbation 'awp' has, not "
                    f"{self.method!r}."
                )
        if self.shared_backward and (self.steps != 1 or limits):
            raise ValueError(
                "shared_backward takes its one gradient from the attack, so it needs steps 1 and "
                f"no loss_range, not steps {self.steps} and loss_range {limits}."
            )

    def displace(self, ascent: Ascent) -> Any:
        """The displacement v, like the weights; ``None`` for the method ``"none"``."""
        if not callable(self.method):
            return METHODS[self.method](self, ascent)
        v = self.method(ascent, self.ball)
        return check_gradient(v, ascent.params, "the weight perturbation's result")


def _none(settings: WeightPerturbation, ascent: Ascent) -> None:
    return None


def _awp(settings: WeightPerturbation, ascent: Ascent) -> Any:
    # Padding has an infinite cross-entropy: it is left out of this range too, whose end is open.
    low, high = settings.loss_range or (-jnp.inf, jnp.inf)
    ball = settings.ball
    # A * K2: all alternations together reach the radius, and not each by itself.
    taken = settings.alternations * settings.steps
    where = {
        "displacement": ascent.displacement,
        "step_size": default_step(ball, ascent.params, taken, None),
    }
    if settings.shared_backward:
        return perturb(ascent.params, ascent.shared, ball=ball, **where)

    def gradient(params: Params) -> Any:
        scale, axis_name = ascent.loss_scale, ascent.axis_name
        if ascent.over_parts is None:
            return loss_range_gradient(
                ascent.losses_fn, params, low, high, axis_name=axis_name, loss_scale=scale
            )
        # Devices are averaged once, after all parts.
        at = mapped.vary(params, axis_name)
        found = ascent.over_parts(
            lambda losses_fn: loss_range_gradient(losses_fn, at, low, high, loss_scale=scale)
        )
        return mapped.mean(found, axis_name)

    return adversarial_displacement(
        ascent.params,
        gradient,
        ball,
        steps=settings.steps,
        unroll=ascent.unroll,
        **where,
    )


def _rwp(settings: WeightPerturbation, ascent: Ascent) -> Any:
    return robust_displacement(
        ascent.params,
        ascent.losses_fn,
        settings.ball,
        c_min=settings.c_min,
        steps=settings.steps,
        axis_name=ascent.axis_name,
        unroll=ascent.unroll,
        loss_scale=ascent.loss_scale,
    )


def _random(settings: WeightPerturbation, ascent: Ascent) -> Any:
    return random_displacement(ascent.params, ascent.key, settings.ball)


METHODS: dict[str, Callable[[WeightPerturbation, Ascent], Any]] = {
    "none": _none,
    "awp": _awp,
    "rwp": _rwp,
    "random": _random,
}
