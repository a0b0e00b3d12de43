"""Named weight perturbations: what ``perturbed`` is called with one ball or another."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from awp_jax import checks
from awp_jax.balls import AdaptiveWeightBall, WeightBall, everything
from awp_jax.pytrees import is_function
from awp_jax.random import check_key
from awp_jax.typing import GradFn, Key, Params, Radius
from awp_jax.weights._displacement import random_displacement, weight_ball
from awp_jax.weights._robust import C_MIN, STEPS, check_c_min, robust_displacement
from awp_jax.weights._transform import around, perturbed, state_of
from awp_jax.words import known_names

GAMMA_OF_RWP = 1e-2  # section 5.1 of the paper, for AT


class RandomWeightPerturbationState(NamedTuple):
    """State of ``random_weight_perturbation``: as ``PerturbedState``, and the key it folds."""

    inner: Any
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    aux: Any
    finite: jax.Array
    key: Key


def _scheduled(gamma: Radius, make: Callable[[Any], Any]) -> Any:
    """A ball, or for a schedule of its radius a function from the count of updates to one."""
    if is_function(gamma):
        return lambda count: make(gamma(count))
    return make(gamma)


@known_names
def awp(
    inner: optax.GradientTransformation,
    gamma: Radius = None,
    *,
    ball: Any = None,
    steps: int = 1,
    aux: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adversarial weight perturbation around any optimiser (AWP, NeurIPS 2020, eqs. 10, 11, 15).

    ``perturbed(inner, WeightBall(gamma))``: each kernel moves by gamma times its norm. How to nest
    it, what its state says and what ``update`` takes: see ``perturbed``.

    Args:
        inner: Any optax optimiser.
        gamma: Relative radius, without unit (paper: 0.005, the default, or 0.01), or a schedule
            ``count -> gamma``. With ``optax.inject_hyperparams(awp, static_args=("steps",
            "ball"))`` it can be changed from outside.
        ball: In place of gamma, for other norms, masks, or a radius for each layer; or a function
            ``count -> ball``.
        steps: K2, the number of ascent steps, each of gamma / steps.
        aux: As in ``perturbed``.

    Returns:
        A transformation with ``update(grads, state, params, grad_fn=...)``.

    Raises:
        ValueError: As ``perturbed``; for gamma and ball together.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from awp_jax.weights import awp
        >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
        >>> optimizer = awp(optax.sgd(0.1), gamma=0.01)
        >>> grad_fn = jax.grad(lambda p: jnp.mean(p["kernel"] ** 2))
        >>> updates, state = optimizer.update(
        ...     grad_fn(params), optimizer.init(params), params, grad_fn=grad_fn)
        >>> [round(float(u), 3) for u in updates["kernel"][:, 0]]  # -0.1 * 1.01 * w
        [-0.101, -0.202]
    """
    return perturbed(inner, _ball_of(gamma, ball), steps=steps, aux=aux)


def _ball_of(gamma: Radius, ball: Any, **settings: Any) -> Any:
    # Both together go on to `weight_ball`, which refuses them.
    if ball is not None and gamma is None:
        return ball
    return _scheduled(gamma, lambda g: weight_ball(g, ball, **settings))


