"""Weight perturbation as optax gradient transformations around any optimiser."""

import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from awp_jax import checks
from awp_jax.random import check_key
from awp_jax.weights._displacement import (
    adversarial_displacement,
    check_gradient,
    random_displacement,
)
from awp_jax.weights._robust import C_MIN, STEPS, check_c_min, robust_displacement


class AWPState(NamedTuple):
    """State of ``awp`` and ``rwp``.

    Attributes:
        inner: State of the wrapped optimiser.
        count: Number of updates so far.  # shape=(), dtype=int32
        aux: What ``grad_fn`` returned beside the gradient in w + v, or ``None``.
    """

    inner: Any
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    aux: Any


class RandomWeightPerturbationState(NamedTuple):
    """State of ``random_weight_perturbation``: as ``AWPState``, and the key it folds."""

    inner: Any
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    aux: Any
    key: jax.Array


def _reject_masked(params: Any) -> None:
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            "A weight perturbation was put inside optax.masked or optax.multi_transform, where "
            "grad_fn would get incomplete parameters: put those inside it, "
            "awp(optax.masked(...)), and use awp's own mask."
        )


def _reject_multi_steps() -> None:
    # MultiSteps hands its inner transformation the mean gradient but leaves grad_fn to the last
    # micro-batch: wrong without any sign of it. Nothing in the arguments tells, so the callers
    # are looked at; this runs while tracing only.
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        # By its code: reading local variables (f_locals) would keep their tracers alive.
        if frame.f_code is optax.MultiSteps.update.__code__:
            raise ValueError(
                "A weight perturbation was put inside optax.MultiSteps, where grad_fn would see "
                "the last micro-batch only: use awp(optax.MultiSteps(...).gradient_transformation"
                "()), or average the loss over micro-batches in grad_fn."
            )
        frame = frame.f_back


