"""Averages of the weights: SWA and EMA, and BatchNorm statistics for them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.models import MOMENTUM
from awp_jax.typing import BatchStats, Images, Params

NAMES = ("swa", "ema")


def averaging_rate(
    name: str,
    steps_per_epoch: int,
    *,
    start_epoch: int = 0,
    decay: float = 0.999,
    warmup: bool = False,
) -> Callable[..., Any]:
    """How far the average moves towards the weights after each step.

    Until ``start_epoch`` epochs are done it is the weights themselves (for SWA also in the epoch
    after that, whose end is the first that counts).

    Args:
        name: ``"swa"``: the mean of the weights at the end of every epoch after ``start_epoch``
            (Izmailov et al., UAI 2018, algorithm 1, one cycle per epoch); ``"ema"``: after every
            step ``average <- decay * average + (1 - decay) * weights``.
        steps_per_epoch: Optimiser steps in an epoch.
        start_epoch: Epochs before averaging begins.
        decay: Of EMA, in [0, 1).
        warmup: Whether EMA's decay is at most (1 + n) / (10 + n) at the n-th step (from 0) after
            ``start_epoch``, as in TensorFlow, Rebuffi et al. 2021 and Wang et al. 2023: it forgets
            the first weights soon.

    Returns:
        ``step -> rate`` in [0, 1] for the step (from 0) that was just done.

    Raises:
        ValueError: For an unknown name or a decay out of range.
    """
    checks.choice(name, NAMES, "average")
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay!r}, but a number in [0, 1) was expected.")

    def rate(step: Any) -> Any:
        done = step + 1
        if name == "ema":
            later = step - start_epoch * steps_per_epoch
            kept = jnp.minimum(decay, (1 + later) / (10 + later)) if warmup else decay
            return jnp.where(later >= 0, 1 - kept, 1.0)
        # 1 / count makes a running mean; within an epoch the rate is 0, and the average rests.
        count = jnp.maximum(done // steps_per_epoch - start_epoch, 1)
        later = jnp.where(done % steps_per_epoch == 0, 1.0 / count, 0.0)
        return jnp.where(done < (start_epoch + 1) * steps_per_epoch, 1.0, later)

    return rate


def estimate_batch_stats(
    classifier: Any, params: Params, batch_stats: BatchStats, batches: Iterable[jax.Array]
) -> Any:
    """BatchNorm statistics of weights that were never trained, such as an average.

    The mean over the batches of each batch's mean and unbiased variance, as
    ``torch.optim.swa_utils.update_bn``.

    Args:
        classifier: From ``awp_jax.models``.
        params: The weights.
        batch_stats: Statistics of the right structure. Those that training does not move, such as
            the means of ``MeanSparse``, stay as they are; the values of others do not matter.
        batches: Of images, float ``[batch, height, width, channels]``; of one size to compile once.

    Returns:
        The statistics, like ``batch_stats``.
    """
    if not jax.tree.leaves(batch_stats):
        return batch_stats

    @jax.jit
    def add(total: Any, params: Params, start: BatchStats, images: Images) -> Any:
        # From zero the running statistics move to MOMENTUM times those of the batch.
        key = jax.random.key(0)  # dropout is no part of the statistics before it
        moved = classifier.apply(params, start, images, mode="update", key=key)[1]
        return jax.tree.map(lambda t, m, s: t + (m - s) / MOMENTUM, total, moved, start)

    start, total, count = None, jax.tree.map(jnp.zeros_like, batch_stats), 0
    for images in batches:
        if start is None:
            change = add(total, params, batch_stats, images)
            start = jax.tree.map(
                lambda old, new: jnp.zeros_like(old) if new.any() else old, batch_stats, change
            )
        total, count = add(total, params, start, images), count + 1
    return jax.tree.map(lambda t, s: s + t / count, total, start)
