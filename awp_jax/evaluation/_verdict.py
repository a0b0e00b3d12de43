"""What a model says of a batch: one pass, or the average of many for a randomised model."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import streams
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._gradient import model_key
from awp_jax.attacks._model import ranked_verdict
from awp_jax.random import fold_keys


def judge_passes(
    function: Partial, keys: jax.Array, images: Any, labels: Any, passes: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Errors, losses, and what the model says.

    Args:
        function: ``images -> logits``; with ``passes`` above 0, ``(images, key) -> logits``.
        keys: Typed keys ``[batch]``; the passes draw from the first, one draw for the batch.
        images: float ``[batch, height, width, channels]`` in [0, 1].
        labels: int ``[batch]``.
        passes: Random passes to average over; 0 for a deterministic model.

    Returns:
        ``(error, loss, said)``: float32 ``[batch]`` the share of passes that misclassify, in
        [0, 1], and the mean cross-entropy in nats; int ``[batch]`` the class that most passes say.
    """
    pass_keys = fold_keys(keys[:1], streams.BATCH_VERDICT) if passes else None
    # From Python: one compiled pass serves any number of them.
    found = [
        ranked_verdict(
            function,
            images,
            labels,
            None if pass_keys is None else model_key(pass_keys, i),
            Goal(),
        )
        for i in range(max(passes, 1))
    ]
    error = jnp.mean(jnp.stack([f.result.success for f in found]).astype(jnp.float32), axis=0)
    loss = jnp.mean(jnp.stack([f.result.loss for f in found]), axis=0)
    said: Any = found[0].said
    if len(found) > 1:
        said_each: Any = [f.said for f in found]
        each = jnp.stack(said_each)
        votes = (each[:, None] == each[None]).sum(axis=0)
        said = jnp.take_along_axis(each, votes.argmax(axis=0)[None], axis=0)[0]
    return error, loss, said
