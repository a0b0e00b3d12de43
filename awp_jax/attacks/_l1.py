"""Steps of L1 attacks: sparse ascent, and the way to a hyperplane inside the pixel box."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.balls._norms import at_least_float32, is_float
from awp_jax.pytrees import flatten
from awp_jax.typing import Gradients


def _rows(values: Any, like: jax.Array) -> jax.Array:
    """A number or ``[batch]`` as ``[batch or 1, 1]``."""
    return jnp.reshape(jnp.asarray(values, like.dtype), (-1, 1))


def _rooms(signs: jax.Array, low: Any, high: Any) -> jax.Array:
    """How far each entry can go in the direction of its sign, given bounds of the displacement."""

    def bound(value: Any, sign: float) -> jax.Array:
        if value is None:
            return jnp.full_like(signs, jnp.inf)
        broadcast = jnp.broadcast_to(jnp.asarray(sign * value, signs.dtype), signs.shape)
        # A point that rounding left beyond its bound has no room, and no negative one.
        return jnp.maximum(broadcast, 0.0)

    return jnp.where(signs < 0, bound(low, -1.0), bound(high, 1.0))


def sparse_direction(gradient: Gradients, share: Any, movable: jax.Array | None = None) -> Any:
    """The step of APGD-L1: the signs of the largest entries of the gradient, of L1 length 1.

    Croce and Hein, ICML 2021, section 4. As in fra31/auto-attack, the threshold is the entry at
    ``floor((1 - share) n)`` of the n sorted sizes, and ties with it are taken too.

    Args:
        gradient: ``[batch, ...]``, or a pytree of them: then over all leaves together; integers
            stay 0. It is 0 where an entry may not move.
        share: Of the entries to move, in [0, 1]: a number or ``[batch]``. At least one moves.
        movable: How many entries of each example may move, ``[batch]``; ``None`` for all.

    Returns:
        Like ``gradient``; zero where the gradient of an example is zero or not finite.
    """
    leaves, structure = flatten(gradient)
    wide = [at_least_float32(g).reshape(g.shape[0], -1) for g in leaves if is_float(g)]
    if not wide:
        return gradient
    flat = jnp.concatenate(wide, axis=1)
    flat = jnp.where(jnp.isfinite(flat).all(axis=1, keepdims=True), flat, 0.0)
    size = jnp.abs(flat)
    count = flat.shape[1]
    free = _rows(count if movable is None else movable, flat)
    rank = jnp.clip(jnp.floor((1 - _rows(share, flat)) * free), 0, jnp.maximum(free - 1, 0))
    # What may not move has size 0 and is sorted before the rest.
    rank = jnp.minimum(rank + (count - free), count - 1).astype(jnp.int32)
    rank = jnp.broadcast_to(rank, (flat.shape[0], 1))
    threshold = jnp.take_along_axis(jnp.sort(size, axis=1), rank, axis=1)
    signs = jnp.where(size >= threshold, jnp.sign(flat), 0.0)
    # Without a gradient there are no signs to count: 0 / 1, not 0 / 0.
    way = signs / jnp.maximum(jnp.abs(signs).sum(axis=1, keepdims=True), 1.0)
    ends = np.cumsum([part.shape[1] for part in wide])
    parts = iter(jnp.split(way, ends[:-1], axis=1))
    return jax.tree.unflatten(
        structure,
        [next(parts).reshape(g.shape).astype(g.dtype) if is_float(g) else g * 0 for g in leaves],
    )


def boundary_displacement_l1(
    point: jax.Array, normal: jax.Array, change: jax.Array, low: Any = 0.0, high: Any = 1.0
) -> jax.Array:
    """The shortest way in L1 to a hyperplane inside the pixel box.

    Solves ``min ||d||_1`` subject to ``<normal, d> = change`` and ``low <= point + d <= high``. A
    linear programme with one equation: entries with the largest ``|normal|`` gain most per unit of
    length, so they are filled one after another, the last one in part (FAB, Croce and Hein, ICML
    2020, appendix A).

    Args:
        point: Images ``[batch, ...]`` in [low, high].
        normal: ``[batch, ...]``.
        change: ``[batch]``; where the box allows less, every pixel that helps goes to its bound.
        low: Least pixel value: a number, an array like ``point``, or ``None`` for none.
        high: Largest pixel value, likewise.

    Returns:
        ``d [batch, ...]``; zero where ``normal`` is zero.
    """
    shape, dtype = point.shape, point.dtype
    wide_point = at_least_float32(point)
    flip = jnp.where(change < 0, -1.0, 1.0).astype(wide_point.dtype)
    flip = flip.reshape((-1,) + (1,) * (point.ndim - 1))
    normal = at_least_float32(normal) * flip
    below = None if low is None else low - wide_point
    above = None if high is None else high - wide_point
    rooms = _rooms(normal, below, above).reshape(shape[0], -1)
    weight = jnp.abs(normal).reshape(shape[0], -1)
    wanted = _rows(jnp.abs(change), weight)
    order = jnp.argsort(-weight, axis=1)
    sorted_weight = jnp.take_along_axis(weight, order, axis=1)
    sorted_rooms = jnp.take_along_axis(rooms, order, axis=1)
    helps = sorted_weight > 0
    # 0 * inf would be NaN where there is no box.
    gains = jnp.where(helps, sorted_weight * jnp.where(helps, sorted_rooms, 0.0), 0.0)
    before = jnp.concatenate(
        [jnp.zeros_like(gains[:, :1]), jnp.cumsum(gains, axis=1)[:, :-1]], axis=1
    )
    missing = (wanted - before) / jnp.where(helps, sorted_weight, 1.0)
    filled = jnp.where(helps, jnp.clip(missing, 0.0, sorted_rooms), 0.0)
    # Sorting a permutation gives its inverse: every length goes back to its pixel.
    back = jnp.argsort(order, axis=1)
    length = jnp.take_along_axis(filled, back, axis=1).reshape(shape)
    return (jnp.sign(normal) * length).astype(dtype)
