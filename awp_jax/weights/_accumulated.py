"""Gradients of a large batch in parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks, mapped
from awp_jax.ascent import is_traced, unrolls
from awp_jax.typing import Params


def summed(
    one: Callable[[Any], tuple[Any, Any]],
    parts: Any,
    *,
    unroll: bool | None = None,
    axis_name: str | None = None,
) -> tuple[Any, Any]:
    """Parts of a batch one after the other, in the memory of one.

    Args:
        one: ``part -> (what is summed, what is kept of each)``, pytrees of arrays.
        parts: Pytree of arrays ``[parts, ...]``.
        unroll: ``True`` for one part behind the other, ``False`` for ``lax.scan``, ``None`` for the
            rule of ``awp_jax.ascent.loop``; outside ``jit`` parts are never scanned.
        axis_name: Under ``shard_map`` what is summed differs from device to device.

    Returns:
        ``(sums, kept)``; what is kept has a leading axis of parts.
    """
    count = jax.tree.leaves(parts)[0].shape[0]
    traced = is_traced(parts)
    if unroll is None:
        unroll = unrolls(count, traced)
    if traced and not unroll:
        # scan needs its carry before the first part is computed.
        shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], parts))[0]
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, part: Any) -> tuple[Any, Any]:
            found, kept = one(part)
            return jax.tree.map(jnp.add, total, found), kept

        return jax.lax.scan(add, mapped.vary(zero, axis_name), parts)
    # Traced once for all parts; outside jit it is for its caller to compile what is inside.
    call = jax.jit(lambda part: one(part)) if traced else one
    total, kept, found, one_kept = None, [], (), ()
    for place in range(count):
        index: Any = place
        if traced and place:
            # Nothing of a part begins before the one before has ended, or memory would hold both.
            # XLA takes barriers away before it orders a program for CPU, so that it takes a number.
            index = place + _zero_after((found, one_kept))
        found, one_kept = call(jax.tree.map(lambda leaf, index=index: leaf[index], parts))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        kept.append(one_kept)
    return total, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)


def _zero_after(tree: Any) -> jax.Array:
    """0, which is not known before every array of ``tree`` is."""
    firsts = [jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    number = sum(firsts, jnp.float32(0))
    return (jnp.isnan(number) & (number == number)).astype(jnp.int32)


def accumulated(
    grad_fn: Callable[..., Any],
    micro_batches: int,
    *batch: Any,
    has_aux: bool = False,
    unroll: bool | None = None,
) -> Callable[..., Any]:
    """The mean of a gradient over equal parts of a batch, one after the other.

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
        unroll: ``None`` for ``lax.scan`` on GPU and TPU and one part behind the other on CPU, where
            convolutions in loops are slow; ``True`` or ``False`` to choose.

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

        total, aux = summed(one, parts, unroll=unroll)
        # Parts are of one size, so the mean of their means is the mean of the batch.
        gradient = jax.tree.map(lambda leaf: leaf / micro_batches, total)
        return (gradient, aux) if has_aux else gradient

    return whole
