"""Gradients of a loss in the inputs, also averaged over the passes of a randomised model (EOT)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import streams
from awp_jax.ascent import loop
from awp_jax.typing import Inputs, Key


def _bound(function: Callable[..., Any], key: Key, images: Inputs) -> Any:
    return function(images, key)


def with_key(function: Callable[..., Any], key: Key) -> Partial:
    """``images -> function(images, key)``: one draw of a randomised model."""
    return Partial(_bound, function, key)


def model_key(keys: Key, index: int | jax.Array) -> jax.Array:
    """The key that a randomised model draws from at step ``index``, one for the whole batch.

    It comes from the first example's key. So a randomised model is the one case where the cut into
    batches matters: its noise is drawn for a batch.
    """
    return jax.random.fold_in(jax.random.fold_in(keys[0], streams.BATCH_MODEL), index)


def loss_and_gradient(
    function: Callable[..., Any],
    objective: Callable[[Any], jax.Array],
    point: Inputs,
    key: Key | None = None,
    eot: int = 0,
) -> tuple[Any, jax.Array, Any]:
    """Outputs, per-example losses and their gradients in the inputs.

    Args:
        function: ``inputs -> outputs``, or with ``eot > 0`` ``(inputs, key) -> outputs``.
        objective: ``outputs -> [batch]``.
        point: Inputs ``[batch, ...]``, or a pytree of them; integers have no gradient.
        key: One typed key, for ``eot > 0``.
        eot: Number of random passes to average over (expectation over transformation, Athalye et
            al. 2018); 0 for a deterministic model.

    Returns:
        ``(outputs, losses, gradient)``; losses and gradient averaged, outputs of the last pass.
    """

    def total(images: Inputs, *args: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        outputs = function(images, *args)
        losses = objective(outputs)
        # Summed, not averaged: each example gets its own gradient, whatever the batch size.
        return losses.sum(), (outputs, losses)

    differentiate = jax.grad(total, has_aux=True, allow_int=True)

    def gradient_fn(*args: Any) -> tuple[Any, tuple[Any, jax.Array]]:
        gradient, aux = differentiate(*args)
        # Integers have no gradient; zeros can be summed and carried through loops.
        return jax.tree.map(_zero_for_integers, gradient, point), aux

    if not eot:
        gradient, (outputs, losses) = gradient_fn(point)
        return outputs, losses, gradient
    assert key is not None
    # The first pass is outside the loop, and gives its carry the shapes and dtypes.
    gradient, (outputs, losses) = gradient_fn(point, jax.random.fold_in(key, 0))

    def another(index: jax.Array, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        more, (outputs, more_losses) = gradient_fn(point, jax.random.fold_in(key, index))
        return outputs, sums[1] + more_losses, jax.tree.map(jnp.add, sums[2], more)

    outputs, losses, gradient = loop(another, (outputs, losses, gradient), eot - 1, first=1)
    scale = jnp.asarray(1 / eot, losses.dtype)
    return outputs, losses * scale, jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)


def _zero_for_integers(gradient: jax.Array, point: jax.Array) -> jax.Array:
    return jnp.zeros(point.shape, point.dtype) if gradient.dtype == jax.dtypes.float0 else gradient
