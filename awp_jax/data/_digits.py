"""The 8 x 8 handwritten digits that come with scikit-learn: real images without any download."""

import numpy as np

from awp_jax.data._dataset import Dataset
from awp_jax.extras import needed_by

TRAIN_EXAMPLES = 1000
# Neighbours in the original order come from the same writers, so that the split is shuffled. It is
# the same for everybody: no argument changes it.
_SPLIT_SEED = 0


def read_digits(name: str) -> tuple[Dataset, Dataset]:
    """1,000 training and 797 test images, float32 `[n, 8, 8, 1]` (value / 16, exact) in [0, 1].

    The split is one fixed permutation, not stratified. Source: E. Alpaydin and C. Kaynak,
    "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its test
    part), through `sklearn.datasets.load_digits`.

    Raises:
        MissingExtraError: Where scikit-learn is not installed.
    """
    with needed_by(f"The data set {name}"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[..., None]
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(images))
    train, test = (
        Dataset(images[part], bunch.target[part], 10, f"{name} {split}")
        for part, split in ((order[:TRAIN_EXAMPLES], "train"), (order[TRAIN_EXAMPLES:], "test"))
    )
    return train, test
