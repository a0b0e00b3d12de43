"""Sizes of well-known data sets, for planning a run where the files are not at hand."""

import numpy as np

from awp_jax.data._dataset import Dataset, Splits

_SIZES = {
    "mnist": (60_000, 10_000, (28, 28, 1), 10),
    "fashion-mnist": (60_000, 10_000, (28, 28, 1), 10),
    "cifar10": (50_000, 10_000, (32, 32, 3), 10),
    "cifar100": (50_000, 10_000, (32, 32, 3), 100),
    "svhn": (73_257, 26_032, (32, 32, 3), 10),
    # ILSVRC 2012, whose 50,000 validation images all publications evaluate on, cut to this size.
    "imagenet": (1_281_167, 50_000, (224, 224, 3), 1000),
}


def published_sizes(
    name: str, validation_examples: int = 0, image_size: int = 224
) -> Splits | None:
    """Blank images in the numbers and shapes of a data set.

    Args:
        name: Of the data set.
        validation_examples: Taken from the training images.
        image_size: To which those of ImageNet are decoded.

    Returns:
        Splits of black images labelled 0 (memory is shared, so they cost nothing), or ``None`` for
        a data set that is not known.
    """
    if name not in _SIZES:
        return None
    train, test, shape, num_classes = _SIZES[name]
    if name == "imagenet":
        shape = (image_size, image_size, 3)

    def blank(n: int) -> Dataset:
        images = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (n, *shape))
        return Dataset(images, np.zeros(n, np.int32), num_classes, name)

    validation = blank(validation_examples) if validation_examples else None
    return Splits(blank(train - validation_examples), validation, blank(test))
