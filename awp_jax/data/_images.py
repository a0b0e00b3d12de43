"""Sets of image files of any size: ImageNet's folders, tar shards, array_record shards."""

from pathlib import Path

import numpy as np

from awp_jax.data._array_records import ArrayRecords
from awp_jax.data._dataset import DataError
from awp_jax.data._decoding import Decoding
from awp_jax.data._encoded import DecodedRows, Encoded
from awp_jax.data._folders import class_folders, read_folders
from awp_jax.data._shards import read_shards
from awp_jax.data.extra import StoredImages

_TEST = ("val", "validation", "test")
_EXPECTED = (
    "a folder train and one of val, validation or test, with a folder for each class, or .tar or "
    ".array_record shards in these or with these words in their names"
)


def read_images(
    root: Path, name: str, num_classes: int | None, decoding: Decoding
) -> tuple[StoredImages, StoredImages]:
    """Training and test images of a folder, which stay in their files.

    Args:
        root: ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``, or shards ``train/*.tar`` and
            ``val/*.tar``, or ``*train*.tar`` and ``*val*.tar``, or likewise ``.array_record``, as
            in a folder of TensorFlow Datasets.
        name: of the data set.
        num_classes: by default as many as there are folders, or labels in the training shards.
        decoding: to what images are decoded.

    Raises:
        DataError: for another layout, a class without images, labels outside; see `read_folders`
            and `read_shards`.
    """
    train, train_labels, classes = _read(root, ("train",), None)
    test, test_labels, _ = _read(root, _TEST, classes)
    if classes is not None:
        wanted = len(classes)
        if num_classes not in (None, wanted):
            raise DataError(f"{root / 'train'} has {wanted} class folders, not {num_classes}.")
    else:
        wanted = num_classes or _gapless(train, train_labels)
    sets = ((train, train_labels, name), (test, test_labels, f"{name} test"))
    first, second = (stored(part, labels, wanted, of, decoding) for part, labels, of in sets)
    return first, second


def stored(
    encoded: Encoded, labels: np.ndarray, num_classes: int, name: str, decoding: Decoding
) -> StoredImages:
    """Images in their files with their labels, which are checked.

    Raises:
        DataError: for a label outside, with the place that has it.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise DataError(
            f"{encoded.where(int(outside[0])).rstrip(',')} has label {labels[outside[0]]}, which "
            f"is not one of 0..{num_classes - 1}."
        )
    return StoredImages(DecodedRows(encoded, decoding), labels, num_classes, name)


def _read(
    root: Path, names: tuple[str, ...], classes: list[str] | None
) -> tuple[Encoded, np.ndarray, list[str] | None]:
    """Images and labels of the first of these parts, and its class folders where it has them."""
    for part in names:
        folder = root / part
        if folder.is_dir():
            found = _shards(folder, "*")
            if found is not None:
                return *found, None
            classes = class_folders(folder) if classes is None else classes
            return *read_folders(folder, classes), classes
    for part in names:
        found = _shards(root, f"*{part}*")
        if found is not None:
            return *found, None
    raise DataError(f"{root} holds no {' or '.join(names)} images: {_EXPECTED}, were expected.")


def _shards(folder: Path, pattern: str) -> tuple[Encoded, np.ndarray] | None:
    """Images and labels of the shards of these names, where there are any."""
    tars = sorted(folder.glob(f"{pattern}.tar"))
    if tars:
        return read_shards(tars)
    # As tensorflow-datasets calls them, imagenet2012-train.array_record-00000-of-01024, or plainly.
    records = sorted(folder.glob(f"{pattern}.array_record*"))
    if not records:
        return None
    found = ArrayRecords(records)
    return found, found.labels()


def _gapless(encoded: Encoded, labels: np.ndarray) -> int:
    """The number of classes, each of which some image has: a label far outside would add many."""
    counts = np.bincount(labels)
    if 0 in counts:
        last = int(np.argmax(labels))
        raise DataError(
            f"{encoded.where(last).rstrip(',')} has label {labels[last]}, but no training image "
            f"has label {int(np.argmin(counts))}: labels without a gap from 0 were expected."
        )
    return len(counts)
