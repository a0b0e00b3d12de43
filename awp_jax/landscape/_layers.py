"""Which parameters are layers of their own when weights are perturbed."""

from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.balls import WeightBall
from awp_jax.balls._masks import Mask
from awp_jax.typing import Params, Radius
from awp_jax.weights._displacement import weight_ball


def _name(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", entry)))


def kernels_and_biases(params: Params) -> Any:
    """The layers of Stutz et al. (ICCV 2021, section 3.2): kernels and biases, no BatchNorm.

    A kernel is a leaf with more than one axis. A bias is a leaf called ``bias`` beside a kernel,
    under the same parent: so ``{"conv": {"kernel", "bias"}}`` counts and a BatchNorm's ``{"scale",
    "bias"}`` does not. That holds for this library's models, linen and Equinox; where biases have
    other names, give a mask of your own.

    Args:
        params: Any pytree of arrays.

    Returns:
        A pytree of bools like ``params``, a mask for ``awp_jax.balls.WeightBall``.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.landscape import kernels_and_biases
        >>> conv = {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)}
        >>> norm = {"scale": jnp.ones(2), "bias": jnp.ones(2)}
        >>> kernels_and_biases({"bn": norm, "conv": conv})
        {'bn': {'bias': False, 'scale': False}, 'conv': {'bias': True, 'kernel': True}}
    """
    with_paths, structure = jax.tree_util.tree_flatten_with_path(params)
    # NNX states end in the Variable's own value, which is no parameter's name.
    paths = [path[:-1] if path and _name(path[-1]) == "value" else path for path, _ in with_paths]
    matrices = [jnp.ndim(leaf) > 1 for _, leaf in with_paths]
    parents = {path[:-1] for path, matrix in zip(paths, matrices, strict=True) if matrix and path}
    keep = [
        matrix or (bool(path) and _name(path[-1]) == "bias" and path[:-1] in parents)
        for path, matrix in zip(paths, matrices, strict=True)
    ]
    return jax.tree.unflatten(structure, keep)


def flatness_ball(params: Params, xi: Radius, ball: Any) -> Any:
    """The ball of a flatness measure: as given, or ``xi * ||w_l||`` for kernels and biases.

    Raises:
        ValueError: For both, a negative xi, or a ball that holds all parameters.
    """
    ball = weight_ball(xi, ball, mask=kernels_and_biases)
    if isinstance(ball, WeightBall):
        ball.mask_of(params)  # which refuses what does not fit, and one of nothing
    return ball


def layers_of(params: Params, layers: Any) -> Mask:
    """The mask ``layers`` of ``params``.

    Args:
        params: A pytree of arrays.
        layers: ``None`` for ``kernels_and_biases``, a pytree of bools (or a prefix of one), or a
            function from the parameters to one.

    Returns:
        The mask.

    Raises:
        ValueError: When the mask does not fit the parameters, or leaves no layer.
    """
    ball = WeightBall(mask=kernels_and_biases if layers is None else layers)
    leaves, structure = jax.tree.flatten(ball.mask_of(params))
    return Mask(structure, tuple(leaves))


def layer_names(params: Params) -> list[str]:
    """Names of the leaves, in the tree's order: ``"layer1/0/conv1/kernel"``."""
    with_paths = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
