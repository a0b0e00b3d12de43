"""The optimisers of configs: those of optax by name, as in PyTorch, and Entropy-SGD."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from awp_jax import checks, parts
from awp_jax.balls import kernels_only
from awp_jax.random import leaf_keys
from awp_jax.typing import Key, Params

NAMES = ("sgd", "adam", "adamw", "lion", "lamb", "entropy-sgd")
# Whose decay does not join the gradient but moves the weights, times the rate.
_DECOUPLED = {"adamw": optax.adamw, "lion": optax.lion, "lamb": optax.lamb}


class EntropySGDState(NamedTuple):
    """State of ``entropy_sgd``.

    Attributes:
        count: Gradients seen.  # shape=(), dtype=int32
        anchor: x, the weights around which the inner loop explores.
        mean: mu, the exponential mean of the inner loop's weights.
        momentum: Of the outer steps.
        key: Of the noise.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    anchor: Any
    mean: Any
    momentum: Any
    key: Key


def entropy_sgd(
    learning_rate: Any,
    key: Key,
    *,
    steps: int = 20,
    inner_learning_rate: float = 0.1,
    gamma: float = 0.03,
    growth: float = 0.001,
    noise: float = 1e-4,
    averaging: float = 0.75,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Entropy-SGD (Chaudhari et al., ICLR 2017, algorithm 1): descent on the local entropy.

    Each gradient makes one step of Langevin dynamics from the weights x' that it was taken at:

        x' <- x' - eta' (g - gamma (x - x')) + sqrt(eta') noise N(0, 1)
        mu <- averaging mu + (1 - averaging) x'

    and every ``steps``-th the outer step ``x <- x - eta (x - mu)``, after which x' = mu = x. gamma
    grows as ``gamma (1 + growth)^k`` with the outer step k (scoping). Weight decay joins g. As in
    the released code, the factor gamma of the outer gradient gamma (x - mu) is part of eta, so that
    eta = 1 goes to mu.

    The released code (ucla-vision/entropy-sgd, python/optim.py) differs from the algorithm in what
    the paper leaves open, and so from this: Nesterov's momentum also in the inner steps, weight
    decay also in the outer ones, noise larger by sqrt(2).

    Args:
        learning_rate: eta, a number or a schedule of the number of gradients (from 1 on CIFAR-10
            in a public reproduction; not taken from the paper's text).
        key: One typed key, for the noise.
        steps: L, gradients per outer step (paper and code: 20).
        inner_learning_rate: eta' (paper and code: 0.1).
        gamma: How strongly x' is drawn back to x (0.03 on CIFAR-10 in a public reproduction, not
            taken from the paper's text; released code: 1e-4).
        growth: Of gamma per outer step (code: 1e-3).
        noise: epsilon, the thermal noise (paper and code: 1e-4).
        averaging: The weight of the old mean (0.75 in the released code).
        momentum: Of the outer steps (code: 0.9, Nesterov's).
        weight_decay: L2, on x'.

    Returns:
        An optax transformation; ``update`` needs ``params``.

    Raises:
        ValueError: For steps below 1.
    """
    checks.positive_integer(steps, "inner_steps")

    def init(params: Params) -> Any:
        # Copies, because the step donates parameters and state, and no buffer twice.
        copy, zeros = jax.tree.map(jnp.copy, params), jax.tree.map(jnp.zeros_like, params)
        return EntropySGDState(
            jnp.zeros([], jnp.int32), copy, jax.tree.map(jnp.copy, params), zeros, key
        )

    def update(grads: Any, state: Any, params: Params = None) -> Any:
        if params is None:
            raise ValueError("params is missing: call update(grads, state, params).")
        # The key stays: the noise of a step follows from its count, also after a restart.
        drawn_key = jax.random.fold_in(state.key, state.count)
        outer = state.count // steps
        pull = gamma * (1 + growth) ** outer
        thermal = inner_learning_rate**0.5 * noise

        def inner(w: Any, g: Any, x: Any, k: Any) -> Any:
            step = g + weight_decay * w - pull.astype(w.dtype) * (x - w)
            drawn = jax.random.normal(k, w.shape, w.dtype)
            return w - inner_learning_rate * step + thermal * drawn

        moved = jax.tree.map(inner, params, grads, state.anchor, leaf_keys(drawn_key, params))
        mean = jax.tree.map(lambda m, w: averaging * m + (1 - averaging) * w, state.mean, moved)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        # With every gradient, and chosen where an inner loop ends: a branch would save a few sums.
        velocity = jax.tree.map(
            lambda b, x, m: momentum * b + (x - m), state.momentum, state.anchor, mean
        )
        stepped = jax.tree.map(lambda x, b: (x - rate * b).astype(x.dtype), state.anchor, velocity)
        ends = (state.count + 1) % steps == 0

        def choose(at_end: Any, otherwise: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(ends, a, b), at_end, otherwise)

        new = choose(stepped, moved)
        state = EntropySGDState(
            count=optax.safe_increment(state.count),
            anchor=choose(stepped, state.anchor),
            mean=choose(stepped, mean),
            momentum=choose(velocity, state.momentum),
            key=state.key,
        )
        return jax.tree.map(jnp.subtract, new, params), state

    return optax.GradientTransformation(init, update)


def make_optimizer(
    settings: Any, learning_rate: Callable[..., Any], key: Key, own: Any = None
) -> Any:
    """The optimiser of a config's group ``optimizer``.

    As in PyTorch, decay joins the gradient, then momentum (or Adam's moments), then the rate; that
    of adamw, lion and lamb moves the weights by itself. Clipping comes before all of it.

    Args:
        settings: The group, see ``awp_jax.config.default``.
        learning_rate: ``step -> rate``.
        key: One typed key, for the noise of Entropy-SGD.
        own: A user's own ``(learning_rate, ...)`` to an optax optimiser, in place of what the
            settings name. Where it takes no ``weight_decay``, the decay joins the gradient.

    Returns:
        An optax optimiser.

    Raises:
        ValueError: When ``own`` gives anything else.
    """
    made = _made(settings, learning_rate, key, own)
    if settings.clip_norm is None:
        return made
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), made)


def _made(o: Any, learning_rate: Callable[..., Any], key: Key, own: Any) -> Any:
    if own is not None:
        return _own(o, learning_rate, own)
    if o.name == "entropy-sgd":
        return entropy_sgd(
            learning_rate,
            key,
            steps=o.inner_steps,
            inner_learning_rate=o.inner_learning_rate,
            gamma=o.inner_gamma,
            growth=o.inner_gamma_growth,
            noise=o.inner_noise,
            averaging=o.inner_averaging,
            momentum=o.momentum,
            weight_decay=o.weight_decay,
        )
    if o.name in _DECOUPLED:
        return _DECOUPLED[o.name](learning_rate, weight_decay=o.weight_decay, mask=_decayed(o))
    if o.name == "adam":
        own = optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)  # torch.optim.Adam
    else:
        # None for 0: optax would carry a trace of zeros through the state otherwise.
        own = optax.sgd(learning_rate, momentum=o.momentum or None, nesterov=o.nesterov)
    return optax.chain(optax.add_decayed_weights(o.weight_decay, _decayed(o)), own)


def _decayed(o: Any) -> Any:
    """The mask of what decays, as optax takes it."""
    return kernels_only if o.decay == "kernels" else None


def _own(o: Any, learning_rate: Callable[..., Any], own: Any) -> Any:
    what = f"optimizer.name {o.name!r}"
    options = {
        "momentum": o.momentum,
        "nesterov": o.nesterov,
        "weight_decay": o.weight_decay,
    }
    if _is_optimizer(own):
        raise ValueError(
            f"{what} is an optimiser already: give a function of the learning rate, which follows "
            "the schedule, such as lambda rate: optax.adam(rate)."
        )
    made = parts.call(
        own,
        what,
        learning_rate,
        names=("learning_rate",),
        options=options,
        defaults={"nesterov": False},
    )
    if not _is_optimizer(made):
        raise ValueError(
            f"{what} gave a {type(made).__name__}, but an optax optimiser was expected."
        )
    if "weight_decay" in parts.signature_of(own).parameters:
        return made
    return optax.chain(optax.add_decayed_weights(o.weight_decay, _decayed(o)), made)


def _is_optimizer(found: Any) -> bool:
    return callable(getattr(found, "init", None)) and callable(getattr(found, "update", None))
