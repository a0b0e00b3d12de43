"""Labelled images in memory, their checks, and the step from bytes to floats."""

import dataclasses
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from awp_jax.data.extra import StoredImages


class DataError(ValueError):
    """A data set cannot be found, read or used; the message is one sentence that says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels, checked when made.

    Attributes:
        images: uint8 `[n, height, width, channels]` in 0..255, or float32 of the same shape in
            [0, 1]. Image files stay uint8, a quarter of the memory; `as_float` converts batches.
        labels: int32 `[n]` in `[0, num_classes)`. Other integer types are converted.
        num_classes: number of classes, at least 1.
        name: what the images are, for messages and results, such as `"cifar10"`.

    Raises:
        DataError: a ValueError, when shapes, types or values are not as above.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    name: str

    def __repr__(self) -> str:
        images = f"{self.images.dtype}{list(self.images.shape)}"
        return f"Dataset({self.name}: images {images}, {self.num_classes} classes)"

    def __post_init__(self) -> None:
        _check_images(self.images, self.name)
        labels = _checked_labels(self.labels, self.num_classes, self.name)
        if len(labels) != len(self.images):
            raise DataError(f"{self.name}: {len(self.images)} images have {len(labels)} labels.")
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray | slice) -> "Dataset":
        """The examples at `indices` (a slice shares memory, an index array copies)."""
        return dataclasses.replace(
            self, images=self.images[indices], labels=np.ascontiguousarray(self.labels[indices])
        )

    def in_memory(self) -> "Dataset":
        """Itself: what `StoredImages` have to read is here."""
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """The parts of one data set, in memory or as ``StoredImages`` in their files.

    Attributes:
        train: examples to train on.
        validation: examples held out of the original training set, None when none were asked for.
        test: the original test set, or a `subset` of it.
    """

    train: "Dataset | StoredImages"
    validation: "Dataset | StoredImages | None"
    test: "Dataset | StoredImages"


def as_float(images: Any, dtype: Any = None) -> Any:
    """Images as floats in [0, 1], in numpy or inside jit.

    Args:
        images: uint8 of any shape in 0..255, or floats in [0, 1]; a numpy or a (traced) jax array.
        dtype: floating type of the result. By default float32 for uint8, and floats stay as they
            are.

    Returns:
        `images / 255` for uint8, else `images`; numpy for numpy, jax for jax.

    Raises:
        ValueError: when images are neither uint8 nor floats, or dtype is no floating type.
    """
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating type, not {np.dtype(dtype).name}.")
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images if dtype is None else images.astype(dtype)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 or floating, not {images.dtype}.")
    dtype = np.dtype(jnp.float32 if dtype is None else dtype)
    wide = np.dtype(
        jnp.promote_types(dtype, jnp.float32)
    )  # half precision is rounded once, at the end
    if isinstance(images, np.ndarray):
        return (images.astype(wide) / wide.type(255)).astype(dtype)
    # XLA turns division by 255 into multiplication by its reciprocal, which is off by one ulp for
    # half of the 256 values. With the reciprocal in two parts, of which images times the first is
    # exact, all values equal those of numpy and PyTorch.
    first = wide.type(round(2**23 / 255) / 2**23)
    second = wide.type(Fraction(1, 255) - Fraction(float(first)))
    images = images.astype(wide)
    return (images * first + images * second).astype(dtype)


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raises ``DataError`` where images of this shape are none."""
    if len(shape) != 4 or 0 in shape:
        raise DataError(
            f"{name}: images must be non-empty [n, height, width, channels], not of shape {shape}."
        )


def _check_images(images: np.ndarray, name: str) -> None:
    if not isinstance(images, np.ndarray):
        raise DataError(f"{name}: images must be a numpy array, not {type(images).__name__}.")
    check_shape(images.shape, name)
    if images.dtype == np.uint8:
        return
    if images.dtype != np.float32:
        raise DataError(f"{name}: images must be uint8 or float32, not {images.dtype}.")
    low, high = images.min(), images.max()  # either is NaN when any value is
    if not (low >= 0 and high <= 1):
        raise DataError(f"{name}: float images must lie in [0, 1], not in [{low:g}, {high:g}].")


def _checked_labels(labels: np.ndarray, num_classes: int, name: str) -> np.ndarray:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise DataError(f"{name}: num_classes must be a positive integer, not {num_classes!r}.")
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        shape = getattr(labels, "shape", type(labels).__name__)
        raise DataError(f"{name}: labels must be a numpy array [n], not {shape}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name}: labels must be integers, not {labels.dtype}.")
    if len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise DataError(f"{name}: label {wrong} is not one of 0..{num_classes - 1}.")
    return labels.astype(np.int32)