def _around(
    inner: optax.GradientTransformation,
    displace: Callable,
    make_state: Callable,
    aux: Any,
    gamma: Any,
) -> optax.GradientTransformationExtraArgs:
    """The shape that all weight perturbations share; ``displace`` is what differs."""
    wrapped = optax.with_extra_args_support(inner)
    has_aux = aux is not None
    if not callable(gamma):
        gamma = checks.radius(gamma, "gamma")

    def init(params):
        _reject_masked(params)
        return make_state(wrapped.init(params))

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        _reject_multi_steps()
        if params is None or grad_fn is None:
            missing = "params" if params is None else "grad_fn"
            raise ValueError(
                f"{missing} is missing: call update(grads, state, params, grad_fn=...), "
                "where grad_fn(params) returns the gradient on the same batch."
            )
        _reject_masked(params)
        if not callable(grad_fn):
            raise ValueError(
                f"grad_fn is a {type(grad_fn).__name__}, but a function was expected: "
                "grad_fn(params) returns the gradient on the same batch."
            )

        def gradient_at(p):
            out = grad_fn(p)
            if has_aux and not (isinstance(out, tuple) and len(out) == 2):
                raise ValueError(
                    f"grad_fn returned a {type(out).__name__}, but with aux a pair (gradient, aux) "
                    "was expected, as from jax.grad(..., has_aux=True)."
                )
            gradient, new_aux = out if has_aux else (out, None)
            return check_gradient(gradient, params, "grad_fn's result"), new_aux

        gamma_now = gamma(state.count) if callable(gamma) else gamma
        v = displace(params, updates, lambda p: gradient_at(p)[0], gamma_now, state, extra_args)
        perturbed = jax.tree.map(jnp.add, params, v)
        grads, new_aux = gradient_at(perturbed)
        # The inner optimiser works at w + v, decay included (eq. 11). Its update is a difference,
        # so applying it to w is the step back from w + v.
        updates, inner_state = wrapped.update(grads, state.inner, perturbed, **extra_args)
        return updates, state._replace(
            inner=inner_state,
            count=optax.safe_increment(state.count),
            aux=new_aux if has_aux else state.aux,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def awp(
    inner: optax.GradientTransformation,
    gamma: Any = 5e-3,
    *,
    steps: int = 1,
    step_size: Any = None,
    size: str = "l2",
    scope: str = "leaf",
    mask: Any = None,
    aux: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adversarial weight perturbation around any optimiser (AWP, NeurIPS 2020, eqs. 10, 11, 15).

    ``update`` perturbs the weights along the gradient it is given, asks ``grad_fn`` for the
    gradient there and lets ``inner`` act at w + v, weight decay included; the weights come back to
    w before the step. It must be the outermost wrapper: ``awp(optax.chain(clip, sgd))``,
    ``awp(optax.masked(...))``, ``awp(optax.multi_transform(...))``,
    ``awp(optax.MultiSteps(...).gradient_transformation())`` (which perturbs for every
    micro-batch).
    ``chain(clip, awp(sgd))`` runs, but clips only the gradient of the ascent, and
    ``chain(awp(identity()), add_decayed_weights(...), sgd)`` decays at w.

    Args:
        inner: Any optax optimiser.
        gamma: Relative radius, without unit (paper: 0.005 or 0.01), or a schedule
            ``count -> gamma``. With ``optax.inject_hyperparams(awp, static_args=("steps",
            "mask"))`` it can be changed from outside.
        steps: K2, the number of ascent steps.
        step_size: eta2 relative to ||w_l||; ``None`` for gamma / steps.
        size: ``"l2"`` or ``"l1"``.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``.
        mask: What is perturbed: a pytree of bools or a function of the parameters; ``None`` for all
            leaves with more than one axis.
        aux: ``None``, or a first value like what ``grad_fn`` returns as second output (for instance
            BatchNorm statistics): ``state.aux`` then holds what came from w + v.

    Returns:
        A transformation whose ``update(grads, state, params, grad_fn=...)`` takes the gradient at w
        (or ``None`` to have it computed) and ``grad_fn(params) -> gradient``, or ``-> (gradient,
        aux)``. Extra arguments go to ``inner``; unknown ones are ignored.

    Raises:
        ValueError: For bad arguments; when ``params`` or ``grad_fn`` is missing, or gradients are
            not like ``params``; inside ``optax.masked``, ``multi_transform`` or ``MultiSteps``,
            where it cannot be right.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from awp_jax.weights import awp
        >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
        >>> optimizer = awp(optax.sgd(0.1, momentum=0.9), gamma=0.01)
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

    def displace(params, updates, grad_fn, gamma_now, state, extra_args):
        del state, extra_args
        return adversarial_displacement(
            params,
            grad_fn,
            gamma_now,
            steps=steps,
            first_gradient=updates,
            step_size=step_size,
            size=size,
            scope=scope,
            mask=mask,
        )

    def make_state(inner_state):
        return AWPState(inner_state, jnp.zeros([], jnp.int32), aux)

    return _around(inner, displace, make_state, aux, gamma)


def rwp(
    inner: optax.GradientTransformation,
    gamma: Any = 1e-2,
    *,
    c_min: Any = C_MIN,
    steps: int = STEPS,
    size: str = "l2",
    scope: str = "global",
    mask: Any = None,
    aux: Any = None,
    unroll: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Robust weight perturbation around any optimiser (RWP, IJCAI 2022, eq. 8, algorithm 1).

    Same shape and same nesting rules as ``awp``; ``update`` takes ``losses_fn`` beside ``grad_fn``,
    because only the examples whose loss is at most ``c_min`` are ascended. The gradient given to
    ``update`` is not used and may be ``None``.

    Args:
        inner: Any optax optimiser.
        gamma: Relative radius, without unit (paper: 0.01 for AT, 0.005 for TRADES), or a schedule.
        c_min: In nats, see ``robust_displacement``.
        steps: K2 (paper: 10).
        size: ``"l2"`` or ``"l1"``.
        scope: ``"global"`` (as released), ``"leaf"`` or ``"filter"``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.
        aux: As in ``awp``.
        unroll: As in ``robust_displacement``.

    Returns:
        A transformation with ``update(grads, state, params, grad_fn=..., losses_fn=...)``, where
        ``losses_fn(params)`` returns ``losses [batch]`` or ``(losses, criterion)``.

    Raises:
        ValueError: As ``awp``, and when ``losses_fn`` is missing.

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

    def displace(params, updates, grad_fn, gamma_now, state, extra_args):
        del updates, grad_fn, state
        losses_fn = extra_args.get("losses_fn")
        if losses_fn is None:
            raise ValueError(
                "losses_fn is missing: call update(grads, state, params, grad_fn=..., "
                "losses_fn=...), where losses_fn(params) returns one loss per example."
            )
        return robust_displacement(
            params,
            losses_fn,
            gamma_now,
            c_min=c_min,
            steps=steps,
            size=size,
            scope=scope,
            mask=mask,
            unroll=unroll,
        )

    def make_state(inner_state):
        return AWPState(inner_state, jnp.zeros([], jnp.int32), aux)

    return _around(inner, displace, make_state, aux, gamma)


def random_weight_perturbation(
    inner: optax.GradientTransformation,
    gamma: Any,
    key: jax.Array,
    *,
    scope: str = "leaf",
    mask: Any = None,
    aux: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Random weight perturbation around any optimiser: Gaussian on the sphere of radius gamma.

    The comparison of AWP, NeurIPS 2020, section 5.3 (named RWP there). Same shape, same nesting
    rules as ``awp``; the gradient given to ``update`` is not used and may be ``None``.

    Args:
        inner: Any optax optimiser.
        gamma: Relative radius, without unit, or a schedule.
        key: One typed key, folded with the count of updates.
        scope: ``"leaf"``, ``"global"`` or ``"filter"``.
        mask: What is perturbed; ``None`` for all leaves with more than one axis.
        aux: As in ``awp``.

    Returns:
        A transformation with ``update(grads, state, params, grad_fn=...)``.
    """
    check_key(key)

    def displace(params, updates, grad_fn, gamma_now, state, extra_args):
        del updates, grad_fn, extra_args
        key_now = jax.random.fold_in(state.key, state.count)
        return random_displacement(params, key_now, gamma_now, scope=scope, mask=mask)

    def make_state(inner_state):
        return RandomWeightPerturbationState(inner_state, jnp.zeros([], jnp.int32), aux, key)

    return _around(inner, displace, make_state, aux, gamma)
