"""The last word on what an attack found: inside the ball, by a forward pass."""

from typing import Any

import numpy as np
from jax.tree_util import Partial

from awp_jax import parallel
from awp_jax.attacks._judging import evaluate, inside
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.attacks._survivors import Found, batch_sizes
from awp_jax.typing import Key


def check_finite(loss: np.ndarray, what: str) -> None:
    """Raises ``ValueError`` where the model returns NaN for images."""
    # The argmax of NaN is a class like any other, so the verdict itself would say nothing.
    if np.isnan(loss).any():
        raise ValueError(
            f"The model returns NaN for {int(np.isnan(loss).sum())} of {len(loss)} {what} images: "
            "no verdict is possible."
        )


def verdicts(
    judging: SteppedAttack,
    function: Partial,
    keys: Key | None,
    images: np.ndarray,
    labels: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``evaluate`` by the settings of ``judging``; keys are needed of a randomised model only."""
    return evaluate(function, judging.goal, keys, judging.passes + 1, images, labels, size)


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
    size = batch_sizes(min(batch_size, len(labels)), parallel.shards(function))[0]
    broken, adversarial = np.zeros(len(labels), bool), images.copy()
    losses, classes = np.zeros(len(labels), np.float64), np.zeros(len(labels), np.int32)
    if len(rows) == 0:
        return broken, adversarial, losses, classes
    adversarial[rows] = inside(ball, images, rows, found.images[rows], size, exact=True)
    # With the keys of the examples, not those of the attack: a randomised model draws anew.
    wrong, loss, said = verdicts(
        judging,
        function,
        keys[rows] if judging.eot else None,
        adversarial[rows],
        labels[rows],
        size,
    )
    check_finite(loss, "attacked")
    broken[rows], losses[rows], classes[rows] = wrong, loss, said
    return broken, adversarial, losses, classes
