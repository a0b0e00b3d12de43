"""Learning-rate schedules in fractional epochs, as the papers state them."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from awp_jax import checks

NAMES = ("constant", "piecewise", "cosine", "cyclic", "linear", "one-cycle")


def schedule(
    name: str,
    learning_rate: float,
    epochs: int,
    steps_per_epoch: int,
    *,
    milestones: tuple[float, ...] = (0.5, 0.75),
    factor: float = 0.1,
    peak: float = 0.4,
    warmup_epochs: float = 0.0,
) -> Callable[..., Any]:
    """A learning rate as a function of the optimiser step.

    Step ``s`` (from 0) has the rate of fractional epoch ``t = (s + 1) / steps_per_epoch``, as in
    the released ``train_cifar10.py``: ``lr_schedule(epoch + (i + 1) / len(train_batches))``.

    Args:
        name: ``"constant"``; ``"piecewise"``: times ``factor`` at each milestone (paper: epochs 100
            and 150 of 200); ``"cosine"``: ``lr / 2 * (1 + cos(pi t / T))``; ``"cyclic"``: linear
            from 0 to ``learning_rate`` at ``peak * T`` and back to 0 (paper: 0.2 at epoch 80 of
            200); ``"one-cycle"``: along half a cosine from a 25th of ``learning_rate`` up to it at
            ``peak * T``, and down to a 250,000th, as ``torch.optim.lr_scheduler.OneCycleLR``
            (Smith and Topin 2017), whose momentum moves the other way and here does not;
            ``"linear"``: constant up to T // 3, then straight to a tenth at 2 T // 3 and to a
            hundredth at T (Rice et al. 2020, which the AWP code builds on).
        learning_rate: The highest rate.
        epochs: T, all epochs.
        steps_per_epoch: Optimiser steps in an epoch, the smaller last batch counted.
        milestones: For ``"piecewise"``, as fractions of T.
        factor: For ``"piecewise"``.
        peak: For ``"cyclic"`` and ``"one-cycle"``, as a fraction of T.
        warmup_epochs: Epochs in which the rate is multiplied by t / ``warmup_epochs``.

    Returns:
        ``step -> learning rate``, usable in optax and under ``jit``.

    Raises:
        ValueError: For an unknown name.
    """
    checks.choice(name, NAMES, "schedule")
    total = epochs * steps_per_epoch
    if warmup_epochs:
        plain = schedule(
            name,
            learning_rate,
            epochs,
            steps_per_epoch,
            milestones=milestones,
            factor=factor,
            peak=peak,
        )
        rising = warmup(warmup_epochs, steps_per_epoch)
        return lambda step: rising(step) * plain(step)
    if name == "one-cycle":
        return _one_cycle(learning_rate, total, peak)
    if name == "piecewise":
        # Counted in whole steps, so that a drop happens at exactly its step; 1e-9 takes back what
        # a fraction such as 0.75 may lose.
        drops = [math.ceil(m * total - 1e-9) for m in milestones]
        return lambda step: learning_rate * factor ** sum((step + 1 >= d) * 1.0 for d in drops)

    def rate(step: Any) -> Any:
        t = (step + 1) / total
        if name == "constant":
            return learning_rate * jnp.ones_like(t)
        if name == "cosine":
            return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * t))
        if name == "linear":
            knots = jnp.array([0.0, epochs // 3 / epochs, epochs * 2 // 3 / epochs, 1.0])
            values = jnp.array([1.0, 1.0, 0.1, 0.01])
        else:
            knots, values = jnp.array([0.0, peak, 1.0]), jnp.array([0.0, 1.0, 0.0])
        return learning_rate * jnp.interp(t, knots, values)

    return rate


def warmup(epochs: float, steps_per_epoch: int) -> Callable[..., Any]:
    """A factor that rises in a straight line from 0 to 1 within so many epochs, by step."""
    return lambda step: jnp.minimum(1.0, jnp.asarray(step + 1, float) / (epochs * steps_per_epoch))


def _one_cycle(highest: float, total: int, peak: float) -> Callable[..., Any]:
    first, last = highest / 25, highest / 25 / 1e4  # PyTorch's div_factor, final_div_factor
    top, end = peak * total - 1, total - 1

    def between(start: Any, goal: Any, part: Any) -> Any:
        return goal + (start - goal) / 2 * (1 + jnp.cos(jnp.pi * part))

    def rate(step: Any) -> Any:
        up = between(first, highest, step / max(top, 1e-9))
        down = between(highest, last, (step - top) / max(end - top, 1e-9))
        return jnp.where(step <= top, up, down)

    return rate
