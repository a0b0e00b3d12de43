"""Finding a perturbation of the weights: by ascent (AWP) or at random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.ascent import ascend
from awp_jax.balls import WeightBall


def check_gradient(found: Any, params: Any, name: str) -> Any:
    """``found`` when it is like ``params``; tracers have shapes too, so this is before compilation.

    Raises:
        ValueError: Otherwise, with the first place where they differ.
    """

    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}

    there, wanted = shapes(found), shapes(params)
    structure: Any = jax.tree.structure
    if structure(found) != structure(params):
        place = next(
            (path for path in [*wanted, *there] if (path in there) != (path in wanted)), ""
        )
        what = f"{name} is a {type(found).__name__} of {len(there)} arrays and params"
        what += f" a {type(params).__name__} of {len(wanted)}"
        only = "params" if place in wanted else name
        where = f" (only {only} has {place})" if place else ""
        hint = ": jax.value_and_grad gives more than the gradient" if type(found) is tuple else ""
        raise ValueError(f"{what}{where}, but a gradient like params was expected{hint}.")
    for path, shape in wanted.items():
        if there[path] != shape:
            raise ValueError(
                f"{name} has shape {there[path]} at {path or 'its root'}, but params have {shape}."
            )
    return found


def perturb(
    params: Any,
    grads: Any,
    gamma: Any,
    *,
    displacement: Any = None,
    step_size: Any = None,
    size: str = "l2",
    scope: str = "leaf",
    mask: Any = None,
) -> Any:
    """One step of adversarial weight perturbation (AWP, NeurIPS 2020, eqs. 10 and 15).

    With the defaults ``v_l = gamma * ||w_l|| * g_l / ||g_l||`` for every kernel, zero elsewhere.
    No proxy optimiser is needed: its learning rate cancels in the normalisation.

    Args:
        params: Weights w, a pytree of float arrays.
        grads: Gradient of the loss in w + displacement, like ``params``.
        gamma: Relative radius, without unit, e.g. 0.005.
        displacement: Where the step starts; ``None`` for zero.
        step_size: eta2, relative to ||w_l||; ``None`` for gamma.
        size: Norm of a layer: ``"l2"`` (Frobenius) or ``"l1"``.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``; see ``awp_jax.balls.WeightBall``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.

    Returns:
        The displacement v, like ``params`` in structure and dtypes.

    Raises:
        ValueError: For a negative gamma, an unknown size or scope, gradients not like ``params``.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.weights import perturb
        >>> w, g = {"kernel": jnp.array([[3.0, 4.0]])}, {"kernel": jnp.array([[0.0, 2.0]])}
        >>> print(perturb(w, g, gamma=0.1)["kernel"])
        [[0.  0.5]]
    """
    check_gradient(grads, params, "grads")
    ball = WeightBall(gamma, size, scope, mask)
    start = ball.start(None, params) if displacement is None else displacement
    return ball.step(params, start, grads, ball.gamma if step_size is None else step_size)


def adversarial_displacement(
    params: Any,
    grad_fn: Callable[[Any], Any],
    gamma: Any,
    *,
    steps: int = 1,
    first_gradient: Any = None,
    displacement: Any = None,
    step_size: Any = None,
    size: str = "l2",
    scope: str = "leaf",
    mask: Any = None,
    unroll: bool | None = None,
) -> Any:
    """K2 steps of projected weight ascent (AWP, NeurIPS 2020, algorithm 2, lines 11 to 13).

    Args:
        params: Weights w.
        grad_fn: ``params -> gradient`` of the loss to ascend, like ``params``.
        gamma: Relative radius.
        steps: K2.
        first_gradient: The gradient in w + displacement when it is known already: saves one call.
        displacement: Where ascent starts; ``None`` for zero.
        step_size: eta2 relative to ||w_l||; ``None`` for gamma / steps.
        size: ``"l2"`` or ``"l1"``.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.
        unroll: See ``awp_jax.ascent.loop``.

    Returns:
        The displacement v with ``||v_l|| <= gamma * ||w_l||``.

    Raises:
        ValueError: For a negative gamma, unknown size or scope, steps below 1, or gradients that
            are not like ``params``.
    """
    checks.positive_integer(steps, "steps")
    if first_gradient is not None:
        check_gradient(first_gradient, params, "the gradient at w")
    ball = WeightBall(gamma, size, scope, mask)
    eta = ball.gamma / steps if step_size is None else step_size
    v = ball.start(None, params) if displacement is None else displacement

    def gradient_at(v):
        return check_gradient(grad_fn(jax.tree.map(jnp.add, params, v)), params, "grad_fn's result")

    def gradient_fn(point, carry):
        return gradient_at(point), carry

    if first_gradient is None and steps == 1:
        # No loop, so nothing is compiled for it when this is called outside jit.
        first_gradient = gradient_at(v)
    if first_gradient is not None:
        v = ball.step(params, v, first_gradient, eta)
        steps -= 1
    v, _ = ascend(gradient_fn, ball, params, v, steps=steps, step_size=eta, unroll=unroll)
    return v


def random_displacement(
    params: Any, key: jax.Array, gamma: Any, *, scope: str = "leaf", mask: Any = None
) -> Any:
    """A Gaussian direction with ``||v_l|| = gamma * ||w_l||`` (random weight perturbation).

    The comparison of AWP, NeurIPS 2020, section 5.3. There it is called RWP; here that name is
    kept for robust weight perturbation (IJCAI 2022).

    Args:
        params: Weights w.
        key: One typed key.
        gamma: Relative radius, without unit.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.

    Returns:
        The displacement, like ``params``.
    """
    return WeightBall(gamma, "l2", scope, mask).sample(key, params)
