"""The adversarial loss as a function of the weights: directions, and surfaces along them."""

from awp_jax.landscape._directions import adversarial_directions as adversarial_directions
from awp_jax.landscape._directions import directions as directions
from awp_jax.landscape._surface import Surface as Surface
from awp_jax.landscape._surface import axis as axis
from awp_jax.landscape._surface import surface as surface
