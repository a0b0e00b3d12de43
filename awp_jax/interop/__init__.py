"""Models and weights of other libraries."""

from awp_jax.interop.files import CheckpointError as CheckpointError
from awp_jax.interop.files import OtherArchitectureError as OtherArchitectureError
from awp_jax.interop.torch_checkpoint import load_torch as load_torch
from awp_jax.interop.torch_checkpoint import normalisation as normalisation
from awp_jax.interop.torch_checkpoint import save_torch as save_torch
