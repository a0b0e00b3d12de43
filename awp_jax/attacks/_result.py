"""What every attack returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from awp_jax.attacks._goal import Goal
from awp_jax.balls._input_norms import per_example


class AttackResult(NamedTuple):
    """The outcome of an attack.

    Attributes:
        images: The inputs, float ``[batch, ...]`` (a pytree where the model takes one): for each
            example one with which the attack has succeeded when it found one, else the one with the
            highest loss. Inside the ball and its bounds.
        success: bool ``[batch]``: whether ``images`` are misclassified, or what the attack calls
            success.
        loss: float ``[batch]``: the highest cross-entropy over restarts, in nats (the robust loss);
            its negative for targeted attacks; for a ``success`` of one's own the attack's loss.
        steps: int ``[batch]``: steps (or queries) until the first success, 0 for a misclassified
            clean image and where nothing was found; ``None`` for attacks that do not look.
    """

    images: Any
    success: jax.Array
    loss: jax.Array
    steps: jax.Array | None = None


def judge(
    logits_fn: Callable[[Any], Any], images: Any, labels: Any, goal: Goal | None = None
) -> AttackResult:
    """Looks at what the model says of ``images``: the verdict is always a forward pass."""
    outputs, goal = logits_fn(images), Goal() if goal is None else goal
    return AttackResult(images, goal.succeeded(outputs, labels), goal.judged(outputs, labels))


def choose(mask: jax.Array, first: Any, second: Any) -> Any:
    """``first`` where ``mask [batch]``, else ``second``: pytrees of ``[batch, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(per_example(mask, a), a, b), first, second)


def worse(first: AttackResult, second: AttackResult) -> AttackResult:
    """Of two results, the worse for the model, example by example."""
    better_found = second.success & ~first.success
    same_and_higher = (second.success == first.success) & (second.loss > first.loss)
    steps = None
    if first.steps is not None and second.steps is not None:
        steps = jnp.where(first.success, first.steps, second.steps)
    return AttackResult(
        choose(better_found | same_and_higher, second.images, first.images),
        first.success | second.success,
        jnp.maximum(first.loss, second.loss),
        steps,
    )
