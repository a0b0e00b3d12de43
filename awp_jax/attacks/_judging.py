"""What AutoAttack asks of single batches: projections and verdicts, compiled for one size."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import parallel
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._gradient import model_key
from awp_jax.attacks._model import ranked_verdict
from awp_jax.balls import InputBall
from awp_jax.typing import Key


def padded(rows: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Repeats the first of ``rows`` until the smallest of ``sizes`` that fits is full."""
    # With an example and not with zeros: it is one that model and ball are known to take.
    size = min(n for n in sizes if n >= len(rows))
    return np.concatenate([rows, np.full(size - len(rows), rows[0])]).astype(int)


def batches(rows: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Cuts ``rows`` into batches of the largest size; the last may be shorter (pad it)."""
    return [rows[first : first + sizes[0]] for first in range(0, len(rows), sizes[0])]


def filled(count: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All of ``range(count)`` as batches of ``size``: ``(those of the batch, padded)``."""
    for part in batches(np.arange(count), (size,)):
        yield part, padded(part, (size,))


@jax.jit
def _look(
    goal: Goal, function: Partial, keys: Key | None, draw: Any, images: Any, labels: Any
) -> tuple[Any, Any, Any]:
    key = None if keys is None else model_key(keys, draw)
    found = ranked_verdict(function, images, labels, key, goal)
    return found.result.success, found.result.loss, found.said


def evaluate(
    function: Partial,
    goal: Goal,
    keys: Key | None,
    draw: int,
    images: np.ndarray,
    labels: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdict on all images in padded batches.

    Args:
        function: The model.
        goal: What counts as success.
        keys: One typed key per example for a randomised model, else ``None``.
        draw: The number of the random pass, one that no step has: the draw of the verdict is not
            one that the attack has seen.
        images: ``[examples, ...]``.
        labels: ``[examples]``.
        size: Of every batch, so that one program judges the clean images and all attacks.

    Returns:
        ``(success, loss, said)`` as NumPy arrays.
    """
    kinds = (bool, np.float64, np.int32)
    wholes: list[np.ndarray] = [np.zeros(len(labels), kind) for kind in kinds]
    for part, rows in filled(len(labels), size):
        arrays = parallel.follow(function, (images[rows], labels[rows]))
        if keys is not None:
            arrays = (*parallel.follow(function, (keys[rows],)), draw, *arrays)
        else:
            arrays = (None, 0, *arrays)
        found = parallel.to_host(_look(goal, function, *arrays))
        for whole, values in zip(wholes, found, strict=True):
            if values is not None:
                whole[part] = values[: len(part)]
    success, loss, said = wholes
    return success, loss, said


@jax.jit
def _project(ball: InputBall, centre: Any, point: Any) -> Any:
    return ball.project(centre, point)


@jax.jit
def _clip(ball: InputBall, centre: Any, point: Any) -> Any:
    return ball.clip(centre, point)


def inside(
    ball: Any, images: np.ndarray, rows: np.ndarray, points: np.ndarray, size: int, *, exact: bool
) -> np.ndarray:
    """Points projected on the ball around some of the images.

    Args:
        ball: Of all images.
        images: ``[examples, ...]``.
        rows: Which of them, ``[points]``.
        points: ``[points, ...]``.
        size: Of the batches.
        exact: In L2 and L1, shrink by the rounding error that float32 leaves.
    """
    if not isinstance(ball, InputBall):  # anybody's, which may know nothing of jit
        return np.array(ball.project(jnp.asarray(images[rows]), jnp.asarray(points)))
    found = np.empty_like(points)
    for part, padding in filled(len(rows), size):
        own, centre = ball.examples(images, rows[padding]), images[rows[padding]]
        point = np.array(_project(own, centre, points[padding]))
        if exact and ball.norm in ("l2", "l1"):
            point = np.asarray(_clip(own, centre, _shrunk(own, centre, point)))
        found[part] = point[: len(part)]
    return found


def _shrunk(ball: InputBall, centre: np.ndarray, point: np.ndarray) -> np.ndarray:
    # In float64, where the excess that rounding leaves can be seen at all.
    move = point.astype(np.float64) - centre
    order = {"l2": 2, "l1": 1}[ball.norm]
    lengths = np.linalg.norm(move.reshape(len(move), -1), order, axis=1)
    lengths = lengths.reshape((-1,) + (1,) * (move.ndim - 1))
    radius = np.asarray(ball.radius, np.float64)
    radius = radius.reshape((-1,) + (1,) * (move.ndim - 1))
    # 1e-30 keeps the quotient finite where nothing moved; that is not outside, and not scaled.
    scale = np.minimum(1.0, radius / np.maximum(lengths, 1e-30))
    return np.where(lengths > radius, (centre + scale * move), point).astype(point.dtype)
