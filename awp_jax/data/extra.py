"""Images beside the training set: generated ones, or unlabelled ones with pseudo-labels."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awp_jax.data._dataset import DataError, Dataset, check_shape
from awp_jax.data._entries import Entry, find_entries
from awp_jax.data._files import read_all, reading
from awp_jax.data._npz import IMAGE_KEYS, LABEL_KEYS
from awp_jax.data._pickle import read_pickle, to_array
from awp_jax.data._rows import FileRows, JoinedRows, Rows, in_memory, selected


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages:
    """Labelled images that stay in their files: only the rows that are asked for are read.

    It is also a source of random access for ``grain.MapDataset.source``: ``stored[3]`` is
    ``{"image": ..., "label": ...}``.

    Attributes:
        images: uint8 `[n, height, width, channels]` in 0..255, or float32 in [0, 1]; `images[rows]`
            is a numpy array, for a slice or an array of integers.
        labels: integers `[n]` in `[0, num_classes)`.
        num_classes: number of classes.
        name: what they are, for messages.
    """

    images: Rows
    labels: np.ndarray
    num_classes: int
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example: its image `[height, width, channels]`, and its label as int32."""
        image = self.images[np.array([range(len(self))[index]])][0]
        return {"image": image, "label": np.int32(self.labels[index])}

    def select(self, indices: np.ndarray | slice) -> "StoredImages":
        """The examples at `indices`, of which nothing is read."""
        return dataclasses.replace(
            self, images=selected(self.images, indices), labels=self.labels[indices]
        )

    def in_memory(self) -> Dataset:
        """All of them, read whole."""
        return Dataset(in_memory(self.images), self.labels, self.num_classes, self.name)


def open_images(path: str | Path) -> Rows:
    """The images of an array file, with labels or without.

    uint8 images that are not compressed stay in the file, of which rows are read. Others are read
    whole, up to 2 GiB.

    Args:
        path: an .npz file with `image`, `images` or `x`; a folder into which one was unpacked; a
            .npy file; or the .pickle file of RST (Carmon et al.).

    Returns:
        uint8 `[n, height, width, channels]` or float32 in [0, 1]; a numpy array, or what reads like
        one.

    Raises:
        DataError: when the file cannot be read or holds no images.
    """
    return _images(_find(Path(path)), path)


def open_extra(
    images: str | Path | Sequence[str | Path],
    labels: str | Path | Sequence[str | Path] | None = None,
    *,
    num_classes: int,
) -> StoredImages:
    """Images to train on beside the training set, of one file or of several.

    Args:
        images: each as for `open_images`.
        labels: None where they lie beside the images, as `label`, `labels` or `y`. Else a file for
            each one of images: .npz, or .npy (`awp-jax pseudo-label` writes one). Integers
            in `[0, num_classes)`.
        num_classes: number of classes.

    Returns:
        The images of all files, one file behind the other. The labels are read and checked.

    Raises:
        DataError: when a file cannot be read, is cut off, has images of another size, or labels
            that do not fit: in one sentence.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from awp_jax import data
        >>> file = pathlib.Path(tempfile.mkdtemp(), "generated.npz")
        >>> np.savez(file, image=np.zeros((6, 4, 4, 3), np.uint8), label=np.arange(6))
        >>> found = data.open_extra(file, num_classes=10)
        >>> len(found), found.images[np.array([5, 0])].shape, found.labels[:3].tolist()
        (6, (2, 4, 4, 3), [0, 1, 2])
    """
    files = _paths(images)
    beside = [None] * len(files) if labels is None else _paths(labels)
    if len(beside) != len(files):
        raise DataError(
            f"{len(files)} files of images have {len(beside)} files of labels: one for each was "
            "expected, or none where the labels lie beside the images."
        )
    parts = [_open(file, where, num_classes) for file, where in zip(files, beside, strict=True)]
    first, *others = parts
    for other in others:
        check_joinable(first, other)
    if not others:
        return first
    return _joined(parts, num_classes, f"{first.name} and {len(others)} more")


def check_joinable(first: Dataset | StoredImages, second: Dataset | StoredImages) -> None:
    """Raises ``DataError`` when the images of two data sets have other sizes."""
    if first.images.shape[1:] != second.images.shape[1:]:
        raise DataError(
            f"The images of {second.name} are {second.images.shape[1:]}, but those of {first.name} "
            f"are {first.images.shape[1:]}."
        )


