"""Gradients of a large batch in parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.typing import Params


def accumulated(
    grad_fn: Callable[..., Any], micro_batches: int, *batch: Any, has_aux: bool = False
) -> Callable[..., Any]:
    """The mean of a gradient over equal parts of a batch, one after the other in one ``lax.scan``.

    What people want of ``optax.MultiSteps`` around a weight perturbation: as ``grad_fn`` of ``awp``
    or ``perturbed`` both the displacement and the step are those of the whole batch, in the memory
    of a part. For a loss that is a mean over examples it is the gradient of the whole batch.

    Args:
        grad_fn: ``(params, *part) -> gradient``, or with ``has_aux`` ``-> (gradient, aux)``, such
            as ``jax.grad(loss_fn)``. Any pytree of floats may take the gradient's place
            (``jax.value_and_grad``).
        micro_batches: Number of parts; it divides the batch.
        *batch: Pytrees of arrays ``[batch, ...]``, cut along their first axis.
        has_aux: Whether ``grad_fn`` returns ``(gradient, aux)``.

    Returns:
        ``params -> gradient`` or ``-> (gradient, aux)``, where each leaf of aux has a leading axis
        of parts.

    Raises:
        ValueError: When the parts do not divide the batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.weights import accumulated
        >>> loss_fn = lambda w, x: jnp.mean((w * x) ** 2)
        >>> grad_fn = accumulated(jax.grad(loss_fn), 2, jnp.array([1.0, 2.0, 3.0, 4.0]))
        >>> print(grad_fn(1.0))
        15.0
    """
    checks.positive_integer(micro_batches, "micro_batches")
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or min(sizes) == 0 or min(sizes) % micro_batches:
        raise ValueError(
            f"The batch has {sorted(sizes)} examples, which {micro_batches} micro-batches of one "
            "size do not divide."
        )
    parts = jax.tree.map(
        lambda leaf: jnp.reshape(leaf, (micro_batches, -1, *jnp.shape(leaf)[1:])), batch
    )

    def whole(params: Params) -> Any:
        def one(part: tuple[Any, ...]) -> tuple[Any, Any]:
            out = grad_fn(params, *part)
            return out if has_aux else (out, None)

        def add(total: Any, part: tuple[Any, ...]) -> tuple[Any, Any]:
            gradient, aux = one(part)
            return jax.tree.map(jnp.add, total, gradient), aux

        first = jax.tree.map(lambda leaf: leaf[0], parts)
        # scan needs its carry before the first part is computed.
        shapes = jax.eval_shape(one, first)[0]
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, aux = jax.lax.scan(add, zero, parts)
        # Parts are of one size, so the mean of their means is the mean of the batch.
        gradient = jax.tree.map(lambda leaf: leaf / micro_batches, total)
        return (gradient, aux) if has_aux else gradient

    return whole
