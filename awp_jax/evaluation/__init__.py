"""Robust accuracy and robust loss of a checkpoint, or of any logits function."""

from awp_jax.evaluation._measure import Measurement as Measurement
from awp_jax.evaluation._measure import measure as measure
from awp_jax.evaluation._names import attack_by_name as attack_by_name