@known_names
def sam(
    inner: optax.GradientTransformation,
    rho: Radius = 0.05,
    *,
    mask: Any = everything,
    aux: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimisation (Foret et al., ICLR 2021): ``v = rho * g / ||g||``.

    ``perturbed(inner, WeightBall(radius=rho, scope="global", mask=everything))``. As
    ``optax.contrib.sam``, but with BatchNorm statistics through ``aux``, zero for a zero gradient
    in place of NaN, and one update for each call.

    Args:
        inner: Any optax optimiser.
        rho: Absolute radius in the units of the weights (0.05, the paper), or a schedule.
        mask: What is perturbed, as in ``WeightBall``.
        aux: As in ``perturbed``.

    Returns:
        A transformation with ``update(grads, state, params, grad_fn=...)``, see ``perturbed``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from awp_jax.weights import sam
        >>> optimizer = sam(optax.sgd(0.1), rho=0.5)
        >>> params, grad_fn = jnp.array([3.0, 4.0]), jax.grad(lambda w: (w**2).sum() / 2)
        >>> updates, state = optimizer.update(
        ...     grad_fn(params), optimizer.init(params), params, grad_fn=grad_fn)
        >>> [round(float(u), 3) for u in updates]  # -0.1 * (1 + 0.5 / 5) * w
        [-0.33, -0.44]
    """
    ball = _scheduled(rho, lambda r: WeightBall(radius=r, scope="global", mask=mask))
    return perturbed(inner, ball, aux=aux)


@known_names
def asam(
    inner: optax.GradientTransformation,
    rho: Radius = 0.5,
    *,
    eta: Any = 0.01,
    mask: Any = everything,
    aux: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive SAM (Kwon et al., ICML 2021): ``v = rho * T^2 g / ||T g||`` with ``T = |w| + eta``.

    ``perturbed(inner, AdaptiveWeightBall(radius=rho, eta=eta))``: what it does does not change when
    layers are rescaled without changing the network.

    Args:
        inner: Any optax optimiser.
        rho: Radius, without unit (0.5, the paper for CIFAR-10), or a schedule.
        eta: In the units of the weights (0.01, the authors' code).
        mask: What is perturbed, as in ``WeightBall``.
        aux: As in ``perturbed``.

    Returns:
        A transformation with ``update(grads, state, params, grad_fn=...)``, see ``perturbed``.
    """
    ball = _scheduled(rho, lambda r: AdaptiveWeightBall(radius=r, eta=eta, mask=mask))
    return perturbed(inner, ball, aux=aux)


@known_names
def rwp(
    inner: optax.GradientTransformation,
    gamma: Radius = None,
    *,
    ball: Any = None,
    c_min: Any = C_MIN,
    steps: int = STEPS,
    aux: Any = None,
    unroll: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Robust weight perturbation around any optimiser (RWP, IJCAI 2022, eq. 8, algorithm 1).

    Same shape and same nesting rules as ``perturbed``; ``update`` takes ``losses_fn`` beside
    ``grad_fn``, because only the examples whose loss is at most ``c_min`` are ascended. The
    gradient given to ``update`` is not used and may be ``None``.

    Args:
        inner: Any optax optimiser.
        gamma: Short for ``ball=WeightBall(gamma, scope="global")``: relative radius, without unit
            (paper: 0.01, the default, for AT, 0.005 for TRADES), or a schedule.
        ball: In place of gamma.
        c_min: In nats, see ``robust_displacement``.
        steps: K2 (paper: 10).
        aux: As in ``perturbed``.
        unroll: As in ``robust_displacement``.

    Returns:
        A transformation with ``update(grads, state, params, grad_fn=..., losses_fn=...)``, where
        ``losses_fn(params)`` returns ``losses [batch]`` or ``(losses, criterion)``.

    Raises:
        ValueError: As ``perturbed``, and when ``losses_fn`` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from awp_jax.weights import rwp
        >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
        >>> optimizer = rwp(optax.sgd(0.1), gamma=0.1, c_min=1.7)
        >>> losses_fn = lambda p: p["kernel"][:, 0] ** 2
        >>> grad_fn = jax.grad(lambda p: losses_fn(p).mean())
        >>> updates, state = optimizer.update(
        ...     None, optimizer.init(params), params, grad_fn=grad_fn, losses_fn=losses_fn)
        >>> [round(float(u), 3) for u in updates["kernel"][:, 0]]  # v is on the first weight only
        [-0.122, -0.2]
    """
    checks.positive_integer(steps, "steps")
    c_min = check_c_min(c_min)

    def displace(
        params: Params, updates: Any, grad_fn: GradFn, ball_now: Any, state: Any, extra_args: Any
    ) -> Any:
        # Not the mean gradient that was handed in: which examples count is seen in their losses.
        del updates, grad_fn, state
        losses_fn = extra_args.get("losses_fn")
        if losses_fn is None:
            raise ValueError(
                "losses_fn is missing: call update(grads, state, params, grad_fn=..., "
                "losses_fn=...), where losses_fn(params) returns one loss per example."
            )
        return robust_displacement(
            params, losses_fn, ball_now, c_min=c_min, steps=steps, unroll=unroll
        )

    ball = _ball_of(gamma, ball, default=GAMMA_OF_RWP, scope="global")
    return around(inner, ball, displace, state_of(aux), aux)


@known_names
def random_weight_perturbation(
    inner: optax.GradientTransformation,
    gamma: Radius = None,
    key: Key | None = None,
    *,
    ball: Any = None,
    aux: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Random weight perturbation around any optimiser: Gaussian on the sphere of radius gamma.

    The comparison of AWP, NeurIPS 2020, section 5.3 (named RWP there). Same shape, same nesting
    rules as ``perturbed``; the gradient given to ``update`` is not used and may be ``None``.

    Args:
        inner: Any optax optimiser.
        gamma: Short for ``ball=WeightBall(gamma)``: relative radius, without unit (0.005), or a
            schedule.
        key: One typed key, folded with the count of updates.
        ball: In place of gamma: what v is drawn from.
        aux: As in ``perturbed``.

    Returns:
        A transformation with ``update(grads, state, params, grad_fn=...)``.
    """
    check_key(key)

    def displace(
        params: Params, updates: Any, grad_fn: GradFn, ball_now: Any, state: Any, extra_args: Any
    ) -> Any:
        del updates, grad_fn, extra_args
        # The key stays and the count is folded in: a restored state draws as an unbroken run does.
        return random_displacement(params, jax.random.fold_in(state.key, state.count), ball_now)

    def make_state(inner_state: Any) -> RandomWeightPerturbationState:
        zero = jnp.zeros([], jnp.int32)
        return RandomWeightPerturbationState(
            inner_state, zero, aux, jnp.bool_(True), cast(Key, key)
        )

    return around(inner, _ball_of(gamma, ball), displace, make_state, aux)
