"""Directions in weight space along which a landscape is looked at."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks, parallel
from awp_jax.attacks import cross_entropy
from awp_jax.attacks._model import as_pytree_function, check_examples
from awp_jax.balls import WeightBall
from awp_jax.balls._protocol import check_ball, check_step_size
from awp_jax.data import as_float
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._model import float_images, logits_at, looked_at
from awp_jax.pytrees import as_argument, from_argument
from awp_jax.random import check_key, example_keys
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params
from awp_jax.weights._displacement import default_step

# One norm per output channel (last axis of a kernel here), or one per kernel.
NORMALISATIONS = {"filter": "filter", "layer": "leaf"}


def _ball(normalisation: str, ball: Any, params: Params) -> Any:
    checks.choice(normalisation, NORMALISATIONS, "normalisation")
    if ball is None:
        ball = WeightBall(gamma=1.0, scope=NORMALISATIONS[normalisation])
    check_ball(ball, "weights")
    check_step_size(ball, getattr(ball, "reach", None), "it one")
    if isinstance(ball, WeightBall):
        ball.mask_of(params)  # which says in one sentence what does not fit
    return as_argument(ball)


@jax.jit
def _scaled(ball: Any, way: Any, params: Params) -> Any:
    ball = from_argument(ball)
    # One whole step of the ball is the direction at its size: no rule beside that of the ball.
    size = default_step(ball, params, 1, None)
    return ball.step(params, ball.start(None, params), way, size)


@jax.jit
def _noise(key: Key, params: Params) -> Any:
    # One long draw: on CPU, compiling one for each shape takes half a second a shape.
    leaves, structure = jax.tree.flatten(params)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    flat = jax.random.normal(key, (ends[-1],), jnp.result_type(*leaves))
    parts = zip(jnp.split(flat, ends[:-1]), leaves, strict=True)
    return jax.tree.unflatten(structure, [p.reshape(w.shape).astype(w.dtype) for p, w in parts])


def _check(key: Key, params: Params, count: int) -> None:
    check_key(key)
    checks.positive_integer(count, "count")
    if not jax.tree.leaves(params):
        raise ValueError("params holds no arrays: there is no direction to go.")


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def directions(
    key: Key,
    params: Params,
    count: int = 1,
    *,
    normalisation: str = "filter",
    ball: Any = None,
) -> Any:
    """Random Gaussian directions, scaled to the weights (Li et al. 2018; AWP, algorithm 1).

    ``d_j <- d_j / ||d_j|| * ||w_j||`` for every filter j, so that networks which only differ in
    the scale of their layers have the same landscape. Biases and BatchNorm parameters stay where
    they are (a zero direction): AWP's paper does not say; Li et al. call it ignoring ``biasbn``.

    Args:
        key: One typed key; direction ``i`` comes from ``fold_in(key, i)``, whatever ``count`` is.
        params: Weights w, a pytree of float arrays.
        count: Number of directions.
        normalisation: ``"filter"``: each slice of the last axis of a kernel (an output channel, an
            output neuron) gets the norm of that slice of w. ``"layer"``: each kernel gets the norm
            of w's (Stutz et al. 2021, eq. 2).
        ball: In place of the normalisation, which is short for ``WeightBall(1.0,
            scope="filter")`` or ``"leaf"``: other masks or sizes, or a ball of one's own.

    Returns:
        A pytree like ``params`` with leaves ``[count, ...]`` in the dtypes of ``params``; zero
        where the weights are zero.

    Raises:
        ValueError: For an unknown normalisation, a count below 1, a raw key, or no parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.landscape import directions
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
        >>> found = directions(jax.random.key(0), params)
        >>> print(jnp.linalg.norm(found["kernel"][0], axis=0).round(3), found["bias"][0])
        [5. 0.] [0. 0.]
    """
    ball = _ball(normalisation, ball, params)
    _check(key, params, count)
    # fold_in and not split: more directions leave the first ones as they are.
    keys = [jax.random.fold_in(key, index) for index in range(count)]
    return _stack([_scaled(ball, _noise(k, params), params) for k in keys])


def _loss(params: Params, function: Partial, images: Images, labels: Labels) -> Any:
    return cross_entropy(function(params, images), labels).mean()


_gradient = jax.jit(jax.grad(_loss))


@on_any_mesh(apply_fn="params images")
def adversarial_directions(
    apply_fn: ApplyFn,
    params: Params,
    key: Key,
    images: Images,
    labels: Labels,
    attack: Attack | None,
    count: int = 1,
    *,
    batch_size: int = 128,
    normalisation: str = "layer",
    ball: Any = None,
) -> Any:
    """The directions in which AWP perturbs weights: ascent of the loss on attacked mini-batches.

    ``d_l = ||w_l|| * g_l / ||g_l||`` (AWP, NeurIPS 2020, eq. 10 without its step size), where g is
    the gradient of the mean cross-entropy of one mini-batch in the weights, on adversarial examples
    made at w. The loss rises along +d. Every direction has a mini-batch of its own, as in training;
    unlike in training, ``apply_fn`` decides about BatchNorm statistics (running ones, usually).

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``; a ``jax.tree_util.Partial`` is
            compiled once for all parameters.
        params: Weights w.
        key: One typed key, for mini-batches and the attack; direction ``i`` uses
            ``fold_in(key, i)``, whatever ``count`` is.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        attack: ``attack(logits_fn, key, images, labels)``; ``None`` for clean images.
        count: Number of directions.
        batch_size: Examples of a mini-batch (128 in the papers); all when there are fewer.
        normalisation: ``"layer"``, as AWP, or ``"filter"``; see ``directions``.
        ball: As in ``directions``.

    Returns:
        A pytree like ``params`` with leaves ``[count, ...]``.

    Raises:
        ValueError: As ``directions``; for bad images or labels.
    """
    ball = _ball(normalisation, ball, params)
    _check(key, params, count)
    checks.positive_integer(batch_size, "batch_size")
    check_examples(as_float(images), labels, getattr(attack, "ball", None))
    function = as_pytree_function(apply_fn)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    size = min(batch_size, len(labels))
    found = []
    for index in range(count):
        chosen_key, attack_key = jax.random.split(jax.random.fold_in(key, index))
        # Without replacement, as a batch of an epoch has them.
        chosen = jax.random.choice(chosen_key, len(labels), (size,), replace=False)
        keys, batch, batch_labels = parallel.follow(
            params,
            (
                example_keys(attack_key, size),
                float_images(images[chosen], params),
                labels[chosen],
            ),
        )
        if attack is not None:
            logits_fn = logits_at(function, params)
            batch = looked_at(attack, logits_fn, keys, batch, batch_labels).images
        gradient = _gradient(params, function, batch, batch_labels)
        found.append(_scaled(ball, gradient, params))
    return _stack(found)
