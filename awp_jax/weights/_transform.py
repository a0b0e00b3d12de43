"""Weight perturbation as optax gradient transformations around any optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from awp_jax import checks
from awp_jax.balls import AdaptiveWeightBall, Ball, WeightBall
from awp_jax.balls._protocol import check_ball, check_step_size
from awp_jax.mapped import everywhere
from awp_jax.pytrees import is_function
from awp_jax.typing import GradFn, Params, PyTree, Radius
from awp_jax.weights._displacement import (
    adversarial_displacement,
    all_finite,
    check_gradient,
    moved,
)


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


# (params, gradient at w or None, grad_fn, ball, state, extra arguments) -> displacement
Displace = Callable[[Any, Any, Callable[..., Any], Any, Any, dict[str, Any]], Any]


def _reject_masked(params: Params) -> None:
    # MaskedNode is a pytree without leaves, and would not be seen otherwise.
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            "A weight perturbation was put inside optax.masked or optax.multi_transform, where "
            "grad_fn would get incomplete parameters: put those inside it, "
            "awp(optax.masked(...)), and use a mask of its ball."
        )


def _check_ball_or_schedule(ball: Any) -> None:
    if isinstance(ball, Ball) or not callable(ball):
        check_ball(ball, "weights")
        return
    try:
        # Balls are no arrays, so only what is made inside is looked at.
        jax.eval_shape(lambda count: check_ball(ball(count), "weights") and 0, jnp.int32(0))
    except ValueError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        raise ValueError(
            f"A function count -> ball was expected, but the one given fails for a count: {first}. "
            "For a radius by path give ball=WeightBall(gamma=function)."
        ) from None


def _only_floats(tree: PyTree) -> Any:
    """What the inner optimiser sees: zeros in place of integers, which it must not average."""

    def seen(leaf: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf
        return jnp.zeros(jnp.shape(leaf), jnp.float32)

    return jax.tree.map(seen, tree)


def around(
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
        if isinstance(first, WeightBall | AdaptiveWeightBall):
            first.mask_of(params)  # a misspelt layer is refused here, not trained without
        return make_state(wrapped.init(_only_floats(params)))

    def update(
        updates: Any, state: Any, params: Params = None, *, grad_fn: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        # From a wrapper that hands on no extra arguments, and has grad_fn in place of the gradient.
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
            try:
                out = grad_fn(p)
            except (TypeError, AttributeError) as error:
                error.add_note(
                    "awp_jax: grad_fn was called with parameters (arrays in the structure of "
                    "params), not with a module: build the module of them inside, or use "
                    "awp_jax.weights.value_and_grad, which takes nnx modules (docs/weights.md)."
                )
                raise
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
        # Only this decides: v is zero where the gradient at w is not finite, and a step is taken.
        split = getattr(ball_now, "axis_name", None)
        known = everywhere(all_finite(grads), split)
        finite = known if updates is None else known & everywhere(all_finite(updates), split)
        # Selected, not multiplied: NaN times 0 is NaN.
        step = jax.tree.map(lambda u: jnp.where(known, u, jnp.zeros_like(u)), step)
        inner_state = jax.tree.map(
            lambda new, old: jnp.where(known, new, old), inner_state, state.inner
        )
        return step, state._replace(
            inner=inner_state,
            # Also without a step: schedules and keys follow the number of calls.
            count=optax.safe_increment(state.count),
            aux=_kept(known, new_aux, state.aux) if has_aux else state.aux,
            finite=finite,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _kept(known: Any, new: Any, old: Any) -> Any:
    """What came from w + v where a step is taken; else NaN statistics would go into the model."""

    def chosen(n: Any, o: Any) -> Any:
        n, o = jnp.asarray(n), jnp.asarray(o)
        return jnp.where(known, n, o if o.dtype == n.dtype else o.astype(n.dtype))

    return jax.tree.map(chosen, new, old)


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
            BatchNorm statistics): ``state.aux`` then holds what came from w + v in the last step
            that was taken.

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
        check_step_size(ball, step_size, "step_size to awp_jax.weights.perturbed")

    def displace(
        params: Params, updates: Any, grad_fn: GradFn, ball_now: Any, state: Any, extra_args: Any
    ) -> Any:
        del state, extra_args
        return adversarial_displacement(
            params, grad_fn, ball_now, steps=steps, step_size=step_size, first_gradient=updates
        )

    return around(inner, ball, displace, state_of(aux), aux)


def state_of(aux: Any) -> Callable[[Any], PerturbedState]:
    return lambda inner: PerturbedState(inner, jnp.zeros([], jnp.int32), aux, jnp.bool_(True))
