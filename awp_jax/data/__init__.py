"""Data sets, in memory or in their files, augmentation inside jit, and batches."""

from awp_jax.data._dataset import DataError, Dataset, Splits, as_float
from awp_jax.data._decoding import Decoding, random_box
from awp_jax.data._encoded import DecodedRows
from awp_jax.data._load import IMAGE_FILES, cut, dataset_names, load
from awp_jax.data._npz import read_npz
from awp_jax.data._published import published_sizes
from awp_jax.data._rows import Rows
from awp_jax.data._statistics import has_statistics, measured_statistics, statistics
from awp_jax.data._subset import subset
from awp_jax.data._tfds import prepare_tfds
from awp_jax.data.augmentation import augment, cutout, random_erasing
from awp_jax.data.autoaugment import autoaugment
from awp_jax.data.batching import epoch_order, padded_batches, steps_per_epoch
from awp_jax.data.corruptions import CORRUPTIONS, corrupt
from awp_jax.data.extra import (
    StoredImages,
    check_joinable,
    joined,
    open_extra,
    open_images,
)
from awp_jax.data.labels import cutmix, mixup, with_label_noise
from awp_jax.data.trivialaugment import trivialaugment

__all__ = [
    "CORRUPTIONS",
    "DataError",
    "Dataset",
    "DecodedRows",
    "Decoding",
    "IMAGE_FILES",
    "Rows",
    "Splits",
    "StoredImages",
    "as_float",
    "augment",
    "autoaugment",
    "check_joinable",
    "corrupt",
    "cut",
    "cutmix",
    "cutout",
    "dataset_names",
    "epoch_order",
    "has_statistics",
    "joined",
    "load",
    "measured_statistics",
    "mixup",
    "open_extra",
    "open_images",
    "padded_batches",
    "prepare_tfds",
    "published_sizes",
    "random_box",
    "random_erasing",
    "read_npz",
    "statistics",
    "steps_per_epoch",
    "subset",
    "trivialaugment",
    "with_label_noise",
]
