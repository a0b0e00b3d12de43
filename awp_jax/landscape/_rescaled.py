"""Networks that compute the same function with other weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks
from awp_jax.batch_norm import EPSILON
from awp_jax.typing import BatchStats, Params

# Images on which the function is compared, and how far float32 may be off.
_TRIED, _TOLERANCE = 8, 1e-3


def rescaled(
    classifier: Any, params: Params, batch_stats: BatchStats, factor: Any
) -> tuple[Any, Any]:
    """A network of the same function whose weights are ``factor`` times as large.

    With BatchNorm: every kernel (and bias) that a BatchNorm follows is multiplied, and the running
    statistics of that BatchNorm along with it, so that it returns what it did. Without: kernels of
    all layers but the last are multiplied, their biases by the power of the factor that their
    inputs have by then, and the last kernel is divided (ReLU passes a positive factor on). Measures
    relative to the weights do not change; eigenvalues of the Hessian do (Stutz et al., ICCV 2021,
    section 3.4: the scaled variants of Figure 4).

    Args:
        classifier: One of this library's networks in which BatchNorm follows its convolution (the
            ResNets and VGG), or a chain of layers without BatchNorm and with ReLU (``mlp``,
            ``mnist-cnn``); see ``awp_jax.models``.
        params: Its parameters.
        batch_stats: Its running statistics.
        factor: Above 0.

    Returns:
        ``(params, batch_stats)``.

    Raises:
        ValueError: For a factor that is not positive, and a network whose function would change:
            pre-activation networks, other activations than ReLU without BatchNorm.
    """
    factor = checks.radius(factor, "factor", "l1")  # of any size
    if not factor:
        raise ValueError("factor is 0, but a number above 0 was expected.")
    grow = _before_batch_norm if batch_stats else _chain
    new_params, new_stats = grow(params, batch_stats, factor)
    images = jax.random.uniform(jax.random.key(0), (_TRIED, *classifier.image_shape))
    look = jax.jit(functools.partial(classifier.apply, mode="running"))
    before, after = (
        np.asarray(look(p, s, images)[0])
        for p, s in ((params, batch_stats), (new_params, new_stats))
    )
    # Tried out instead of derived: whether the function stays depends on how layers are wired.
    if not np.allclose(before, after, rtol=0, atol=_TOLERANCE * np.abs(before).max()):
        raise ValueError(
            f"{classifier.name} cannot be rescaled: its function would change, as BatchNorm does "
            "not follow each convolution, or the activation is not ReLU."
        )
    return new_params, new_stats


def _before_batch_norm(params: Params, batch_stats: BatchStats, factor: float) -> tuple[Any, Any]:
    """Layers called ``...conv...`` whose sibling ``...bn...`` normalises what they return."""
    if not isinstance(params, dict) or not isinstance(batch_stats, dict):
        return params, batch_stats
    new_params, new_stats = dict(params), dict(batch_stats)
    for name in params:
        norm = name.replace("conv", "bn")
        if norm != name and norm in batch_stats:
            new_params[name], new_stats[norm] = _pair(params[name], batch_stats[norm], factor)
        elif name in batch_stats:
            new_params[name], new_stats[name] = _before_batch_norm(
                params[name], batch_stats[name], factor
            )
    return new_params, new_stats


def _pair(layer: Any, norm: Any, factor: float) -> tuple[Any, Any]:
    grown = jax.tree.map(lambda leaf: leaf * factor, layer)
    if "var" not in norm:  # lists of layers, as in VGG
        return grown, {key: _pair(layer[key], norm[key], factor)[1] for key in norm}
    # Exactly, epsilon included: var + epsilon is what grows by the square of the factor.
    variance = factor**2 * (norm["var"] + EPSILON) - EPSILON
    return grown, {**norm, "mean": norm["mean"] * factor, "var": variance}


def _chain(params: Params, batch_stats: BatchStats, factor: float) -> tuple[Any, Any]:
    """Layers in the order of their names, each read by the next alone."""
    with_paths, structure = jax.tree_util.tree_flatten_with_path(params)
    layers = list(dict.fromkeys(path[:-1] for path, _ in with_paths))
    grown = []
    for path, leaf in with_paths:
        place, name = layers.index(path[:-1]), path[-1].key
        power = place + 1 if place < len(layers) - 1 else 0
        if name == "kernel":
            power = 1 if power else -place
        grown.append(leaf * jnp.asarray(factor, leaf.dtype) ** power)
    return jax.tree.unflatten(structure, grown), batch_stats
