"""Regularisation of the weights themselves: L1, L2 and clipping."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.balls import kernels_only
from awp_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Regularisation:
    """What is added to the loss that weights descend, and where they may lie.

    All act on kernels only, as in Rice et al. 2020 (``train_cifar.py``), not on biases and
    BatchNorm. With a weight perturbation, L1 and L2 are those of w + v and are not ascended.

    Attributes:
        l1: Adds ``l1 * sum |w|`` (5e-6 in Rice et al. and AWP, NeurIPS 2020, section 5.3).
        l2: Adds ``l2 / 2 * sum w^2``, whose gradient ``l2 * w`` is that of weight decay (5e-3
            there, in place of the optimiser's weight decay: set that to 0).
        clip: After every step each weight is clipped to [-clip, clip] (Stutz et al., ICCV 2021,
            "weight clipping"); 0 for no clipping.

    Raises:
        ValueError: For a number that is negative or not finite.
    """

    l1: float = 0.0
    l2: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "clip"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(
                    f"{name} is {value!r}, but a finite number of at least 0 was expected."
                )

    def penalty(self, params: Params) -> Any:
        """What is added to the loss, a scalar."""
        if not (self.l1 or self.l2):
            return 0.0
        kernels = [
            leaf
            for leaf, keep in zip(
                jax.tree.leaves(params), jax.tree.leaves(kernels_only(params)), strict=True
            )
            if keep
        ]
        return sum(
            self.l1 * jnp.abs(leaf).sum() + self.l2 / 2 * jnp.square(leaf).sum() for leaf in kernels
        )

    def constrain(self, params: Params) -> Any:
        """The weights, clipped."""
        if not self.clip:
            return params
        return jax.tree.map(
            lambda leaf, keep: jnp.clip(leaf, -self.clip, self.clip) if keep else leaf,
            params,
            kernels_only(params),
        )
