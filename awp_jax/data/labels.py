"""What is done to labels: noise, mixup, and pseudo-labels of unlabelled images."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.data._dataset import DataError, Dataset, as_float
from awp_jax.data._files import read_all, reading
from awp_jax.data._npz import read_npz_arrays
from awp_jax.data._pickle import read_pickle, to_array
from awp_jax.random import check_key


def with_label_noise(dataset: Dataset, rate: float, seed: int) -> Dataset:
    """A data set of which some labels were drawn anew, once and for all.

    Each label is replaced with probability ``rate`` by a class drawn uniformly from all, so that in
    expectation its distribution is that of label smoothing by ``rate`` (Stutz et al., ICCV 2021,
    section 4.1).

    Args:
        dataset: labelled images.
        rate: in [0, 1].
        seed: of the draws, 0 to 2**32 - 1.

    Raises:
        DataError: for a rate out of range.
    """
    if not 0 <= rate <= 1:
        raise DataError(f"label_noise is {rate!r}, but a number in [0, 1] was expected.")
    random = np.random.RandomState(seed)  # its stream is fixed for good
    replaced = random.uniform(size=len(dataset)) < rate
    drawn = random.randint(dataset.num_classes, size=len(dataset), dtype=np.int32)
    return dataclasses.replace(dataset, labels=np.where(replaced, drawn, dataset.labels))


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Convex combinations of the images of a batch and of their labels (Zhang et al., ICLR 2018).

    One weight ``t ~ Beta(alpha, alpha)`` and one permutation per batch, as in the paper's code and
    in Rice et al. 2020 (who take alpha 1.4 for adversarial training): ``t * image + (1 - t) *
    other``, likewise for the labels. The cross-entropy of such a label is that of the two, mixed.

    Args:
        key: one typed key.
        images: float `[batch, height, width, channels]` in [0, 1].
        labels: int `[batch]`.
        alpha: positive.
        num_classes: number of classes.

    Returns:
        Images of the same shape, and float labels `[batch, num_classes]` that sum to 1.

    Raises:
        ValueError: for alpha that is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"The alpha of mixup is {alpha!r}, but a positive number was expected.")
    check_key(key)
    weight_key, order_key = jax.random.split(key)
    t = jax.random.beta(weight_key, alpha, alpha, dtype=jnp.float32).astype(images.dtype)
    order = jax.random.permutation(order_key, images.shape[0])
    soft = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    return t * images + (1 - t) * images[order], t * soft + (1 - t) * soft[order]


def read_images(path: str | Path) -> np.ndarray:
    """The images of an array file, with labels or without.

    Args:
        path: an .npz file with `images`, a .npy file, or the .pickle file of RST (Carmon et al.).

    Returns:
        uint8 `[n, height, width, channels]` or float32 in [0, 1].

    Raises:
        DataError: when the file cannot be read or holds no images.
    """
    return _images(_read(Path(path)), path)


def _read(path: Path, bare: str = "images") -> dict[str, np.ndarray]:
    if path.suffix not in (".pickle", ".pkl"):
        return read_npz_arrays(path, bare)
    # The file of Carmon et al., 2019: a dict of `data` and `extrapolated_targets`.
    if not path.is_file():
        raise DataError(f"{path} is not a file.")
    with reading(path), path.open("rb") as file:
        loaded = read_pickle(read_all(file, path), path)
    names = {"data": "images", "extrapolated_targets": "labels"}
    items = loaded.items() if isinstance(loaded, dict) else ()
    known = {}
    for key, value in items:
        name = names.get(key.decode(errors="replace") if isinstance(key, bytes) else key)
        if name:
            known[name] = to_array(value)
    return known


def _images(arrays: dict[str, np.ndarray], path: str | Path) -> np.ndarray:
    if "images" not in arrays:
        raise DataError(f"{path} has no images; it holds {', '.join(arrays) or 'nothing known'}.")
    images = arrays["images"]
    if images.ndim == 3:
        images = images[..., None]
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    # Its checks are those of images.
    return Dataset(images, np.zeros(len(images), np.int32), 1, str(path)).images


def read_pseudo_labelled(
    images: str | Path, labels: str | Path | None, num_classes: int
) -> Dataset:
    """Unlabelled images with the labels that a model gave them (`awp-jax pseudo-label`).

    Args:
        images: as for `read_images`.
        labels: an .npz file with `labels`, or a .npy file; None for those beside the images.
        num_classes: number of classes.

    Raises:
        DataError: when a file cannot be read, or the labels do not fit: in one sentence.
    """
    arrays = _read(Path(images))
    pictures = _images(arrays, images)
    where = Path(images if labels is None else labels)
    found = arrays if labels is None else _read(where, bare="labels")
    if "labels" not in found:
        raise DataError(
            f"{where} has no labels: make some with 'awp-jax pseudo-label --images={images}', and "
            "name them in data.pseudo_labels."
        )
    if found["labels"].shape != (len(pictures),):
        raise DataError(
            f"{where} holds labels of shape {found['labels'].shape}, but {images} has "
            f"{len(pictures)} images: one label for each was expected."
        )
    return Dataset(pictures, found["labels"], num_classes, str(where))


def check_joinable(first: Dataset, second: Dataset) -> None:
    """Raises ``DataError`` when the images of two data sets have other sizes."""
    if first.images.shape[1:] != second.images.shape[1:]:
        raise DataError(
            f"The images of {second.name} are {second.images.shape[1:]}, but those of {first.name} "
            f"are {first.images.shape[1:]}."
        )


def joined(first: Dataset, second: Dataset) -> Dataset:
    """Two data sets in one, the second behind the first; floats where either has them.

    Raises:
        DataError: when their images have other sizes.
    """
    check_joinable(first, second)
    pair = [first.images, second.images]
    if pair[0].dtype != pair[1].dtype:
        pair = [as_float(images, np.float32) for images in pair]
    return dataclasses.replace(
        first,
        images=np.concatenate(pair),
        labels=np.concatenate([first.labels, second.labels]),
    )
