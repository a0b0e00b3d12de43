"""The model as this package sees it: logits of any weights, at full precision."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax.data import as_float
from awp_jax.typing import ApplyFn, Images, Params


def _apply(apply_fn: ApplyFn, params: Params, images: Images) -> Any:
    return apply_fn(params, images)


def logits_at(apply_fn: Partial, params: Params) -> Partial:
    """``images -> logits`` of these weights, a pytree: no weights compile anew."""
    return Partial(_apply, apply_fn, params)


def float_images(images: Images, params: Params) -> Any:
    """Images as floats of the parameters' dtype, at least float32."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
    return as_float(images, dtype)


def full_precision() -> Any:
    """Float32 means float32: on GPU and TPU matrix products are rounded to less otherwise."""
    return jax.default_matmul_precision("highest")
