"""In which order examples are visited, and in which batches."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.checks import positive_integer
from awp_jax.random import check_key


def epoch_order(key: jax.Array, epoch: int | jax.Array, n: int) -> jax.Array:
    """The order of the training examples in one epoch, a function of key and epoch only.

    So a resumed run needs no state but its key and step, and every process of a cluster computes
    the same order.

    Args:
        key: typed key of the data order, the same in every epoch.
        epoch: number of the epoch, at least 0; may be traced.
        n: number of examples.

    Returns:
        int32 `[n]`, a permutation of 0..n-1, on the device.

    Raises:
        ValueError: when n or a concrete epoch is out of range, or key is no single typed key.
    """
    n = positive_integer(n, "n")
    check_key(key)
    if key.ndim:
        raise ValueError(f"key has shape {key.shape}, but one typed key was expected.")
    if isinstance(epoch, int) and epoch < 0:
        raise ValueError(f"epoch must be at least 0, not {epoch}.")
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(n, dtype=jnp.int32))


def steps_per_epoch(n: int, batch_size: int, keep_last: bool = True) -> int:
    """Number of batches in one epoch.

    Args:
        n: number of examples.
        batch_size: examples per batch.
        keep_last: count the last, smaller batch (as the AWP release does), or leave it out.

    Raises:
        ValueError: when a number is not positive, or no batch would be left.
    """
    n = positive_integer(n, "n")
    batch_size = positive_integer(batch_size, "batch_size")
    if keep_last:
        return -(-n // batch_size)
    if batch_size > n:
        raise ValueError(f"batch_size {batch_size} is more than the {n} examples.")
    return n // batch_size


def padded_batches(
    n: int, batch_size: int, multiple: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All of 0..n-1 in batches of one size, for evaluation: nothing is dropped.

    One size means one compilation. Example 0 fills the last batch up, and the mask leaves it out.

    Args:
        n: number of examples.
        batch_size: examples per batch.
        multiple: number of devices; batches are filled up until they divide by it, so that they
            can be split without changing which examples are in which batch.

    Returns:
        An iterator of `(indices, mask)`, int32 and bool, both of the batch size, rounded up to
        `multiple`; mask is False where an index only fills the batch.

    Raises:
        ValueError: when a number is not positive (at the call, not at the first batch).
    """
    steps = steps_per_epoch(n, batch_size)
    filled = batch_size + -batch_size % positive_integer(multiple, "multiple")

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in range(steps):
            indices = np.arange(filled, dtype=np.int32) + np.int32(step * batch_size)
            mask = (indices < n) & (np.arange(filled) < batch_size)
            yield np.where(mask, indices, np.int32(0)), mask

    return batches()
