"""The mathematics of L1 attacks: ball and box, sparse steps, hyperplane and box."""

from typing import Any

import jax
import jax.numpy as jnp

# Newton steps that remove the rounding of the cumulative sums; the piece is the right one already.
_POLISHING_STEPS = 2


def _wide(values: jax.Array) -> jax.Array:
    # Sums over thousands of pixels: half precision is widened, float64 stays.
    narrow = jnp.finfo(values.dtype).bits < 32
    return values.astype(jnp.float32) if narrow else values


def _rows(values: Any, like: jax.Array) -> jax.Array:
    """A number or ``[batch]`` as ``[batch or 1, 1]``."""
    return jnp.reshape(jnp.asarray(values, like.dtype), (-1, 1))


def _rooms(signs: jax.Array, low: Any, high: Any) -> jax.Array:
    """How far each entry can go in the direction of its sign, given bounds of the displacement."""

    def bound(value: Any, sign: float) -> jax.Array:
        if value is None:
            return jnp.full_like(signs, jnp.inf)
        broadcast = jnp.broadcast_to(jnp.asarray(sign * value, signs.dtype), signs.shape)
        return jnp.maximum(broadcast, 0.0)

    return jnp.where(signs < 0, bound(low, -1.0), bound(high, 1.0))


def project_l1(
    displacement: jax.Array, radius: Any, low: Any = None, high: Any = None
) -> jax.Array:
    """Exact Euclidean projection on the intersection of an L1 ball and a box.

    Solves ``min ||e - d||_2`` subject to ``||e||_1 <= radius`` and ``low <= e <= high``. The
    solution is ``e_i = sign(d_i) min(max(|d_i| - t, 0), room_i)`` with the least ``t >= 0`` that
    keeps the radius (Croce and Hein, "Mind the box", ICML 2021, proposition 3.1). Projecting on the
    ball first and clipping afterwards is not the same: it leaves radius unused. The length of e
    is piecewise linear in t with breakpoints ``|d_i|`` and ``|d_i| - room_i``: one sort finds the
    piece, and on it t is a quotient of sums.

    Args:
        displacement: ``d [batch, ...]``, from the clean images; float.
        radius: >= 0, a number or ``[batch]``, in pixel units.
        low: Bounds of the displacement (least pixel value minus clean image), at most 0: an array
            that broadcasts to ``[batch, ...]``, a number, or ``None`` for none.
        high: Likewise, at least 0.

    Returns:
        ``e [batch, ...]``, in the dtype of ``displacement``.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks._l1 import project_l1
        >>> project_l1(jnp.array([[3.0, 1.0]]), 2.0, high=0.5).tolist()  # [0.5, 0] if clipped after
        [[0.5, 1.0]]
    """
    shape, dtype = displacement.shape, displacement.dtype
    rooms = _rooms(_wide(displacement), low, high).reshape(shape[0], -1)
    flat = _wide(displacement).reshape(shape[0], -1)
    size = jnp.abs(flat)
    limit = _rows(radius, size)

    # Downwards in t: an entry begins to grow at its size, and stops where it fills its room.
    full = jnp.maximum(size - rooms, 0.0)
    breaks = jnp.concatenate([size, full], axis=1)
    change = jnp.concatenate([jnp.ones_like(size), -jnp.ones_like(size)], axis=1)
    order = jnp.argsort(-breaks, axis=1)
    breaks = jnp.take_along_axis(breaks, order, axis=1)
    growing = jnp.cumsum(jnp.take_along_axis(change, order, axis=1), axis=1)
    lower = jnp.concatenate([breaks[:, 1:], jnp.zeros_like(breaks[:, :1])], axis=1)
    lengths = jnp.cumsum(growing * (breaks - lower), axis=1)
    piece = jnp.sum(lengths < limit, axis=1, keepdims=True)
    piece = jnp.minimum(piece, breaks.shape[1] - 1)
    top = jnp.take_along_axis(breaks, piece, axis=1)
    bottom = jnp.take_along_axis(lower, piece, axis=1)

    middle = (top + bottom) / 2
    t = jnp.clip(middle + _excess(size, rooms, middle, limit), bottom, top)
    for _ in range(_POLISHING_STEPS):
        t = jnp.maximum(t + _excess(size, rooms, t, limit), 0.0)
    inside = jnp.minimum(size, rooms).sum(axis=1, keepdims=True) <= limit
    t = jnp.where(inside, 0.0, t)
    nearest = jnp.sign(flat) * jnp.minimum(jnp.maximum(size - t, 0.0), rooms)
    return nearest.reshape(shape).astype(dtype)


def _excess(size: jax.Array, rooms: jax.Array, t: jax.Array, limit: jax.Array) -> jax.Array:
    """Newton's step in t: length above the limit, over the number of entries that react to t."""
    left = size - t
    length = jnp.minimum(jnp.maximum(left, 0.0), rooms).sum(axis=1, keepdims=True)
    reacting = jnp.sum((left > 0) & (left < rooms), axis=1, keepdims=True).astype(size.dtype)
    return jnp.where(reacting > 0, (length - limit) / jnp.maximum(reacting, 1.0), 0.0)


def sparse_direction(gradient: jax.Array, share: Any) -> jax.Array:
    """The step of APGD-L1: the signs of the largest entries of the gradient, of L1 length 1.

    Croce and Hein, ICML 2021, section 4. As in fra31/auto-attack, the threshold is the entry at
    ``floor((1 - share) n)`` of the n sorted sizes, and ties with it are taken too.

    Args:
        gradient: ``[batch, ...]``.
        share: Of the entries to move, in [0, 1]: a number or ``[batch]``. At least one moves.

    Returns:
        ``[batch, ...]``; zero where the gradient of an example is zero.
    """
    flat = gradient.reshape(gradient.shape[0], -1)
    size = jnp.abs(flat)
    count = size.shape[1]
    share = jnp.broadcast_to(_rows(share, _wide(flat)), (flat.shape[0], 1))
    rank = jnp.clip(jnp.floor((1 - share) * count), 0, count - 1).astype(jnp.int32)
    threshold = jnp.take_along_axis(jnp.sort(size, axis=1), rank, axis=1)
    signs = jnp.where(size >= threshold, jnp.sign(flat), jnp.zeros_like(flat))
    moved = jnp.maximum(jnp.abs(_wide(signs)).sum(axis=1, keepdims=True), 1.0)
    return (_wide(signs) / moved).astype(gradient.dtype).reshape(gradient.shape)


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
    wide_point = _wide(point)
    flip = jnp.where(change < 0, -1.0, 1.0).astype(wide_point.dtype)
    flip = flip.reshape((-1,) + (1,) * (point.ndim - 1))
    normal = _wide(normal) * flip
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
    back = jnp.argsort(order, axis=1)
    length = jnp.take_along_axis(filled, back, axis=1).reshape(shape)
    return (jnp.sign(normal) * length).astype(dtype)
