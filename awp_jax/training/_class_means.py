"""What the network predicts for each class, averaged over an epoch: the weights of IKL."""

from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import mapped
from awp_jax.typing import Labels, Logits


def fresh(num_classes: int) -> dict[str, jax.Array]:
    """Equal shares, and nothing seen yet.

    Returns:
        ``"last"``: float ``[classes, classes]``, the mean prediction for each class in the last
        epoch; ``"sum"``: the predictions of this epoch so far.
    """
    shape = (num_classes, num_classes)
    return {"last": jnp.full(shape, 1 / num_classes), "sum": jnp.zeros(shape)}


def of_labels(means: dict[str, Any], labels: Labels) -> jax.Array:
    """The last epoch's mean for the class of each example, ``[batch, classes]``."""
    if labels.ndim == 1:
        return means["last"][labels]
    return labels.astype(means["last"].dtype) @ means["last"]  # of a mixture the mixture


def after(
    means: dict[str, Any],
    step: jax.Array,
    steps_per_epoch: int,
    logits: Logits,
    labels: Labels,
    *,
    mask: jax.Array | None,
    axis_name: str | None,
) -> dict[str, jax.Array]:
    """The means after a step.

    Args:
        means: As ``fresh`` gives them.
        step: Of the run, from 0.
        steps_per_epoch: Steps after which the means are those of an epoch.
        logits: Of the clean images, divided by the temperature.
        labels: int ``[batch]``, or float ``[batch, classes]``.
        mask: False for padding.
        axis_name: The mapped axis over which the batch is split, or ``None``.

    Returns:
        The same, with the sum begun anew at the end of an epoch.
    """
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    if mask is not None:
        labels = jnp.where(mask[:, None], labels, 0)
    seen = labels.T @ jax.nn.softmax(logits)
    total = means["sum"] + mapped.devices(axis_name) * mapped.mean(seen, axis_name)
    count = total.sum(axis=1, keepdims=True)
    mean = jnp.where(count > 0, total / jnp.where(count > 0, count, 1), means["last"])
    ends = (step + 1) % steps_per_epoch == 0
    return {
        "last": jnp.where(ends, mean, means["last"]),
        "sum": jnp.where(ends, jnp.zeros_like(total), total),
    }
