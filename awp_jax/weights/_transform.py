"""Weight perturbation as optax gradient transformations around any optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from awp_jax import checks
from awp_jax.balls import AdaptiveWeightBall, Ball, WeightBall, everything
from awp_jax.balls._protocol import check_ball, check_step_size
from awp_jax.pytrees import is_function
from awp_jax.random import check_key
from awp_jax.typing import GradFn, Key, Params, PyTree, Radius
from awp_jax.weights._displacement import (
    adversarial_displacement,
    all_finite,
    check_gradient,
    moved,
    random_displacement,
    weight_ball,
)
from awp_jax.weights._robust import C_MIN, STEPS, check_c_min, robust_displacement


class PerturbedState(NamedTuple):
    """State of ``perturbed`` and all that is made by it.

    Attributes:
        inner: State of the wrapped optimiser.
        count: Number of updates so far.  # shape=(), dtype=int32
        aux: What ``grad_fn`` returned beside the gradient in w + v, or ``None``.
        finite: Whether the gradients of the last update were finite. Where that at w was not, v was
            zero; where that at w + v was not, weights and inner state stayed.  # shape=()
    """

    inner: Any
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    aux: Any
    finite: jax.Array


class RandomWeightPerturbationState(NamedTuple):
    """State of ``random_weight_perturbation``: as ``PerturbedState``, and the key it folds."""

    inner: Any
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    aux: Any
    finite: jax.Array
    key: Key


GAMMA_OF_RWP = 1e-2  # section 5.1 of the paper, for AT

# (params, gradient at w or None, grad_fn, ball, state, extra arguments) -> displacement
Displace = Callable[[Any, Any, Callable[..., Any], Any, Any, dict[str, Any]], Any]


def _reject_masked(params: Params) -> None:
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            "A weight perturbation was put inside optax.masked or optax.multi_transform, where "
            "grad_fn would get incomplete parameters: put those inside it, "
            "awp(optax.masked(...)), and use a mask of its ball."
        )


def _check_ball_or_schedule(ball: Any) -> None:
    if isinstance(ball, Ball) or not callable(ball):
        check_ball(ball)
        return
    try:
        # Balls are no arrays, so only what is made inside is looked at.
        jax.eval_shape(lambda count: check_ball(ball(count)) and 0, jnp.int32(0))
    except ValueError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        raise ValueError(
            f"A function count -> ball was expected, but the one given fails for a count: {first}. "
            "For a radius by path give ball=WeightBall(gamma=function)."
        ) from None


def _scheduled(gamma: Radius, make: Callable[[Any], Any]) -> Any:
    """A ball, or for a schedule of its radius a function from the count of updates to one."""
    if is_function(gamma):
        return lambda count: make(gamma(count))
    return make(gamma)


def _only_floats(tree: PyTree) -> Any:
    """What the inner optimiser sees: zeros in place of integers, which it must not average."""

    def seen(leaf: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf
        return jnp.zeros(jnp.shape(leaf), jnp.float32)

    return jax.tree.map(seen, tree)


def _around(
    inner: optax.GradientTransformation,
    ball: Any,
    displace: Displace,
    make_state: Callable[[Any], Any],
    aux: Any,
) -> optax.GradientTransformationExtraArgs:
    """The shape that all weight perturbations share; ``displace`` is what differs."""
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        raise ValueError(
            f"inner is {inner!r}, but an optax optimiser was expected: awp(optax.sgd(0.1), "
            "gamma=0.005)."
        )
    wrapped = optax.with_extra_args_support(inner)
    has_aux = aux is not None
    _check_ball_or_schedule(ball)
    scheduled = not isinstance(ball, Ball)

    def init(params: Params) -> Any:
        _reject_masked(params)
        first = ball(jnp.int32(0)) if scheduled else ball
        if isinstance(first, WeightBall):
            first.mask_of(params)  # a misspelt layer is refused here, not trained without
        return make_state(wrapped.init(_only_floats(params)))

    def update(
        updates: Any, state: Any, params: Params = None, *, grad_fn: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if grad_fn is None and is_function(updates):
            updates, grad_fn = None, updates
        if params is None or grad_fn is None:
            missing = "params" if params is None else "grad_fn"
            raise ValueError(
                f"{missing} is missing: call update(grads, state, params, grad_fn=...), where "
                "grad_fn(params) returns the gradient on the same batch. Inside a wrapper that "
                "takes no extra arguments (optax.lookahead) give grad_fn in place of grads; for "
                "flax's TrainState.apply_gradients and nnx.Optimizer see docs/weights.md, or use "
                "awp_jax.weights.value_and_grad with the optimiser as it is."
            )
        _reject_masked(params)
        if not callable(grad_fn):
            raise ValueError(
                f"grad_fn is a {type(grad_fn).__name__}, but a function was expected: "
                "grad_fn(params) returns the gradient on the same batch."
            )

        def gradient_at(p: Any) -> tuple[Any, Any]:
            out = grad_fn(p)
            if has_aux and not (isinstance(out, tuple) and len(out) == 2):
                raise ValueError(
                    f"grad_fn returned a {type(out).__name__}, but with aux a pair (gradient, aux) "
                    "was expected, as from jax.grad(..., has_aux=True)."
                )
            gradient, new_aux = out if has_aux else (out, None)
            return check_gradient(gradient, params, "grad_fn's result"), new_aux

        ball_now = ball(state.count) if scheduled else ball
        v = displace(params, updates, lambda p: gradient_at(p)[0], ball_now, state, extra_args)
        perturbed_params = moved(params, v)
        grads, new_aux = gradient_at(perturbed_params)
        # The inner optimiser works at w + v, decay included (eq. 11). Its update is a difference,
        # so applying it to w is the step back from w + v.
        step, inner_state = wrapped.update(
            _only_floats(grads), state.inner, _only_floats(perturbed_params), **extra_args
        )
        known = all_finite(grads)
        finite = known if updates is None else known & all_finite(updates)
        step = jax.tree.map(lambda u: jnp.where(known, u, jnp.zeros_like(u)), step)
        inner_state = jax.tree.map(
            lambda new, old: jnp.where(known, new, old), inner_state, state.inner
        )
        return step, state._replace(
            inner=inner_state,
            count=optax.safe_increment(state.count),
            aux=new_aux if has_aux else state.aux,
            finite=finite,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def perturbed(
    inner: optax.GradientTransformation,
    ball: Any,
    *,
    steps: int = 1,
    step_size: Radius = None,
    aux: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser at adversarially perturbed weights: what ``awp``, ``sam`` and ``asam`` are.

    ``update`` moves the weights in the ball along the gradient it is given, asks ``grad_fn`` for
    the gradient there and lets ``inner`` act at w + v, weight decay included; the weights come back
    to w before the step (AWP, NeurIPS 2020, eqs. 10, 11, 15).

    It must be the outermost wrapper: ``perturbed(optax.chain(clip, sgd), ball)``,
    ``perturbed(optax.masked(...), ball)``. ``chain(clip, perturbed(sgd, ball))`` runs, but clips
    only the gradient of the ascent; ``chain(perturbed(identity(), ball),
    add_decayed_weights(...), sgd)`` decays at w. ``optax.MultiSteps`` around it is wrong and
    nothing tells: its mean gradient gives v, but the step follows ``grad_fn`` on the last
    micro-batch only; for a large batch in parts use ``awp_jax.weights.accumulated`` as
    ``grad_fn``. ``MultiSteps`` inside perturbs for every micro-batch. A wrapper that takes no extra
    arguments (``optax.lookahead``) is called with ``grad_fn`` in place of the gradient.

    Args:
        inner: Any optax optimiser.
        ball: What v moves in, such as ``awp_jax.balls.WeightBall``; or a function from the count of
            updates to one, for a radius by schedule.
        steps: K2, the number of ascent steps.
        step_size: eta2, in the units of the ball's radius; ``None`` for the radius over ``steps``.
        aux: ``None``, or a first value like what ``grad_fn`` returns as second output (for instance
            BatchNorm statistics): ``state.aux`` then holds what came from w + v.

    Returns:
        A transformation whose ``update(grads, state, params, grad_fn=...)`` takes the gradient at w
        (or ``None`` to have it computed) and ``grad_fn(params) -> gradient``, or ``-> (gradient,
        aux)``. Extra arguments go to ``inner``; unknown ones are ignored. Integers and ``None`` in
        the parameters pass through. ``state.finite`` says whether the gradients were finite: v is
        zero where that at w is not, and weights and inner state stay where that at w + v is not.

    Raises:
        ValueError: For bad arguments; when ``params`` or ``grad_fn`` is missing, or gradients are
            not like ``params``; inside ``optax.masked`` or ``multi_transform``, where it cannot be
            right.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from awp_jax.balls import WeightBall
        >>> from awp_jax.weights import perturbed
        >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
        >>> optimizer = perturbed(optax.sgd(0.1, momentum=0.9), WeightBall(gamma=0.01))
        >>> state = optimizer.init(params)
        >>> @jax.jit
        ... def step(params, state, x):
        ...     grad_fn = jax.grad(lambda p: jnp.mean((x @ p["kernel"]) ** 2))
        ...     updates, state = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
        ...     return optax.apply_updates(params, updates), state
        >>> params, state = step(params, state, jnp.eye(2))
        >>> [round(float(w), 3) for w in params["kernel"][:, 0]]  # (1 - 0.1 * 1.01) * w
        [0.899, 1.798]
    """
    checks.positive_integer(steps, "steps")
    if isinstance(ball, Ball) and not isinstance(ball, WeightBall):
        check_step_size(ball, step_size, "perturbed")

    def displace(
        params: Params, updates: Any, grad_fn: GradFn, ball_now: Any, state: Any, extra_args: Any
    ) -> Any:
        del state, extra_args
        return adversarial_displacement(
            params, grad_fn, ball_now, steps=steps, step_size=step_size, first_gradient=updates
        )

    return _around(inner, ball, displace, _state(aux), aux)


def _state(aux: Any) -> Callable[[Any], PerturbedState]:
    return lambda inner: PerturbedState(inner, jnp.zeros([], jnp.int32), aux, jnp.bool_(True))


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
    if ball is not None and gamma is None:
        return ball
    return _scheduled(gamma, lambda g: weight_ball(g, ball, **settings))


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
        >>> print(updates.round(2))  # -0.1 * (1 + 0.5 / 5) * w
        [-0.33 -0.44]
    """
    ball = _scheduled(rho, lambda r: WeightBall(radius=r, scope="global", mask=mask))
    return perturbed(inner, ball, aux=aux)


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
    return _around(inner, ball, displace, _state(aux), aux)


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
        return random_displacement(params, jax.random.fold_in(state.key, state.count), ball_now)

    def make_state(inner_state: Any) -> RandomWeightPerturbationState:
        zero = jnp.zeros([], jnp.int32)
        return RandomWeightPerturbationState(
            inner_state, zero, aux, jnp.bool_(True), cast(Key, key)
        )

    return _around(inner, _ball_of(gamma, ball), displace, make_state, aux)
