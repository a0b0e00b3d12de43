"""What is done to labels: noise and mixup."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.data._dataset import DataError
from awp_jax.data._subset import Images
from awp_jax.random import check_key


def with_label_noise(dataset: Images, rate: float, seed: int) -> Images:
    """A data set of which some labels were drawn anew, once and for all.

    Each label is replaced with probability ``rate`` by a class drawn uniformly from all, so that in
    expectation its distribution is that of label smoothing by ``rate`` (Stutz et al., ICCV 2021,
    section 4.1).

    Args:
        dataset: labelled images.
        rate: in [0, 1].
        seed: of the draws, 0 to 2**32 - 1.

    Raises:
        DataError: for a rate out of range.
    """
    if not 0 <= rate <= 1:
        raise DataError(f"label_noise is {rate!r}, but a number in [0, 1] was expected.")
    random = np.random.RandomState(seed)  # its stream is fixed for good
    replaced = random.uniform(size=len(dataset)) < rate
    drawn = random.randint(dataset.num_classes, size=len(dataset), dtype=np.int32)
    return dataclasses.replace(dataset, labels=np.where(replaced, drawn, dataset.labels))


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Convex combinations of the images of a batch and of their labels (Zhang et al., ICLR 2018).

    One weight ``t ~ Beta(alpha, alpha)`` and one permutation per batch, as in the paper's code and
    in Rice et al. 2020 (who take alpha 1.4 for adversarial training): ``t * image + (1 - t) *
    other``, likewise for the labels. The cross-entropy of such a label is that of the two, mixed.

    Args:
        key: one typed key.
        images: float `[batch, height, width, channels]` in [0, 1].
        labels: int `[batch]`.
        alpha: positive.
        num_classes: number of classes.

    Returns:
        Images of the same shape, and float labels `[batch, num_classes]` that sum to 1.

    Raises:
        ValueError: for alpha that is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"The alpha of mixup is {alpha!r}, but a positive number was expected.")
    check_key(key)
    weight_key, order_key = jax.random.split(key)
    t = jax.random.beta(weight_key, alpha, alpha, dtype=jnp.float32).astype(images.dtype)
    order = jax.random.permutation(order_key, images.shape[0])
    soft = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    return t * images + (1 - t) * images[order], t * soft + (1 - t) * soft[order]


def cutmix(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """A box of each image is cut out of another of the batch (Yun et al., ICCV 2019).

    One share ``t ~ Beta(alpha, alpha)``, one box and one permutation per batch, as in the paper's
    code: the box has sides of ``sqrt(1 - t)`` of the image's, rounded down, around a uniformly
    drawn pixel, and is cut off at the edges. Labels are mixed by the pixels that each image has.

    Args:
        key: one typed key.
        images: float `[batch, height, width, channels]` in [0, 1].
        labels: int `[batch]`.
        alpha: positive; 1 in the paper.
        num_classes: number of classes.

    Returns:
        Images of the same shape, and float labels `[batch, num_classes]` that sum to 1.

    Raises:
        ValueError: for alpha that is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"The alpha of CutMix is {alpha!r}, but a positive number was expected.")
    check_key(key)
    share_key, order_key, row_key, column_key = jax.random.split(key, 4)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))
    order = jax.random.permutation(order_key, images.shape[0])

    def cut(key: jax.Array, size: int) -> jax.Array:
        half = (size * side).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, size)
        places = jnp.arange(size)
        return (places >= centre - half) & (places < centre + half)

    height, width = images.shape[1:3]
    box = cut(row_key, height)[:, None] & cut(column_key, width)[None, :]
    kept = 1 - box.mean(dtype=images.dtype)
    soft = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    mixed = jnp.where(box[None, :, :, None], images[order], images)
    return mixed, kept * soft + (1 - kept) * soft[order]