def joined(first: Dataset, second: StoredImages) -> StoredImages:
    """Two data sets in one, the second behind the first; floats where either has them.

    Nothing is read or copied but the labels.

    Raises:
        DataError: when their images have other sizes.
    """
    check_joinable(first, second)
    return _joined([first, second], first.num_classes, first.name)


def _joined(parts: Sequence[Dataset | StoredImages], num_classes: int, name: str) -> StoredImages:
    labels = np.concatenate([part.labels.astype(_smallest(num_classes)) for part in parts])
    return StoredImages(JoinedRows([part.images for part in parts]), labels, num_classes, name)


def _paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    found = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not found:
        raise DataError("No file of images was named.")
    return found


def _open(path: Path, labels: Path | None, num_classes: int) -> StoredImages:
    found = _find(path)
    images = _images(found, path)
    where = path if labels is None else labels
    beside = found if labels is None else _find(where, bare="labels")
    entry = _first(beside, LABEL_KEYS)
    if entry is None:
        raise DataError(
            f"{where} has no labels: make some with 'awp-jax pseudo-label --images={path}', and "
            "name them in data.extra_labels."
        )
    if entry.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{where} holds labels of shape {entry.shape}, but {path} has {len(images)} images: "
            "one label for each was expected."
        )
    return StoredImages(images, _read_labels(entry, num_classes, where), num_classes, str(where))


def _read_labels(entry: Entry | np.ndarray, num_classes: int, where: Path) -> np.ndarray:
    if not np.issubdtype(entry.dtype, np.integer):
        raise DataError(f"{where}: labels must be integers, not {entry.dtype}.")
    pieces: Iterable[np.ndarray]
    pieces = [entry.reshape(-1)] if isinstance(entry, np.ndarray) else entry.pieces()
    # 20 million labels of 8 bytes each are 160 MB, of one byte 20.
    labels, done = np.empty(entry.shape[0], _smallest(num_classes)), 0
    for piece in pieces:
        low, high = int(piece.min()), int(piece.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise DataError(f"{where}: label {wrong} is not one of 0..{num_classes - 1}.")
        labels[done : done + len(piece)] = piece
        done += len(piece)
    return labels


def _smallest(num_classes: int) -> np.dtype:
    return np.min_scalar_type(num_classes - 1)


_Found = dict[str, Entry] | dict[str, np.ndarray]


def _find(path: Path, bare: str = "images") -> _Found:
    """The known arrays of a file: where they lie, or, of a pickle, what they are."""
    if path.suffix not in (".pickle", ".pkl"):
        return find_entries(path, (*IMAGE_KEYS, *LABEL_KEYS), bare)
    # The file of Carmon et al., 2019: a dict of `data` and `extrapolated_targets`.
    if not path.is_file():
        raise DataError(f"{path} is not a file.")
    with reading(path), path.open("rb") as file:
        loaded = read_pickle(read_all(file, path), path)
    names = {"data": "images", "extrapolated_targets": "labels"}
    known = {}
    for key, value in loaded.items() if isinstance(loaded, dict) else ():
        name = names.get(key.decode(errors="replace") if isinstance(key, bytes) else key)
        if name:
            known[name] = to_array(value)
    return known


def _first(found: _Found, names: tuple[str, ...]) -> Entry | np.ndarray | None:
    return next((found[name] for name in names if name in found), None)


def _images(found: _Found, path: str | Path) -> Rows:
    entry = _first(found, IMAGE_KEYS)
    if entry is None:
        raise DataError(f"{path} has no images; it holds {', '.join(found) or 'nothing known'}.")
    shape = (*entry.shape, 1) if len(entry.shape) == 3 else entry.shape
    if isinstance(entry, Entry):
        if entry.dtype == np.uint8 and entry.offset is not None and not entry.fortran:
            check_shape(shape, str(path))
            return FileRows(entry.path, entry.offset, shape)
        entry = entry.read()
    images = entry.reshape(shape)
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # the range is checked below
            images = images.astype(np.float32, copy=False)
    # Its checks are those of images.
    return Dataset(images, np.zeros(len(images), np.int32), 1, str(path)).images
