"""A part of a data set that stands for the whole."""

from typing import TypeVar

import numpy as np

from awp_jax import checks
from awp_jax.data._dataset import Dataset
from awp_jax.data.extra import StoredImages

# What is handed in is what comes out.
Images = TypeVar("Images", Dataset, StoredImages, Dataset | StoredImages)


def subset(dataset: Images, examples: int, seed: int = 0) -> Images:
    """So many examples, every class with its share, drawn by a seed.

    Files are often sorted by class: their first examples are of one. The same data set and seed
    give the same examples, whatever the model, and a smaller subset is part of a larger one.

    Args:
        dataset: Labelled images.
        examples: How many, at least 1; all when there are fewer.
        seed: Of the draw, in 0..2**32 - 1.

    Returns:
        The chosen examples in the order of ``dataset``. A class of which there are c among n has
        ``examples * c / n`` of them, rounded up or down (Sainte-Lague's method).

    Raises:
        ValueError: When ``examples`` is no integer of at least 1.

    Example:
        >>> import numpy as np
        >>> from awp_jax import data
        >>> images, labels = np.zeros((6, 8, 8, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1])
        >>> whole = data.Dataset(images, labels, num_classes=2, name="sorted")
        >>> data.subset(whole, 3).labels.tolist()
        [0, 0, 1]
    """
    checks.positive_integer(examples, "examples")
    if examples >= len(dataset):
        return dataset
    # RandomState, whose stream is fixed for good.
    order = np.random.RandomState(seed).permutation(len(dataset))
    labels = dataset.labels[order]
    counts = np.bincount(labels, minlength=dataset.num_classes)
    by_class = np.argsort(labels, kind="stable")
    place = np.empty(len(labels))  # of each example among those of its class
    place[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.argsort((place + 0.5) / counts[labels], kind="stable")[:examples]
    return dataset.select(np.sort(order[first]))
