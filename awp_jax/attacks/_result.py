"""What every attack returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from awp_jax.attacks._losses import cross_entropy


class AttackResult(NamedTuple):
    """The outcome of an attack.

    Attributes:
        images: float ``[batch, ...]``: for each example a misclassified image when one was found,
            else the one with the highest loss. Inside the ball and the pixel range.
        success: bool ``[batch]``: whether ``images`` are misclassified.
        loss: float ``[batch]``: the highest cross-entropy over restarts, in nats (the robust loss).
        steps: int ``[batch]``: steps (or queries) until the first success, 0 for a misclassified
            clean image and where nothing was found; ``None`` for attacks that do not look.
    """

    images: jax.Array
    success: jax.Array
    loss: jax.Array
    steps: jax.Array | None = None


def judge(logits_fn, images: jax.Array, labels: jax.Array) -> AttackResult:
    """Looks at what the model says of ``images``: the verdict is always a forward pass."""
    logits = logits_fn(images)
    return AttackResult(images, logits.argmax(axis=1) != labels, cross_entropy(logits, labels))


def worse(first: AttackResult, second: AttackResult) -> AttackResult:
    """Of two results, the worse for the model, example by example."""
    better_found = second.success & ~first.success
    same_and_higher = (second.success == first.success) & (second.loss > first.loss)
    take = better_found | same_and_higher
    steps = None
    if first.steps is not None and second.steps is not None:
        steps = jnp.where(first.success, first.steps, second.steps)
    shape = (-1,) + (1,) * (first.images.ndim - 1)
    return AttackResult(
        jnp.where(take.reshape(shape), second.images, first.images),
        first.success | second.success,
        jnp.maximum(first.loss, second.loss),
        steps,
    )
