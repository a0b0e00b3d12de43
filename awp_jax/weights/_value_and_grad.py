"""Drop-in replacements of ``jax.value_and_grad`` that look at a perturbed point."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from awp_jax.mapped import mean, vary
from awp_jax.typing import Displacement, Key, Params, Radius
from awp_jax.weights._displacement import (
    adversarial_displacement,
    moved,
    random_displacement,
    weight_ball,
)
from awp_jax.weights._named import GAMMA_OF_RWP
from awp_jax.weights._nnx import functional
from awp_jax.weights._robust import C_MIN, STEPS, check_c_min, robust_displacement


def _split(args: tuple[Any, ...], argnums: int | Sequence[int]) -> tuple[Any, Callable[..., Any]]:
    several = not isinstance(argnums, int)
    numbers = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not all(-len(args) <= number < len(args) for number in numbers):
        raise ValueError(
            f"argnums is {argnums}, but the function got {len(args)} positional arguments."
        )

    def with_params(params: Params) -> list[Any]:
        filled = list(args)
        # One number is no sequence of one: the gradient then is no tuple, as in jax.value_and_grad.
        for number, value in zip(numbers, params if several else (params,), strict=True):
            filled[number] = value
        return filled

    params = tuple(args[number] for number in numbers)
    return (params if several else params[0]), with_params


def _with_aux(out: Any, has_aux: bool) -> tuple[Any, Any]:
    if not has_aux and isinstance(out, tuple):
        raise ValueError(
            f"loss_fn returned a tuple of {len(out)}, but a scalar loss was expected: for "
            "(loss, aux) give has_aux=True."
        )
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(
            f"loss_fn returned a {type(out).__name__}, but with has_aux=True a pair (loss, aux) "
            "was expected."
        )
    return out if has_aux else (out, None)


def value_and_grad(
    loss_fn: Callable[..., Any],
    gamma: Radius = None,
    *,
    ball: Any = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    steps: int = 1,
    step_size: Radius = None,
    axis_name: str | None = None,
) -> Callable[..., Any]:
    """``jax.value_and_grad`` at the adversarially perturbed weights w + v.

    Value, auxiliary output and gradient all come from w + v; whatever the ascent computes as
    auxiliary output (BatchNorm statistics, say) is thrown away, as in the released AWP. The
    optimiser then acts at w: its weight decay sees w, not w + v as in eq. 11. Where that matters,
    use ``awp_jax.weights.awp``.

    A Flax ``nnx.Module`` may be the argument, as in ``nnx.value_and_grad``: the gradient is that of
    its ``nnx.Param``, and what the pass at w + v does to the rest (BatchNorm statistics, counts of
    random keys) is written into the module. Both passes draw the same dropout.

    Args:
        loss_fn: ``(params, *args, **kwargs) -> loss`` or ``-> (loss, aux)``.
        gamma: Short for ``ball=WeightBall(gamma)``: relative radius, without unit (paper: 0.005,
            the default, or 0.01); may be traced.
        ball: What v moves in.
        argnums: Which positional argument holds the parameters, or several of them.
        has_aux: Whether ``loss_fn`` returns ``(loss, aux)``.
        steps: K2, the number of ascent steps.
        step_size: eta2, in the units of the ball's radius; ``None`` for the radius over ``steps``.
        axis_name: Under ``pmap`` or ``shard_map``: gradients of ascent, value and gradient are
            averaged over this axis; aux stays as each device has it.

    Returns:
        A function with the arguments of ``loss_fn`` that returns ``(value, gradient)`` or
        ``((value, aux), gradient)``, as ``jax.value_and_grad`` does.

    Raises:
        ValueError: For a negative gamma, gamma and ball together; when called, for an
            ``nnx.Module`` beside other parameters, which has to be split (``nnx.split``) first.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.weights import value_and_grad
        >>> loss_fn = lambda params, x: jnp.sum((x @ params["kernel"]) ** 2)
        >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
        >>> value, grads = jax.jit(value_and_grad(loss_fn, gamma=0.1))(params, jnp.eye(2))
        >>> print(round(float(value), 3))  # 5 * 1.1 ** 2
        6.05
    """
    ball = weight_ball(gamma, ball)

    @functools.wraps(loss_fn)
    def at_perturbed(*args: Any, **kwargs: Any) -> Any:
        params, loss, finish = _loss_of(loss_fn, args, kwargs, argnums, has_aux)

        def ascent_gradient(p: Any) -> Any:
            # All devices have to ascend along one gradient, or each would have weights of its own.
            return mean(_gradient(loss, vary(p, axis_name)), axis_name)

        v = adversarial_displacement(
            params, ascent_gradient, ball, steps=steps, step_size=step_size
        )
        return finish(_at(loss, params, v, axis_name))

    return at_perturbed


def random_value_and_grad(
    loss_fn: Callable[..., Any],
    gamma: Radius = None,
    *,
    ball: Any = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    axis_name: str | None = None,
) -> Callable[..., Any]:
    """``jax.value_and_grad`` at randomly perturbed weights (random weight perturbation).

    Args:
        loss_fn: ``(params, *args, **kwargs) -> loss`` or ``-> (loss, aux)``.
        gamma, ball: As in ``value_and_grad``: what v is drawn from.
        argnums: Which positional argument holds the parameters, or several of them.
        has_aux: Whether ``loss_fn`` returns ``(loss, aux)``.
        axis_name: As in ``value_and_grad``; the key must then be the same on every device.

    Returns:
        A function that takes one typed key, then the arguments of ``loss_fn``.
    """
    ball = weight_ball(gamma, ball)

    @functools.wraps(loss_fn)
    def at_perturbed(key: Key, *args: Any, **kwargs: Any) -> Any:
        params, loss, finish = _loss_of(loss_fn, args, kwargs, argnums, has_aux)
        # The same v on all devices, as the key is the same: nothing has to be sent.
        v = random_displacement(params, key, ball)
        return finish(_at(loss, params, v, axis_name))

    # The signature is not that of loss_fn: jax.jit(..., static_argnames=...) must not think so.
    del at_perturbed.__wrapped__
    return at_perturbed


def robust_value_and_grad(
    losses_fn: Callable[..., Any],
    gamma: Radius = None,
    *,
    ball: Any = None,
    c_min: Any = C_MIN,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    criterion: Callable[[Any], jax.Array] | None = None,
    steps: int = STEPS,
    axis_name: str | None = None,
    unroll: bool | None = None,
) -> Callable[..., Any]:
    """``jax.value_and_grad`` of a mean loss at weights perturbed by RWP (IJCAI 2022).

    As ``value_and_grad``, for a function that returns one loss per example, because only those of
    at most ``c_min`` are ascended; value and gradient are those of the mean of all at w + v.

    Args:
        losses_fn: ``(params, *args, **kwargs) -> losses [batch]`` or ``-> (losses, aux)``.
        gamma: Short for ``ball=WeightBall(gamma, scope="global")``: relative radius, without unit
            (paper: 0.01, the default, for AT, 0.005 for TRADES); may be traced.
        ball: In place of gamma.
        c_min: In nats, see ``robust_displacement``.
        argnums: Which positional argument holds the parameters, or several of them.
        has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.
        criterion: ``aux -> [batch]``, what is compared with ``c_min``; ``None`` for the losses.
        steps: K2 (paper: 10).
        axis_name: As in ``value_and_grad``.
        unroll: As in ``robust_displacement``.

    Returns:
        A function with the arguments of ``losses_fn`` that returns ``(value, gradient)`` or
        ``((value, aux), gradient)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.weights import robust_value_and_grad
        >>> losses_fn = lambda params, x: (x @ params["kernel"])[:, 0] ** 2
        >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
        >>> value, grads = jax.jit(robust_value_and_grad(losses_fn, 0.1))(params, jnp.eye(2))
        >>> print(round(float(value), 3))  # only the loss of 1 is ascended: (1.224 ** 2 + 4) / 2
        2.749
    """
    ball = weight_ball(gamma, ball, default=GAMMA_OF_RWP, scope="global")
    check_c_min(c_min)

    @functools.wraps(losses_fn)
    def at_perturbed(*args: Any, **kwargs: Any) -> Any:
        params, losses, finish = _loss_of(losses_fn, args, kwargs, argnums, has_aux)

        def compared(p: Any) -> Any:
            # What the ascent sees: one loss for each example, of which it takes those up to c_min.
            values, (aux, _) = losses(p)
            return values if criterion is None else (values, criterion(aux))

        def loss(p: Any) -> tuple[jax.Array, Any]:
            # All examples descend; it is only the ascent that leaves some out.
            values, aux = losses(p)
            return values.mean(), aux

        v = robust_displacement(
            params, compared, ball, c_min=c_min, steps=steps, axis_name=axis_name, unroll=unroll
        )
        return finish(_at(loss, params, v, axis_name))

    return at_perturbed


def _loss_of(
    loss_fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: int | Sequence[int],
    has_aux: bool,
) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Parameters, ``params -> (loss, (aux, left))`` and what makes the result of a pass.

    ``left`` is what a pass does to the rest of an ``nnx.Module``.
    """
    params, with_params = _split(args, argnums)
    params, rebuilt, left_of, write = functional(params)

    def loss(p: Any) -> tuple[Any, tuple[Any, Any]]:
        # A copy for each pass, so that both begin with the same statistics and dropout keys.
        module = rebuilt(p)
        value, aux = _with_aux(loss_fn(*with_params(module), **kwargs), has_aux)
        return value, (aux, left_of(module))

    def finish(found: Any) -> Any:
        (value, (aux, left)), grads = found
        # Only what the pass at w + v has done: that of the ascent is thrown away.
        write(left)
        return ((value, aux), grads) if has_aux else (value, grads)

    return params, loss, finish


def _gradient(loss: Callable[..., Any], params: Params) -> Any:
    # Integers among the parameters get gradients of dtype float0, which balls leave alone.
    return jax.grad(loss, has_aux=True, allow_int=True)(params)[0]


def _at(loss: Callable[..., Any], params: Params, v: Displacement, axis_name: str | None) -> Any:
    # Marked after v is added: it is in w + v that the gradient is taken.
    perturbed = vary(moved(params, v), axis_name)
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True, allow_int=True)(perturbed)
    # Not aux: nobody knows whether a mean of it makes sense (counts, predictions).
    value, grads = mean((value, grads), axis_name)
    return (value, aux), grads
