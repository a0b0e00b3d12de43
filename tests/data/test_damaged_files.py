"""Random damage: every file either loads as a valid data set or is refused in one sentence."""

import data_writers as writers
import numpy as np
import pytest
from damage import ROUNDS, damaged

from awp_jax.data import DataError, load


def write_npz(folder):
    folder.mkdir()
    images, labels = writers.random_examples(3, (6, 6, 1))
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez_compressed(folder / "a.npz", **arrays)


FORMATS = {
    "idx": ("mnist", lambda folder: writers.write_mnist(folder), "train-images-idx3-ubyte"),
    "idx.gz": ("mnist", lambda folder: writers.write_mnist(folder, True), "*images*.gz"),
    "binary": ("cifar10", lambda f: writers.write_cifar(f, "cifar10", "binary"), "*_1.bin"),
    "python": ("cifar10", lambda f: writers.write_cifar(f, "cifar10", "python"), "data_batch_1"),
    "npz": ("npz", write_npz, "a.npz"),
    "mat": ("svhn", writers.write_svhn, "train_32x32.mat"),
    "mat, not packed": ("svhn", lambda f: writers.write_svhn(f, False), "train_32x32.mat"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_refused_or_harmless(tmp_path, form):
    name, write, pattern = FORMATS[form]
    folder = tmp_path / "files"
    write(folder)
    path = sorted(folder.glob(pattern))[0]
    good = path.read_bytes()
    random = np.random.RandomState(len(form))
    where = path if name == "npz" else folder
    refused = 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(good, random))
        try:
            splits = load(name, path=where)
        except DataError as error:
            refused += 1
            assert str(error).endswith(".") and "\n" not in str(error), str(error)
        else:
            assert len(splits.train) and len(splits.test)  # Dataset checked the rest
    assert refused > ROUNDS // 5
