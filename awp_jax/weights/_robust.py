"""Robust weight perturbation: ascent on the examples whose loss is small (RWP, IJCAI 2022)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.ascent import is_traced
from awp_jax.mapped import mean, vary
from awp_jax.pytrees import as_argument, from_argument
from awp_jax.scaling import over, times
from awp_jax.typing import Params, Radius
from awp_jax.weights._displacement import as_weight_ball, default_step, moved

STEPS = 10  # K2 of the paper, section 5.1
C_MIN = 1.7  # in nats; 4.0 for CIFAR-100


def check_c_min(c_min: Any) -> Any:
    """``c_min`` as it is, or ``ValueError`` for what is no number (infinite is one)."""
    if isinstance(c_min, jax.Array):
        return c_min
    if isinstance(c_min, bool) or not isinstance(c_min, int | float) or c_min != c_min:
        raise ValueError(f"c_min is {c_min!r}, but a loss in nats, such as 1.7, was expected.")
    return float(c_min)


def _evaluate(
    losses_fn: Callable[..., Any], params: Params, scale: Any = None
) -> tuple[Callable[..., Any], jax.Array]:
    """``mask -> gradient`` of the masked losses over the whole batch, and the criterion."""

    def both(p: Any) -> tuple[jax.Array, jax.Array]:
        out = losses_fn(p)
        losses, criterion = out if isinstance(out, tuple) else (out, out)
        return losses, jax.lax.stop_gradient(criterion)

    losses, pullback, criterion = jax.vjp(both, params, has_aux=True)
    if losses.ndim != 1 or losses.shape != criterion.shape:
        raise ValueError(
            f"losses_fn returned losses of shape {losses.shape} and a criterion of shape "
            f"{criterion.shape}, but [batch] and [batch] were expected: one loss per example."
        )

    # One forward pass gives both; as released, the mean is over all examples, selected or not.
    def gradient(mask: jax.Array) -> Any:
        counts = mask.astype(losses.dtype) / losses.size
        return over(pullback(times(counts, scale))[0], scale)

    return gradient, criterion


def loss_range_gradient(
    losses_fn: Callable[..., Any],
    params: Params,
    low: Any,
    high: Any,
    *,
    axis_name: str | None = None,
    loss_scale: Any = None,
) -> Any:
    """The gradient over the examples in a range of loss (the loss stationary condition, LSC).

    RWP, IJCAI 2022, eq. 7 and figure 1(c): only examples with ``low <= criterion < high`` count;
    their losses are still averaged over the whole batch. As ``grad_fn`` of
    ``adversarial_displacement`` this is AWP-LSC[low, high).

    Args:
        losses_fn: ``params -> losses [batch]``, or ``-> (losses, criterion)`` where another loss
            than the ascended one decides, both ``[batch]`` in nats.
        params: Where the gradient is taken.
        low: Least loss that counts, in nats.
        high: Least loss that counts no more, in nats.
        axis_name: Under ``pmap`` or ``shard_map``: the batch is that of all devices together.
        loss_scale: By which losses are multiplied, and their gradient is divided, where a model
            that computes in float16 would underflow; ``None`` for 1.

    Returns:
        The gradient, like ``params``; zero when no example lies in the range.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.weights import loss_range_gradient
        >>> losses_fn = lambda w: w * jnp.array([1.0, 3.0])
        >>> print(loss_range_gradient(losses_fn, jnp.array(1.0), 0.0, 2.0))  # 1 of two examples
        0.5
    """
    gradient, criterion = _evaluate(losses_fn, vary(params, axis_name), loss_scale)
    return mean(gradient((criterion >= low) & (criterion < high)), axis_name)


def _accumulate(
    losses_fn: Callable[..., Any],
    params: Params,
    ball: Any,
    size: Any,
    c_min: Any,
    summed: Any,
    scale: Any = None,
    *,
    axis_name: str | None,
    lazy: bool,
) -> tuple[Any, jax.Array]:
    """Adds one raw masked gradient, taken at w + v; also whether any example was selected."""
    ball = from_argument(ball)
    v = ball.step(params, ball.start(None, params), summed, size)
    perturbed = vary(moved(params, v), axis_name)
    gradient, criterion = _evaluate(losses_fn, perturbed, scale)
    mask = criterion <= c_min
    selected = mask.any()
    if axis_name is not None:
        # Every device has to take the same branch, or the mean inside it would wait for ever.
        selected = jax.lax.pmax(selected.astype(jnp.int32), axis_name) > 0

    def add(summed: Any) -> Any:
        return jax.tree.map(jnp.add, summed, mean(gradient(mask), axis_name))

    # Nothing selected: the gradient is zero, and where a branch is cheap it is not computed.
    return (jax.lax.cond(selected, add, lambda s: s, summed) if lazy else add(summed)), selected


_compiled_accumulate = jax.jit(_accumulate, static_argnames=("axis_name", "lazy"))


def robust_displacement(
    params: Params,
    losses_fn: Callable[[Any], Any],
    ball: Any,
    *,
    c_min: Any = C_MIN,
    steps: int = STEPS,
    step_size: Radius = None,
    axis_name: str | None = None,
    unroll: bool | None = None,
    loss_scale: Any = None,
) -> Any:
    """Robust weight perturbation (RWP, IJCAI 2022, eq. 8 and algorithm 1).

    Each of K2 steps takes the gradient at w + v of the losses that are at most ``c_min`` there,
    averaged over the whole batch, adds it as it is to the sum s of those before, and rescales:
    ``v = gamma * ||w|| * s / ||s||`` (the released code; the paper's algorithm adds the gradient
    to the rescaled v). It stops as soon as no loss is at most ``c_min``: v would stay as it is.

    Outside ``jit`` the loop runs from Python over one compiled step (when ``losses_fn`` is a
    ``jax.tree_util.Partial`` of a module-level function, compiled once for all calls). Inside
    ``jit`` it is a ``lax.while_loop`` on GPU and TPU; on CPU, where convolutions inside loops and
    branches are many times slower, all steps are unrolled and none is saved: there, call this
    outside ``jit``.

    Args:
        params: Weights w, a pytree of float arrays.
        losses_fn: ``params -> losses [batch]``, or ``-> (losses, criterion)`` where another loss
            than the ascended one is compared with ``c_min`` (for TRADES the cross-entropy of the
            adversarial images), both ``[batch]`` in nats.
        ball: What v moves in; the released one is ``WeightBall(gamma=0.01, scope="global")``, for
            which 0.01 is short: one ratio for all tensors (paper: gamma 0.01 for AT, 0.005 for
            TRADES and RST).
        c_min: In nats (paper: 1.7 for CIFAR-10 and SVHN, 4.0 for CIFAR-100). Infinite selects all
            examples, below zero none: then v is zero.
        steps: K2 (paper: 10).
        step_size: Where v = step_size * ||w|| * s / ||s|| lies, in the units of the ball's radius;
            ``None`` for the radius.
        axis_name: Under ``pmap`` or ``shard_map``: the batch is that of all devices together.
        unroll: Inside ``jit``: ``None`` for the rule above, ``True`` for an unrolled loop that
            computes every step, ``False`` for ``lax.while_loop``.
        loss_scale: As in ``loss_range_gradient``.

    Returns:
        The displacement v, like ``params``, on the sphere of the ball, or zero.

    Raises:
        ValueError: For a ball that is none or has no radius where ``step_size`` is missing, a c_min
            that is no number, steps below 1, or losses that are not one per example.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import WeightBall
        >>> from awp_jax.weights import robust_displacement
        >>> ball = WeightBall(gamma=0.1, scope="global")
        >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
        >>> losses_fn = lambda p: p["kernel"][0] ** 2  # 9 and 16
        >>> print(robust_displacement(params, losses_fn, ball, c_min=10.0)["kernel"])
        [[0.5 0. ]]
    """
    checks.positive_integer(steps, "steps")
    c_min = check_c_min(c_min)
    ball = as_weight_ball(ball, "global")
    size = default_step(ball, params, 1, step_size)
    losses_fn = losses_fn if isinstance(losses_fn, Partial) else Partial(losses_fn)
    traced = is_traced(losses_fn, params)
    if unroll is None:
        unroll = jax.default_backend() == "cpu"
    lazy = traced and not unroll
    # A ball that is no pytree is a constant of the compiled step, see ``Constant``.
    add = functools.partial(
        _accumulate if traced else _compiled_accumulate,
        losses_fn,
        params,
        as_argument(ball),
        size,
        c_min,
        axis_name=axis_name,
        lazy=lazy,
    )
    summed = ball.start(None, params)
    if lazy:

        def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
            index, summed, _ = state
            return index + 1, *add(summed, loss_scale)

        def go_on(state: tuple[Any, ...]) -> jax.Array:
            return (state[0] < steps) & state[2]

        summed = jax.lax.while_loop(go_on, body, (jnp.int32(0), summed, jnp.bool_(True)))[1]
        return ball.step(params, ball.start(None, params), summed, size)
    # Inside an outer trace XLA inlines it, and it is traced only once. Not the global one: its
    # cache would keep the outer tracers that losses_fn closes over.
    step = jax.jit(add) if traced else add
    for _ in range(steps):
        summed, selected = step(summed, loss_scale)
        if not traced and not selected:
            break
    return ball.step(params, ball.start(None, params), summed, size)
