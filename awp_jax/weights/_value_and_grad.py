"""Drop-in replacements of ``jax.value_and_grad`` that look at a perturbed point."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.mapped import mean, vary
from awp_jax.weights._displacement import adversarial_displacement, random_displacement
from awp_jax.weights._robust import C_MIN, STEPS, check_c_min, robust_displacement


def _split(args: tuple, argnums: int | Sequence[int]) -> tuple[Any, Callable]:
    several = not isinstance(argnums, int)
    numbers = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not all(-len(args) <= number < len(args) for number in numbers):
        raise ValueError(
            f"argnums is {argnums}, but the function got {len(args)} positional arguments."
        )

    def with_params(params):
        filled = list(args)
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
    loss_fn: Callable,
    gamma: Any = 5e-3,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    steps: int = 1,
    step_size: Any = None,
    size: str = "l2",
    scope: str = "leaf",
    mask: Any = None,
    axis_name: str | None = None,
) -> Callable:
    """``jax.value_and_grad`` at the adversarially perturbed weights w + v.

    Value, auxiliary output and gradient all come from w + v; whatever the ascent computes as
    auxiliary output (BatchNorm statistics, say) is thrown away, as in the released AWP. The
    optimiser then acts at w: its weight decay sees w, not w + v as in eq. 11. Where that matters,
    use ``awp_jax.weights.awp``.

    Args:
        loss_fn: ``(params, *args, **kwargs) -> loss`` or ``-> (loss, aux)``.
        gamma: Relative radius, without unit (paper: 0.005 or 0.01); may be traced.
        argnums: Which positional argument holds the parameters, or several of them.
        has_aux: Whether ``loss_fn`` returns ``(loss, aux)``.
        steps: K2, the number of ascent steps.
        step_size: eta2 relative to ||w_l||; ``None`` for gamma / steps.
        size: ``"l2"`` or ``"l1"``.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.
        axis_name: Under ``pmap`` or ``shard_map``: gradients of ascent, value and gradient are
            averaged over this axis; aux stays as each device has it.

    Returns:
        A function with the arguments of ``loss_fn`` that returns ``(value, gradient)`` or
        ``((value, aux), gradient)``, as ``jax.value_and_grad`` does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.weights import value_and_grad
        >>> loss_fn = lambda params, x: jnp.sum((x @ params["kernel"]) ** 2)
        >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
        >>> value, grads = jax.jit(value_and_grad(loss_fn, gamma=0.1))(params, jnp.eye(2))
        >>> print(round(float(value), 3))  # 5 * 1.1 ** 2
        6.05
    """
    checks.radius(gamma, "gamma")

    @functools.wraps(loss_fn)
    def at_perturbed(*args, **kwargs):
        params, with_params = _split(args, argnums)

        def loss(p):
            return _with_aux(loss_fn(*with_params(p), **kwargs), has_aux)

        def ascent_gradient(p):
            return mean(jax.grad(loss, has_aux=True)(vary(p, axis_name))[0], axis_name)

        v = adversarial_displacement(
            params,
            ascent_gradient,
            gamma,
            steps=steps,
            step_size=step_size,
            size=size,
            scope=scope,
            mask=mask,
        )
        return _at(loss, params, v, has_aux, axis_name)

    return at_perturbed


def random_value_and_grad(
    loss_fn: Callable,
    gamma: Any = 5e-3,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    scope: str = "leaf",
    mask: Any = None,
    axis_name: str | None = None,
) -> Callable:
    """``jax.value_and_grad`` at randomly perturbed weights (random weight perturbation).

    Args:
        loss_fn: ``(params, *args, **kwargs) -> loss`` or ``-> (loss, aux)``.
        gamma: Relative radius, without unit.
        argnums: Which positional argument holds the parameters, or several of them.
        has_aux: Whether ``loss_fn`` returns ``(loss, aux)``.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.
        axis_name: As in ``value_and_grad``; the key must then be the same on every device.

    Returns:
        A function that takes one typed key, then the arguments of ``loss_fn``.
    """
    checks.radius(gamma, "gamma")

    @functools.wraps(loss_fn)
    def at_perturbed(key, *args, **kwargs):
        params, with_params = _split(args, argnums)

        def loss(p):
            return _with_aux(loss_fn(*with_params(p), **kwargs), has_aux)

        v = random_displacement(params, key, gamma, scope=scope, mask=mask)
        return _at(loss, params, v, has_aux, axis_name)

    # The signature is not that of loss_fn: jax.jit(..., static_argnames=...) must not think so.
    del at_perturbed.__wrapped__
    return at_perturbed


def robust_value_and_grad(
    losses_fn: Callable,
    gamma: Any = 1e-2,
    *,
    c_min: Any = C_MIN,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    criterion: Callable[[Any], jax.Array] | None = None,
    steps: int = STEPS,
    size: str = "l2",
    scope: str = "global",
    mask: Any = None,
    axis_name: str | None = None,
    unroll: bool | None = None,
) -> Callable:
    """``jax.value_and_grad`` of a mean loss at weights perturbed by RWP (IJCAI 2022).

    As ``value_and_grad``, for a function that returns one loss per example, because only those of
    at most ``c_min`` are ascended; value and gradient are those of the mean of all at w + v.

    Args:
        losses_fn: ``(params, *args, **kwargs) -> losses [batch]`` or ``-> (losses, aux)``.
        gamma: Relative radius, without unit (paper: 0.01 for AT, 0.005 for TRADES); may be traced.
        c_min: In nats, see ``robust_displacement``.
        argnums: Which positional argument holds the parameters, or several of them.
        has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.
        criterion: ``aux -> [batch]``, what is compared with ``c_min``; ``None`` for the losses.
        steps: K2 (paper: 10).
        size: ``"l2"`` or ``"l1"``.
        scope: ``"global"`` (as released), ``"leaf"`` or ``"filter"``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.
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
    checks.radius(gamma, "gamma")
    check_c_min(c_min)

    @functools.wraps(losses_fn)
    def at_perturbed(*args, **kwargs):
        params, with_params = _split(args, argnums)

        def losses(p):
            return _with_aux(losses_fn(*with_params(p), **kwargs), has_aux)

        def compared(p):
            values, aux = losses(p)
            return values if criterion is None else (values, criterion(aux))

        def loss(p):
            values, aux = losses(p)
            return values.mean(), aux

        v = robust_displacement(
            params,
            compared,
            gamma,
            c_min=c_min,
            steps=steps,
            size=size,
            scope=scope,
            mask=mask,
            axis_name=axis_name,
            unroll=unroll,
        )
        return _at(loss, params, v, has_aux, axis_name)

    return at_perturbed


def _at(loss: Callable, params: Any, v: Any, has_aux: bool, axis_name: str | None) -> Any:
    perturbed = vary(jax.tree.map(jnp.add, params, v), axis_name)
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(perturbed)
    value, grads = mean((value, grads), axis_name)
    return ((value, aux), grads) if has_aux else (value, grads)
