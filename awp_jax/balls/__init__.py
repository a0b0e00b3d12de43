"""The sets an adversary may move in: balls of inputs and balls of weights.

Attacks on inputs and attacks on weights are the same operation, projected ascent on a ball around
a centre. A ball knows how to ``start``, how to ``step`` along a gradient, how to ``project`` back,
how to ``sample``, and what is at which ``distance``. No projection is written anywhere else.
"""

from awp_jax.balls._adaptive import AdaptiveWeightBall as AdaptiveWeightBall
from awp_jax.balls._input_norms import input_norms as input_norms
from awp_jax.balls._inputs import NORMS as NORMS
from awp_jax.balls._inputs import InputBall as InputBall
from awp_jax.balls._masks import BIASES as BIASES
from awp_jax.balls._masks import EMBEDDINGS as EMBEDDINGS
from awp_jax.balls._masks import NORMALISATIONS as NORMALISATIONS
from awp_jax.balls._masks import everything as everything
from awp_jax.balls._masks import kernels_only as kernels_only
from awp_jax.balls._masks import kernels_without as kernels_without
from awp_jax.balls._masks import matching as matching
from awp_jax.balls._protocol import Ball as Ball
from awp_jax.balls._weights import SCOPES as SCOPES
from awp_jax.balls._weights import SIZES as SIZES
from awp_jax.balls._weights import WeightBall as WeightBall
