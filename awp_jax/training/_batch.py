"""The batch of a training step: gathered, augmented, mixed, inside jit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from awp_jax import data, parallel, streams
from awp_jax.random import example_keys, fold_keys
from awp_jax.typing import Images, Key, Labels


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: float ``[batch, height, width, channels]`` in [0, 1].
        labels: int ``[batch]``, or float ``[batch, classes]`` after mixup and CutMix.
        weights: float ``[batch]``, lambda for extra images and 1 for others; ``None`` without.
        mask: bool ``[batch]``, False for padding; ``None`` where no batch has any.
    """

    images: Images
    labels: Labels
    weights: Any
    mask: Any


def batch_function(
    config: ConfigDict,
    *,
    original: int,
    extra: int,
    steps_per_epoch: int,
    original_batch: int,
    num_classes: int,
    mesh: jax.sharding.Mesh,
    on_host: bool = False,
    padded: bool = False,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How a config makes the batch of a step.

    With extra images (RST, Carmon et al. 2019; generated ones, Gowal et al. 2021), the original
    ones of a batch follow the order of the epoch, the others are drawn with replacement, and both
    are shuffled together, so that every group of BatchNorm sees both.

    Args:
        config: A validated config.
        original: Training examples.
        extra: Extra images, which lie behind them.
        steps_per_epoch: Batches in an epoch.
        original_batch: Training examples of a whole batch.
        num_classes: Number of classes.
        mesh: The devices among which the examples of a batch are shared.
        on_host: Whether ``gather`` is handed the rows ``choose(...)`` of images and labels, and
            not all of them.
        padded: Whether the last batch of an epoch is filled up, with examples that do not count.

    Returns:
        ``choose(step, order, key, *, batch_size)``, the examples of a batch, int32 ``[batch]``,
        and ``gather(step, images, labels, order, key, *, batch_size) -> Batch``; not compiled.
        ``step`` is the number of the batch, and ``batch_size`` counts the training examples.
    """
    d = config.data
    moves = {
        "crop_padding": d.crop_padding,
        "crop_mode": d.crop_mode,
        "flip": d.flip,
        "rotation_degrees": d.rotation_degrees,
    }

    def first_of(step: Any) -> Any:
        return (step % steps_per_epoch) * original_batch

    def choose(step: Any, order: Any, key: Key, *, batch_size: Any) -> Any:
        if padded:
            # Filled up from the beginning of the order; the mask below leaves these out.
            return order[(first_of(step) + jnp.arange(batch_size)) % original]
        chosen = jax.lax.dynamic_slice(order, (first_of(step),), (batch_size,))
        if not extra:
            return chosen
        return _fill_up(
            jax.random.fold_in(jax.random.fold_in(key, step), streams.STEP_EXTRA),
            chosen,
            config.batch_size - batch_size,
            (original, original + extra),
        )

    def gather(
        step: Any, images: Images, labels: Labels, order: Any, key: Key, *, batch_size: Any
    ) -> Any:
        chosen = choose(step, order, key, batch_size=batch_size)
        # Known by their place behind the original ones, also after shuffling.
        weights = jnp.where(chosen < original, 1.0, d.extra_weight) if extra else None
        step_key = jax.random.fold_in(key, step)
        keys = augmentation_keys(key, step, chosen.shape[0])
        # What follows each example: its device, for the whole step.
        chosen, keys = jax.lax.with_sharding_constraint(
            (chosen, keys), parallel.batch_sharding(mesh, chosen.shape[0])
        )
        if not on_host:
            images, labels = images[chosen], labels[chosen]
        batch = data.augment(keys, images, **moves)
        if d.autoaugment:
            batch = data.autoaugment(keys, batch)
        if d.trivialaugment:
            batch = data.trivialaugment(keys, batch)
        # Floats come last: uint8 images are moved as uint8, a quarter of the traffic.
        batch = data.random_erasing(keys, data.cutout(keys, batch, d.cutout), d.random_erasing)
        batch = data.as_float(batch)
        if d.mixup or d.cutmix:  # a config has one of the two
            mix, alpha = (data.mixup, d.mixup) if d.mixup else (data.cutmix, d.cutmix)
            mix_key = jax.random.fold_in(step_key, streams.STEP_MIXUP)
            batch, labels = mix(mix_key, batch, labels, alpha, num_classes)
        # In every step, not in the last alone: one program serves all steps of an epoch.
        mask = first_of(step) + jnp.arange(batch_size) < original if padded else None
        return Batch(batch, labels, weights, mask)

    return choose, gather


def _fill_up(key: Key, chosen: jax.Array, count: int, limits: tuple[int, int]) -> jax.Array:
    draw_key, order_key = jax.random.split(key)
    drawn = jax.random.randint(draw_key, (count,), *limits, dtype=chosen.dtype)
    return jax.random.permutation(order_key, jnp.concatenate([chosen, drawn]))


def augmentation_keys(key: Key, step: jax.Array, batch: int) -> jax.Array:
    """The keys ``[batch]`` with which step ``step`` augments its examples."""
    return fold_keys(example_keys(jax.random.fold_in(key, step), batch), streams.EXAMPLE_AUGMENT)
