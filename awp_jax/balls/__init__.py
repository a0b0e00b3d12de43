"""The sets an adversary may move in: balls of inputs and balls of weights.

Attacks on inputs and attacks on weights are the same operation, projected ascent on a ball around
a centre. A ball knows how to ``start``, how to ``step`` along a gradient, how to ``project`` back,
how to ``sample``, and what is at which ``distance``. No projection is written anywhere else.
"""

from awp_jax.balls._adaptive import AdaptiveWeightBall
from awp_jax.balls._input_norms import input_norms
from awp_jax.balls._inputs import NORMS, InputBall
from awp_jax.balls._masks import (
    BIASES,
    EMBEDDINGS,
    NORMALISATIONS,
    everything,
    kernels_only,
    kernels_without,
    matching,
)
from awp_jax.balls._protocol import Ball
from awp_jax.balls._weights import SCOPES, SIZES, WeightBall

__all__ = [
    "AdaptiveWeightBall",
    "BIASES",
    "Ball",
    "EMBEDDINGS",
    "InputBall",
    "NORMALISATIONS",
    "NORMS",
    "SCOPES",
    "SIZES",
    "WeightBall",
    "everything",
    "input_norms",
    "kernels_only",
    "kernels_without",
    "matching",
]
