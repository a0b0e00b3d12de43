"""The idx format of MNIST and Fashion-MNIST.

Format: http://yann.lecun.com/exdb/mnist/: two zero bytes, the element type (8: unsigned byte), the
number of dimensions, each dimension as a big-endian uint32, then the elements in C order.
"""

import math
import struct
from pathlib import Path

import numpy as np

from awp_jax.data._dataset import DataError, Dataset
from awp_jax.data._files import MAX_BYTES, open_maybe_gzip, read_at_most

_SPLITS = {"train": "train", "test": "t10k"}


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array with `ndim` dimensions in an idx file, packed with gzip or not."""
    with open_maybe_gzip(path) as file:
        header = read_at_most(file, 4 + 4 * ndim)
        expected = bytes([0, 0, 8, ndim])
        if header[:4] != expected:
            raise DataError(
                f"{path} starts with {header[:4].hex() or 'nothing'}, where an idx file of bytes "
                f"with {ndim} dimension(s) starts with {expected.hex()}."
            )
        if len(header) < 4 + 4 * ndim:
            raise DataError(f"{path} ends inside its header.")
        shape = struct.unpack(f">{ndim}I", header[4:])
        size = math.prod(shape)
        if size > MAX_BYTES:
            raise DataError(
                f"{path} declares shape {shape}, more than any known data set of this format."
            )
        data = read_at_most(file, size + 1)
    if len(data) != size:
        held = f"only {len(data)}" if len(data) < size else "more"
        raise DataError(f"{path} declares shape {shape}, {size} bytes, but holds {held}.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_mnist(folder: Path, name: str) -> tuple[Dataset, Dataset]:
    """Training and test set from the four files of MNIST or Fashion-MNIST, `[n, 28, 28, 1]`."""
    train, test = (_read_split(folder, name, split) for split in ("train", "test"))
    return train, test


def _read_split(folder: Path, name: str, split: str) -> Dataset:
    prefix = _SPLITS[split]
    images_path = _find(folder, f"{prefix}-images", "idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels", "idx1-ubyte")
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{images_path} holds images of {images.shape[1:]}, not (28, 28), pixels.")
    return Dataset(images[..., None], labels, 10, f"{name} {split}")


def _find(folder: Path, stem: str, kind: str) -> Path:
    for directory in (folder, folder / "raw"):  # torchvision keeps them in raw/
        for separator in "-.":
            for suffix in ("", ".gz"):
                path = directory / f"{stem}{separator}{kind}{suffix}"
                if path.is_file():
                    return path
    raise DataError(f"{folder} holds neither {stem}-{kind} nor {stem}-{kind}.gz.")
