"""The L1 ball of inputs with bounds: its exact Euclidean projection."""

import jax
import jax.numpy as jnp

from awp_jax.balls._norms import at_least_float32


def project_l1(
    centres: list[jax.Array],
    moves: list[jax.Array],
    radius: jax.Array,
    lows: list[jax.Array | None],
    highs: list[jax.Array | None],
) -> list[jax.Array]:
    """The nearest displacements of L1 norm at most ``radius`` that stay within the bounds.

    Each is ``sign(m) * clip(|m| - t, 0, room)`` with one threshold ``t`` for each example, at
    which the norms add up to the radius (Croce and Hein, ICML 2021, section 3).

    Args:
        centres: The leaves of the inputs, each ``[batch, ...]``.
        moves: Displacements like them.
        radius: ``[batch]`` or ``[1]``, in the units of the inputs.
        lows: Least values, of shapes that broadcast against ``centres``, or ``None``.
        highs: Largest values.

    Returns:
        Displacements like ``moves``.
    """
    floats = [jnp.issubdtype(m.dtype, jnp.floating) for m in moves]
    flat, rooms = [], []
    for m, c, low, high, moving in zip(moves, centres, lows, highs, floats, strict=True):
        if not moving:
            continue
        room = jnp.full_like(m, jnp.inf)
        if high is not None:
            room = jnp.where(m > 0, high.astype(m.dtype) - c, room)
        if low is not None:
            room = jnp.where(m < 0, c - low.astype(m.dtype), room)
        flat.append(at_least_float32(jnp.abs(m)).reshape(m.shape[0], -1))
        rooms.append(at_least_float32(jnp.maximum(room, 0)).reshape(m.shape[0], -1))
    ends = [part.shape[1] for part in flat]
    size, room = jnp.concatenate(flat, axis=1), jnp.concatenate(rooms, axis=1)
    threshold = _threshold(size, room, radius.astype(size.dtype))
    shrunk = jnp.clip(size - threshold[:, None], 0.0, room)
    parts, first = [], 0
    for end in ends:
        parts.append(shrunk[:, first : first + end])
        first += end
    found = iter(parts)
    return [
        (next(found).reshape(m.shape) * jnp.sign(m)).astype(m.dtype) if moving else m
        for m, moving in zip(moves, floats, strict=True)
    ]


def _threshold(size: jax.Array, room: jax.Array, radius: jax.Array) -> jax.Array:
    """``t >= 0`` with ``sum(clip(size - t, 0, room)) = radius``, or 0 where that is inside."""
    # Falling in t, linear between these points: where an entry leaves its room, and where it ends.
    leaves_room = jnp.maximum(size - room, 0.0)
    points = jnp.sort(jnp.concatenate([leaves_room, size], axis=1), axis=1)

    def norm_at(t: jax.Array) -> jax.Array:
        return jnp.clip(size - t[:, None], 0.0, room).sum(axis=1)

    # Bisection over the sorted points finds the piece, and on it the answer is exact.
    count = points.shape[1]
    low = jnp.zeros(size.shape[0], jnp.int32)
    high = jnp.full(size.shape[0], count - 1, jnp.int32)
    # As many turns as halving may need: a constant, the same for all examples.
    for _ in range(max(count - 1, 1).bit_length()):
        middle = (low + high) // 2
        above = norm_at(jnp.take_along_axis(points, middle[:, None], axis=1)[:, 0]) > radius
        low = jnp.where(above, jnp.minimum(middle + 1, high), low)
        high = jnp.where(above, high, middle)
    end = jnp.take_along_axis(points, high[:, None], axis=1)
    begin = jnp.where(
        high[:, None] > 0,
        jnp.take_along_axis(points, jnp.maximum(high - 1, 0)[:, None], axis=1),
        0.0,
    )
    # Between two points no entry changes sides: the middle tells which shrink and which are full.
    inner = 0.5 * (begin + end)
    shrinks = (size > inner) & (size - inner < room)
    full = size - inner >= room
    fixed = jnp.where(full, room, 0.0).sum(axis=1)
    slope = shrinks.sum(axis=1).astype(size.dtype)
    total = jnp.where(shrinks, size, 0.0).sum(axis=1) + fixed - radius
    exact = total / jnp.maximum(slope, 1.0)
    # Rounding may lead out of the piece on which the line holds.
    exact = jnp.clip(exact, begin[:, 0], end[:, 0])
    inside = jnp.clip(size, 0.0, room).sum(axis=1) <= radius
    return jnp.where(inside, 0.0, exact)
