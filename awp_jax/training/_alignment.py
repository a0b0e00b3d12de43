"""GradAlign: gradients in the images that agree all over the ball."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import mapped
from awp_jax.balls import InputBall
from awp_jax.typing import Gradients, Images, Key


def beside(ball: Any, keys: Key, images: Images) -> Any:
    """Images plus eta, uniform in the ball; not clipped to [0, 1], as released."""
    if isinstance(ball, InputBall):
        ball = dataclasses.replace(ball, low=None, high=None)
    return ball.sample(keys, images)


def misalignment(
    losses: Callable[[Images], jax.Array],
    images: Images,
    others: Images,
    relative: jax.Array | None,
    axis_name: str | None,
) -> jax.Array:
    """1 - cos(gradient at x, gradient at x + eta), averaged (Andriushchenko and Flammarion 2020).

    Eq. 4 of "Understanding and improving fast adversarial training" (NeurIPS), without lambda. As
    in the released ``train.py``, the mean is over the examples of which neither gradient is zero,
    and differentiable: through both gradients.

    Args:
        losses: ``images -> [batch]``.
        images: float ``[batch, height, width, channels]``.
        others: Like them: x + eta.
        relative: Weights of the examples, ``[batch]``; 0 for padding. ``None``: all count the same.
        axis_name: The mapped axis over which the batch is split, or ``None``.

    Returns:
        A scalar in [0, 2], whose mean over devices is that of the whole batch.
    """

    def gradient(x: Images) -> Gradients:
        return jax.grad(lambda now: losses(now).sum())(x)

    first, first_counts = _unit(gradient(images))
    second, second_counts = _unit(gradient(others))
    counts = (first_counts & second_counts).astype(first.dtype)
    counts = counts if relative is None else counts * relative
    apart = 1 - (first * second).sum(axis=tuple(range(1, first.ndim)))
    count = mapped.mean(counts.mean(), axis_name)
    return (apart * counts).mean() / jnp.where(count > 0, count, 1)


def _unit(gradient: Gradients) -> tuple[jax.Array, jax.Array]:
    """Gradients of length 1, and which had a length; differentiable where they had none too."""
    axes = tuple(range(1, gradient.ndim))
    # Divided by a constant first: squares of small gradients underflow.
    largest = jax.lax.stop_gradient(jnp.abs(gradient).max(axis=axes, keepdims=True))
    some = largest > 0
    scaled = jnp.where(some, gradient / jnp.where(some, largest, 1), 1)
    length = jnp.sqrt(jnp.square(scaled).sum(axis=axes, keepdims=True))
    return scaled / length, some.reshape(-1)
