"""The model as this package sees it: logits of any weights, at full precision."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax.attacks import AttackResult
from awp_jax.attacks._model import verdict
from awp_jax.attacks._result import outcome
from awp_jax.data import as_float
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params


def _apply(apply_fn: ApplyFn, params: Params, images: Images) -> Any:
    return apply_fn(params, images)


def logits_at(apply_fn: Partial, params: Params) -> Partial:
    """``images -> logits`` of these weights, a pytree: no weights compile anew."""
    return Partial(_apply, apply_fn, params)


def looked_at(
    attack: Attack | None, logits_fn: Partial, keys: Key, images: Images, labels: Labels
) -> AttackResult:
    """What the model says of images after an attack; ``None`` for none, which needs no keys."""
    if attack is None:
        return verdict(logits_fn, images, labels)
    return outcome(attack(logits_fn, keys, images, labels), attack)


def float_images(images: Images, params: Params) -> Any:
    """Images as floats of the parameters' dtype, at least float32."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
    return as_float(images, dtype)


def full_precision() -> Any:
    """Float32 means float32: on GPU and TPU matrix products are rounded to less otherwise."""
    return jax.default_matmul_precision("highest")
