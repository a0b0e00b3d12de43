"""Gradients of a loss in the images, also averaged over the passes of a randomised model (EOT)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import streams
from awp_jax.ascent import loop


def _bound(function, key, images):
    return function(images, key)


def with_key(function: Callable, key: jax.Array) -> Partial:
    """``images -> function(images, key)``: one draw of a randomised model."""
    return Partial(_bound, function, key)


def model_key(keys: jax.Array, index: int | jax.Array) -> jax.Array:
    """The key that a randomised model draws from at step ``index``, one for the whole batch.

    It comes from the first example's key. So a randomised model is the one case where the cut into
    batches matters: its noise is drawn for a batch.
    """
    return jax.random.fold_in(jax.random.fold_in(keys[0], streams.BATCH_MODEL), index)


def loss_and_gradient(
    function: Callable,
    objective: Callable[[jax.Array], jax.Array],
    point: jax.Array,
    key: jax.Array | None = None,
    eot: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, per-example losses and their gradients in the images.

    Args:
        function: ``images -> logits``, or with ``eot > 0`` ``(images, key) -> logits``.
        objective: ``logits [batch, classes] -> [batch]``.
        point: Images ``[batch, ...]``.
        key: One typed key, for ``eot > 0``.
        eot: Number of random passes to average over (expectation over transformation, Athalye et
            al. 2018); 0 for a deterministic model.

    Returns:
        ``(logits, losses, gradient)``; losses and gradient averaged, logits of the last pass.
    """

    def total(images, *args):
        logits = function(images, *args)
        losses = objective(logits)
        return losses.sum(), (logits, losses)

    gradient_fn = jax.grad(total, has_aux=True)
    if not eot:
        gradient, (logits, losses) = gradient_fn(point)
        return logits, losses, gradient
    assert key is not None
    gradient, (logits, losses) = gradient_fn(point, jax.random.fold_in(key, 0))

    def another(index, sums):
        more, (logits, more_losses) = gradient_fn(point, jax.random.fold_in(key, index))
        return logits, sums[1] + more_losses, sums[2] + more

    logits, losses, gradient = loop(another, (logits, losses, gradient), eot - 1, first=1)
    scale = jnp.asarray(1 / eot, gradient.dtype)
    return logits, losses * scale.astype(losses.dtype), gradient * scale
