"""The last word on what an attack found: inside the ball, by a forward pass."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import parallel
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.attacks._survivors import Found, batch_sizes, evaluate
from awp_jax.balls import InputBall
from awp_jax.typing import Key


def check_finite(loss: np.ndarray, what: str) -> None:
    """Raises ``ValueError`` where the model returns NaN for images."""
    # The argmax of NaN is a class like any other, so the verdict itself would say nothing.
    if np.isnan(loss).any():
        raise ValueError(
            f"The model returns NaN for {int(np.isnan(loss).sum())} of {len(loss)} {what} images: "
            "no verdict is possible."
        )


def confirmed(
    found: Found,
    function: Partial,
    judging: SteppedAttack,
    ball: Any,
    keys: Key,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Projects what was found and judges it: ``(broken, images, loss, said)``."""
    rows = np.flatnonzero(found.success)
    sizes = batch_sizes(min(batch_size, len(labels)), parallel.shards(function))
    broken, adversarial = np.zeros(len(labels), bool), images.copy()
    losses, classes = np.zeros(len(labels), np.float64), np.zeros(len(labels), np.int32)
    if len(rows) == 0:
        return broken, adversarial, losses, classes
    if isinstance(ball, InputBall):
        ball = ball.examples(images, rows)
    adversarial[rows] = _inside(ball, images[rows], found.images[rows])
    # With the keys of the examples, not those of the attack: a randomised model draws anew.
    wrong, loss, said = evaluate(
        function, judging, keys[rows], adversarial[rows], labels[rows], sizes
    )
    check_finite(loss, "attacked")
    broken[rows], losses[rows], classes[rows] = wrong, loss, said
    return broken, adversarial, losses, classes


def _inside(ball: Any, centre: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The projection; for L2 and L1 shrunk by the rounding error that float32 leaves."""
    point = np.array(ball.project(jnp.asarray(centre), jnp.asarray(point)))
    if not (isinstance(ball, InputBall) and ball.norm in ("l2", "l1")):
        return point
    # In float64, where the excess that rounding leaves can be seen at all.
    move = point.astype(np.float64) - centre
    order = {"l2": 2, "l1": 1}[ball.norm]
    lengths = np.linalg.norm(move.reshape(len(move), -1), order, axis=1)
    lengths = lengths.reshape((-1,) + (1,) * (move.ndim - 1))
    radius = np.asarray(ball.radius, np.float64)
    radius = radius.reshape((-1,) + (1,) * (move.ndim - 1))
    # 1e-30 keeps the quotient finite where nothing moved; that is not outside, and not scaled.
    scale = np.minimum(1.0, radius / np.maximum(lengths, 1e-30))
    point = np.where(lengths > radius, (centre + scale * move), point).astype(point.dtype)
    return np.asarray(ball.clip(centre, point))
