"""Image folders, one for each class, as ImageNet is kept and torchvision's ImageFolder reads it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from awp_jax.data._dataset import DataError
from awp_jax.data._encoded import ByteRanges
from awp_jax.data._files import reading

# torchvision.datasets.folder.IMG_EXTENSIONS.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def class_folders(folder: Path) -> list[str]:
    """Names of the classes in the order of their labels: sorted.

    Raises:
        DataError: when there is none.
    """
    with reading(folder):
        found = sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith(".")
        )
    if not found:
        raise DataError(
            f"{folder} holds no folders: one for each class, with its images, was expected, or "
            ".tar shards."
        )
    return found


def read_folders(folder: Path, classes: Sequence[str]) -> tuple[ByteRanges, np.ndarray]:
    """The images of a folder, sorted by class and path; only their names are read.

    Args:
        folder: with a folder for each class; images may lie in folders of these.
        classes: names of all classes.

    Returns:
        The files, and labels int32 `[n]`.

    Raises:
        DataError: for a folder that is no class, or has no image.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    paths: list[bytes] = []
    labels: list[int] = []
    for name in class_folders(folder):
        if name not in label_of:
            raise DataError(
                f"{folder / name} is no class: the training images have no folder {name!r}."
            )
        with reading(folder / name):
            found = _images_below(folder, name)
        if not found:
            raise DataError(
                f"{folder / name} holds no image: a file that ends in {', '.join(EXTENSIONS)} was "
                "expected."
            )
        paths += found
        labels += [label_of[name]] * len(found)
    n = len(paths)
    whole = ByteRanges(
        folder,
        np.array(paths),
        np.arange(n, dtype=np.int32),
        np.zeros(n, np.int64),
        np.full(n, -1, np.int64),
    )
    return whole, np.array(labels, np.int32)


def _images_below(folder: Path, name: str) -> list[bytes]:
    found = []
    for place, _, files in sorted(os.walk(folder / name, onerror=_fail, followlinks=True)):
        below = os.path.relpath(place, folder)
        found += [
            os.fsencode(os.path.join(below, file))
            for file in sorted(files)
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
    return found


def _fail(error: OSError) -> None:
    # os.walk leaves folders out that it cannot read.
    raise error
