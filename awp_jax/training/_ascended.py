"""The losses that weights ascend, one for each example of the batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.attacks import cross_entropy
from awp_jax.training._descent import StepModel, weighted
from awp_jax.training._parts import Parts
from awp_jax.typing import BatchStats, Labels, Params


def losses_of(
    model: StepModel,
    batch_stats: BatchStats,
    dropout_key: jax.Array,
    inputs: dict[str, Any],
    labels: Labels,
    relative: jax.Array | None,
    mask: jax.Array | None,
    places: jax.Array | None,
    params: Params,
) -> tuple[jax.Array, jax.Array]:
    """Losses and criterion ``[batch]`` of a batch, or of a part of one."""
    # Batch statistics, as the released proxy; the running ones never see it.
    values, (logits, _) = model.losses(
        "batch", params, batch_stats, inputs, labels, dropout_key, mask, places
    )
    # RWP compares the cross-entropy of the adversarial images, for TRADES too.
    last = logits[model.objective.attacked]
    criterion = cross_entropy(last, labels)
    if mask is not None:  # no range of losses selects padding
        criterion = jnp.where(mask, criterion, jnp.inf)
    return weighted(values, relative), criterion


def losses_in_parts(
    model: StepModel, parts: Parts, batch_stats: BatchStats, dropout_key: Any, *given: Any
) -> tuple[jax.Array, jax.Array]:
    """As ``losses_of``, of the whole batch part by part."""
    *rows, params = given
    one: Callable[..., Any] = functools.partial(losses_of, model, batch_stats, dropout_key)

    # Nothing is kept of a part for the backward pass, which computes it again.
    @jax.checkpoint
    def part(params: Params, *rows: Any) -> Any:
        return one(*rows, params)

    return parts.rows(functools.partial(part, params), *rows)
