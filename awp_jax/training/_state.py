"""What training carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.training._class_means import fresh
from awp_jax.training._loss_scale import LossScale
from awp_jax.typing import BatchStats, Key, Params, PyTree


class TrainState(NamedTuple):
    """All that a run needs to go on; keys and data order follow from the seed and the step.

    Attributes:
        step: Optimiser steps done.  # shape=(), dtype=int32
        params: Trainable parameters, nested dict of float32 arrays.
        batch_stats: BatchNorm running statistics, nested dict of float32 arrays.
        opt_state: State of the optimiser.
        average: The average of the parameters (SWA or EMA), like them; ``{}`` when none is kept.
        class_means: What is predicted for each class, see ``objectives.ikl``; ``{}`` for others.
        loss_scale: A dynamic loss scale, and finite steps since it changed; ``{}`` for others.
        delta: The perturbation that free adversarial training carries from step to step, ``[batch,
            height, width, channels]``; ``{}`` for others.
    """

    step: jax.Array
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    average: Any = {}
    class_means: Any = {}
    loss_scale: Any = {}
    delta: Any = {}


def init_state(
    classifier: Any,
    optimizer: Any,
    key: Key,
    *,
    averaged: bool = False,
    class_means: bool = False,
    loss_scale: Any = None,
    delta: tuple[int, ...] | None = None,
) -> TrainState:
    """A fresh state: parameters from ``key``, optimiser state, step 0; the average starts there.

    Args:
        classifier: Fulfils the contract of ``awp_jax.models.Classifier``.
        optimizer: Any optax optimiser.
        key: One typed key.
        averaged: Whether an average of the parameters is kept.
        class_means: Whether means of classes are, as objectives with a ``class_temperature`` need.
        loss_scale: As ``make_train_step`` has it.
        delta: The shape of a batch, ``[batch, height, width, channels]``, for an attack that is
            ``free``; ``None`` for others.
    """
    params, batch_stats = classifier.init(key)
    # A copy: the step donates the state, and no buffer can be donated twice.
    average = jax.tree.map(jnp.copy, params) if averaged else {}
    opt_state = optimizer.init(params)
    means = fresh(classifier.num_classes) if class_means else {}
    scale = LossScale(loss_scale).fresh()
    step = jnp.zeros([], jnp.int32)
    carried: Any = {} if delta is None else jnp.zeros(delta)
    return TrainState(step, params, batch_stats, opt_state, average, means, scale, carried)


def _words(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32).ravel()
    width = np.dtype(leaf.dtype).itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)
    # 8-byte values gain a trailing axis of two words.
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).ravel()


@jax.jit
def digest(tree: PyTree) -> jax.Array:
    """A 32-bit checksum of every bit of every array of ``tree``.

    Each word is multiplied by an odd number that depends on its place, and all are added modulo
    2**32: the order of addition does not matter, so every sharding gives the same digest, and any
    single flipped bit changes it. Checkpoints carry it because Orbax restores flipped bytes
    silently.

    Args:
        tree: Any pytree of arrays.

    Returns:
        uint32 scalar.
    """
    total = jnp.uint32(0)
    for place, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(jnp.asarray(leaf))
        index = jnp.arange(words.size, dtype=jnp.uint32)
        weights = index * jnp.uint32(2654435769) * jnp.uint32(2) + jnp.uint32(2 * place + 1)
        # Spreads the highest bit, which no odd factor moves: two of them flipped would cancel.
        mixed = words ^ (words >> 16)
        total = total + jnp.sum(mixed * weights, dtype=jnp.uint32)
    return total
