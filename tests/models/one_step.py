"""One step of AT-AWP with an architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from awp_jax import objectives
from awp_jax.interop.state_dict import leaves
from awp_jax.training import TrainingAttack, TrainState, WeightPerturbation, make_train_step


def one_step_of_at_awp(classifier, start=None, no_effect=()):
    """``(params, batch_stats)`` before and the state after; every parameter has moved.

    But for those whose path ends as one of ``no_effect``.
    """
    params, batch_stats = start or jax.jit(classifier.init)(jax.random.key(0))
    optimizer = optax.sgd(0.1)
    step = make_train_step(
        classifier,
        objectives.at(),
        optimizer,
        attack=TrainingAttack("8/255", 1, step_size="8/255"),
        weights=WeightPerturbation("awp", 0.005),
    )
    key = jax.random.key(1)
    images = jax.random.uniform(key, (4, *classifier.image_shape))
    state = TrainState(jnp.int32(0), params, batch_stats, jax.jit(optimizer.init)(params))
    fast = {"xla_backend_optimization_level": 0}
    after, metrics = jax.jit(step, compiler_options=fast)(state, images, jnp.arange(4), key)
    # In numpy's hands: of arrays of JAX each comparison would be compiled for each shape.
    (params, batch_stats), after = jax.device_get(((params, batch_stats), after))
    assert np.isfinite(metrics["loss"])
    for (path, old), (_, new) in zip(leaves(params), leaves(after.params), strict=True):
        moved = (old != new).any() or path[-3:] in no_effect
        assert np.isfinite(new).all() and moved, path
    return (params, batch_stats), after
