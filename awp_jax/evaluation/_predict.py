"""What a model says of images without labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks, parallel
from awp_jax.attacks._model import as_pytree_function
from awp_jax.data import as_float, padded_batches
from awp_jax.explicit import on_any_mesh


@jax.jit
def _predict(logits_fn, images):
    probabilities = jax.nn.softmax(logits_fn(images))
    return probabilities.argmax(axis=1).astype(jnp.int32), probabilities.max(axis=1)


@on_any_mesh(logits_fn="images")
def predict(
    logits_fn: Callable, images: Any, *, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each image, and its probability.

    Args:
        logits_fn: ``images -> logits [batch, classes]``.
        images: ``[n, height, width, channels]``, uint8 or float in [0, 1]; they stay on the host.
        batch_size: Images per forward pass; does not change the result.

    Returns:
        ``(labels int32 [n], confidence float32 [n] in [0, 1])``.
    """
    checks.positive_integer(batch_size, "batch_size")
    logits_fn, n = as_pytree_function(logits_fn), len(images)
    labels, confidence = np.empty(n, np.int32), np.empty(n, np.float32)
    for indices, mask in padded_batches(n, min(batch_size, n), parallel.shards(logits_fn)):
        (batch,) = parallel.follow(logits_fn, (jnp.asarray(images[indices]),))
        found = parallel.to_host(_predict(logits_fn, as_float(batch)))
        kept = indices[mask]
        labels[kept], confidence[kept] = (part[mask] for part in found)
    return labels, confidence
