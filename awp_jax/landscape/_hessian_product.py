"""Products of the Hessian of the clean or robust loss with vectors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from awp_jax import parallel, streams
from awp_jax.attacks._losses import cross_entropy
from awp_jax.attacks._model import as_pytree_function
from awp_jax.landscape._layers import layers_of
from awp_jax.landscape._model import full_precision, logits_at
from awp_jax.landscape._robust_loss import Examples
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params


class HessianProduct:
    """``vector -> H vector`` on the host, H the Hessian of the mean loss in chosen weights.

    Examples are attacked once, at the weights, when it is made: all products are of one matrix.
    One batch is on the device at a time, so each product goes through all batches.

    Args:
        apply_fn, params, images, labels, key, attack, layers, batch_size: See
            ``hessian_spectrum``.

    Attributes:
        size: How many weights count.
        dtype: Of them.
        products: How many products were made.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        params: Params,
        images: Images,
        labels: Labels,
        key: Key,
        *,
        attack: Attack | None,
        layers: Any,
        batch_size: int,
    ) -> None:
        examples = Examples(images, labels, batch_size, params, attack)
        self._mask = layers_of(params, layers)
        self._function = as_pytree_function(apply_fn)
        self._params = params
        leaves, self._structure = jax.tree.flatten(params)
        chosen = [leaf for leaf, keep in zip(leaves, self._mask.keep, strict=True) if keep]
        flat, self._unravel = ravel_pytree(chosen)
        self.size, self.dtype, self.products = flat.size, flat.dtype, 0
        self._zeros = jax.tree.map(jnp.zeros_like, leaves)
        self._count = examples.count
        keys = examples.keys(jax.random.fold_in(key, streams.LANDSCAPE_IMAGES))
        with full_precision():
            self._batches = [
                (
                    examples.attacked(self._function, params, keys, attack, index),
                    *examples.batch(index)[1:],
                )
                for index in range(len(examples.batches))
            ]

    def __call__(self, vector: np.ndarray) -> Any:
        """H times a vector of ``size`` numbers."""
        self.products += 1
        parts = iter(self._unravel(jnp.asarray(vector.reshape(-1), self.dtype)))
        tangent = jax.tree.unflatten(
            self._structure,
            [
                next(parts) if keep else zero
                for zero, keep in zip(self._zeros, self._mask.keep, strict=True)
            ],
        )
        # Summed on the host, where ARPACK and Lanczos' iteration want their vectors.
        total = np.zeros(self.size, self.dtype)
        with full_precision():
            for batch in self._batches:
                product = _hessian_vector(self._function, self._params, tangent, *batch)
                found = jax.tree.leaves(product)
                kept = [leaf for leaf, keep in zip(found, self._mask.keep, strict=True) if keep]
                total += np.concatenate([leaf.ravel() for leaf in parallel.to_host(kept)])
        return total / self._count


@jax.jit
def _hessian_vector(
    function: Partial,
    params: Params,
    tangent: Any,
    images: Images,
    labels: Labels,
    valid: jax.Array,
) -> Any:
    """Forward over reverse: the derivative of the gradient of the summed loss along tangent."""

    def total(params: Params) -> Any:
        losses = cross_entropy(logits_at(function, params)(images), labels)
        return jnp.where(valid, losses, 0.0).sum()

    return jax.jvp(jax.grad(total), (params,), (tangent,))[1]
