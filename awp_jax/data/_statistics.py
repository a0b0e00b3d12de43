"""Channel means and standard deviations, by which models normalise their inputs."""

import math

import numpy as np

from awp_jax.data._dataset import DataError, Dataset, as_float
from awp_jax.data._encoded import DecodedRows
from awp_jax.data.extra import StoredImages

_PART = 1024  # images that are floats at the same time
_DECODED = 2048  # of files: all of ImageNet would take longer than an epoch

# Channel means and deviations of the images in [0, 1].
_STATISTICS = {
    # The AWP release (csdongxian/AWP), for AT on the three data sets.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": (
        (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
    ),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # torchvision's and timm's, and those of RobustBench's ImageNet entries.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel mean and standard deviation with which models normalise their inputs.

    Args:
        name: "cifar10", "cifar100", "svhn" or "imagenet".

    Returns:
        `(mean, std)`, one float per channel, for images in [0, 1], as in the AWP release
        (Wu et al., NeurIPS 2020), of ImageNet as in torchvision; normalisation belongs inside the
        model.

    Raises:
        DataError: for any other name.
    """
    if name not in _STATISTICS:
        raise DataError(f"No statistics for {name!r}; there are some for {', '.join(_STATISTICS)}.")
    return _STATISTICS[name]


def has_statistics(name: str) -> bool:
    """Whether ``statistics`` knows a data set.

    Example:
        >>> from awp_jax import data
        >>> data.has_statistics("cifar10"), data.has_statistics("npz")
        (True, False)
    """
    return name in _STATISTICS


def measured_statistics(
    dataset: Dataset | StoredImages,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel mean and standard deviation of the images of a data set, in [0, 1].

    Args:
        dataset: At least two different values in every channel. Of images that are decoded from
            files at most 2048 are looked at, evenly spaced.

    Returns:
        `(mean, std)`, one float per channel, rounded to six digits behind the point, so that the
        order of summation does not show.

    Raises:
        DataError: when a channel is constant.

    Example:
        >>> import numpy as np
        >>> from awp_jax import data
        >>> images = np.array([0.0, 0.5], np.float32).reshape(2, 1, 1, 1)
        >>> data.measured_statistics(data.Dataset(images, np.array([0, 1]), 2, "two"))
        ((0.25,), (0.25,))
    """
    images = dataset.images
    if isinstance(images, DecodedRows) and len(images) > _DECODED:
        images = images.select(np.linspace(0, len(images) - 1, _DECODED).astype(np.int64))
    sums, squares = 0.0, 0.0
    for start in range(0, len(images), _PART):
        part = as_float(images[start : start + _PART], np.float64)
        sums, squares = sums + part.sum((0, 1, 2)), squares + np.square(part).sum((0, 1, 2))
    count = math.prod(images.shape[:3])
    mean = np.asarray(sums / count)
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    found = tuple(round(float(m), 6) for m in mean), tuple(round(float(s), 6) for s in std)
    if not all(found[1]):
        raise DataError(
            f"{dataset.name}: channel {found[1].index(0.0)} of the training images is constant, so "
            "it has no deviation to divide by: set model.normalize to False."
        )
    return found
