"""Finding a perturbation of the weights: by ascent (AWP) or at random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.ascent import ascend
from awp_jax.balls import Ball, WeightBall
from awp_jax.balls._protocol import check_ball, check_step_size
from awp_jax.typing import Displacement, Gradients, Key, Params, PyTree, Radius

NNX_HINT = (
    ": with nnx.Optimizer use grad_fn on the state that it passes, as the example 'Flax NNX' of "
    "docs/weights.md does"
)


def check_gradient(found: Any, params: Params, name: str) -> Any:
    """``found`` when it is like ``params``; tracers have shapes too, so this is before compilation.

    Raises:
        ValueError: Otherwise, with the first place where they differ.
    """

    def shapes(tree: PyTree) -> dict[str, tuple[Any, ...]]:
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
        hint = ""
        if type(found) is tuple and len(found) == 2 and structure(found[0]) == structure(params):
            hint = ": it returned (gradient, aux), so give aux=..., a first value of aux"
        elif type(found) is tuple:
            hint = ": jax.value_and_grad gives (value, gradient)"
        elif any(type(tree).__module__.startswith("flax.nnx") for tree in (found, params)):
            hint = NNX_HINT
        raise ValueError(f"{what}{where}, but a gradient like params was expected{hint}.")
    for path, shape in wanted.items():
        if there[path] != shape:
            raise ValueError(
                f"{name} has shape {there[path]} at {path or 'its root'}, but params have {shape}."
            )
    return found


def weight_ball(gamma: Radius, ball: Any, default: float = 5e-3, **settings: Any) -> Any:
    """The ball of a weight perturbation, from its short form or as given.

    Args:
        gamma: Relative radius, or ``None``.
        ball: Any ball of weights, or ``None``.
        default: Gamma when neither is given.
        **settings: Of the ``WeightBall`` that the short form makes.

    Raises:
        ValueError: For both, a ball that is none, a negative gamma.
    """
    if ball is None:
        return WeightBall(gamma=default if gamma is None else gamma, **settings)
    if gamma is not None:
        raise ValueError(
            f"Both gamma {gamma!r} and a ball were given, but gamma is only short for "
            "ball=WeightBall(gamma): give one of them."
        )
    return check_ball(ball, "weights")


def as_weight_ball(ball: Any, scope: str = "leaf") -> Any:
    """A ball as it is; anything else is the gamma of a ``WeightBall``, or refused as such."""
    return (
        check_ball(ball, "weights")
        if isinstance(ball, Ball)
        else WeightBall(gamma=ball, scope=scope)
    )


def default_step(ball: Any, params: Params, steps: int, step_size: Radius) -> Any:
    """eta2: as given, or the radius over the number of steps."""
    if step_size is not None:
        return step_size
    if isinstance(ball, WeightBall):
        # Leaf by leaf, because radii may differ; gamma / (A * K2), the default of appendix D.2.
        return ball.radii(params, 1 / steps)
    check_step_size(ball, None, "step_size, or a ball with a radius")
    return jax.tree.map(lambda r: r / steps, ball.radius)


def moved(params: Params, displacement: Displacement) -> Any:
    """``w + v``; integers, random keys and other leaves that are no floats stay as they are."""

    def add(w: Any, v: Any) -> Any:
        # Others are not displaced: balls give zeros for integers, and random keys as they are.
        return jnp.add(w, v) if jnp.issubdtype(jnp.result_type(w), jnp.inexact) else w

    return jax.tree.map(add, params, displacement)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every float in a pytree is finite, one bool."""
    finite = jnp.bool_(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            # The largest is NaN or infinite where any entry is: one pass, no array of bools.
            finite &= jnp.isfinite(jnp.max(jnp.abs(leaf), initial=0))
    return finite


def perturb(
    params: Params,
    grads: Gradients,
    gamma: Radius = None,
    *,
    ball: Any = None,
    displacement: Displacement = None,
    step_size: Radius = None,
) -> Any:
    """One step of adversarial weight perturbation (AWP, NeurIPS 2020, eqs. 10 and 15).

    With the defaults ``v_l = gamma * ||w_l|| * g_l / ||g_l||`` for every kernel, zero elsewhere.
    No proxy optimiser is needed: its learning rate cancels in the normalisation.

    Args:
        params: Weights w, a pytree of arrays.
        grads: Gradient of the loss in w + displacement, like ``params``.
        gamma: Short for ``ball=WeightBall(gamma)``: relative radius, without unit (0.005).
        ball: What v moves in.
        displacement: Where the step starts; ``None`` for where the ball does, zero.
        step_size: eta2, in the units of the ball's radius; ``None`` for the radius.

    Returns:
        The displacement v, like ``params`` in structure and dtypes; zero for a gradient that is
        zero or not finite.

    Raises:
        ValueError: For a negative gamma, a ball without a radius where ``step_size`` is missing,
            gradients not like ``params``.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.weights import perturb
        >>> w, g = {"kernel": jnp.array([[3.0, 4.0]])}, {"kernel": jnp.array([[0.0, 2.0]])}
        >>> print(perturb(w, g, gamma=0.1)["kernel"])
        [[0.  0.5]]
    """
    check_gradient(grads, params, "grads")
    ball = weight_ball(gamma, ball)
    size = default_step(ball, params, 1, step_size)
    # Weight ascent starts at w: no key is needed.
    start = ball.start(None, params) if displacement is None else displacement
    return ball.step(params, start, grads, size)


def adversarial_displacement(
    params: Params,
    grad_fn: Callable[[Any], Any],
    ball: Any,
    *,
    steps: int = 1,
    step_size: Radius = None,
    first_gradient: Any = None,
    displacement: Displacement = None,
    unroll: bool | None = None,
) -> Any:
    """K2 steps of projected weight ascent (AWP, NeurIPS 2020, algorithm 2, lines 11 to 13).

    Args:
        params: Weights w.
        grad_fn: ``params -> gradient`` of the loss to ascend, like ``params``.
        ball: What v moves in, such as ``WeightBall(gamma=0.005)``, for which 0.005 is short.
        steps: K2.
        step_size: eta2, in the units of the ball's radius; ``None`` for the radius over ``steps``.
        first_gradient: The gradient in w + displacement when it is known already: saves one call.
        displacement: Where ascent starts; ``None`` for where the ball does, zero.
        unroll: See ``awp_jax.ascent.loop``.

    Returns:
        The displacement v, inside the ball.

    Raises:
        ValueError: For a ball that is none or has no radius where ``step_size`` is missing, steps
            below 1, or gradients that are not like ``params``.
    """
    checks.positive_integer(steps, "steps")
    ball = as_weight_ball(ball)
    if first_gradient is not None:
        check_gradient(first_gradient, params, "the gradient at w")
    eta = default_step(ball, params, steps, step_size)
    v = ball.start(None, params) if displacement is None else displacement

    def gradient_at(v: Displacement) -> Any:
        # Always from w: v is the whole displacement, not that of the last step.
        return check_gradient(grad_fn(moved(params, v)), params, "grad_fn's result")

    def gradient_fn(point: Displacement, carry: Any) -> tuple[Any, Any]:
        return gradient_at(point), carry

    if first_gradient is None and steps == 1:
        # No loop, so nothing is compiled for it when this is called outside jit.
        first_gradient = gradient_at(v)
    if first_gradient is not None:
        # With the gradient at w at hand, K2 = 1 costs no pass of its own.
        v = ball.step(params, v, first_gradient, eta)
        steps -= 1
    v, _ = ascend(gradient_fn, ball, params, v, steps=steps, step_size=eta, unroll=unroll)
    return v


def random_displacement(params: Params, key: Key, ball: Any) -> Any:
    """A random displacement: in a ``WeightBall``, Gaussian with ``||v_l|| = gamma * ||w_l||``.

    The comparison of AWP, NeurIPS 2020, section 5.3. There it is called RWP; here that name is
    kept for robust weight perturbation (IJCAI 2022).

    Args:
        params: Weights w.
        key: One typed key.
        ball: What v is drawn from, such as ``WeightBall(gamma=0.005)``, or 0.005.

    Returns:
        The displacement, like ``params``.
    """
    return as_weight_ball(ball).sample(key, params)
