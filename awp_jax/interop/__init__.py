"""Models and weights of other libraries."""

from awp_jax.extras import needed_by

with needed_by("awp_jax.interop"):
    from awp_jax.interop.errors import CheckpointError, OtherArchitectureError
    from awp_jax.interop.torch_checkpoint import fitting, load_torch, normalisation, save_torch

__all__ = [
    "CheckpointError",
    "OtherArchitectureError",
    "fitting",
    "load_torch",
    "normalisation",
    "save_torch",
]
