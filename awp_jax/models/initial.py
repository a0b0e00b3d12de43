"""Initial values, drawn for a whole network at once.

One random vector is drawn for all leaves and cut up. Compiled leaf by leaf, the random number
generator alone takes a dozen seconds for a ResNet on a CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class Initial:
    """How one leaf starts.

    Also a Flax initialiser, ``initial(key, shape, dtype)``, for networks whose other layers bring
    initialisers of their own.

    Attributes:
        kind: "uniform" in [-scale, scale), "normal" with deviation ``scale``, or "constant".
        scale: as above; the value, for a constant.
    """

    kind: Literal["uniform", "normal", "constant"]
    scale: float

    def __call__(
        self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any
    ) -> Array:
        if self.kind == "constant":
            return jnp.full(shape, self.scale, dtype)
        return (self.scale * _standard(self.kind, key, tuple(shape))).astype(dtype)


ZEROS = Initial("constant", 0.0)
ONES = Initial("constant", 1.0)


def uniform_fan_in(fan_in: int) -> Initial:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for kernels and biases.

    PyTorch writes it as kaiming_uniform with a = sqrt(5), which is the same distribution.
    """
    return Initial("uniform", fan_in**-0.5)


def normal(variance: float) -> Initial:
    """N(0, variance)."""
    return Initial("normal", variance**0.5)


def normal_fan_out(size: int, outputs: int) -> Initial:
    """N(0, 2 / (size * size * outputs)), of a size x size kernel: He et al.'s, by fan *out*."""
    return normal(2 / (size * size * outputs))


def draw(key: Array, initials: Sequence[Initial], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Float32 initial values of leaves with these shapes."""
    # A key for each distribution, or uniform and normal draws would be made of the same bits.
    keys = dict(zip(("uniform", "normal"), jax.random.split(key), strict=True))
    pools = {}
    for kind in ("uniform", "normal"):
        sizes = [
            int(np.prod(shape))
            for initial, shape in zip(initials, shapes, strict=True)
            if initial.kind == kind
        ]
        pools[kind] = _standard(kind, keys[kind], (sum(sizes),)) if sizes else None
    used = dict.fromkeys(pools, 0)
    values = []
    for initial, shape in zip(initials, shapes, strict=True):
        pool = pools.get(initial.kind)
        if pool is None:
            values.append(jnp.full(shape, initial.scale, jnp.float32))
            continue
        start = used[initial.kind]
        used[initial.kind] = stop = start + int(np.prod(shape))
        values.append(initial.scale * pool[start:stop].reshape(shape))
    return values


def _standard(kind: str, key: Array, shape: tuple[int, ...]) -> Array:
    if kind == "uniform":
        return jax.random.uniform(key, shape, jnp.float32, -1, 1)
    return jax.random.normal(key, shape, jnp.float32)
