"""What one forward pass of a network has to know beside its inputs."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from awp_jax.random import example_keys, fold_keys

Mode = Literal["running", "batch", "update"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclasses.dataclass
class Context:
    """BatchNorm mode, dropout key and valid examples of one forward pass.

    Attributes:
        mode: "running" uses the running statistics and no dropout; "batch" uses those of the batch
            and leaves the running ones alone; "update" uses those of the batch and moves the
            running ones.
        key: typed PRNG key for dropout, one for the batch (shape [], folded by the position
            of the example) or one per example (shape [batch]); ``None`` for no dropout.
        mask: bool [batch], the examples that count for BatchNorm statistics; ``None`` for all.
    """

    mode: str
    key: Array | None = None
    mask: Array | None = None
    _drawn: int = 0

    def dropout(self, inputs: Array, rate: float) -> Array:
        """Zeroes entries of ``inputs`` ([batch, ...]) with probability ``rate``."""
        if rate == 0 or self.key is None or self.mode == "running":
            return inputs
        layer = self._drawn
        self._drawn += 1

        # One key per example: the same draw however the batch is laid out.
        keys = fold_keys(example_keys(self.key, inputs.shape[0]), layer)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, inputs.shape[1:]))(keys)
        return jnp.where(kept, inputs / (1 - rate), 0)
