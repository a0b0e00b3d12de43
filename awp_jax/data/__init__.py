"""Data sets in memory, augmentation inside jit, and batches."""

from awp_jax.data._dataset import DataError as DataError
from awp_jax.data._dataset import Dataset as Dataset
from awp_jax.data._dataset import Splits as Splits
from awp_jax.data._dataset import as_float as as_float
from awp_jax.data._load import dataset_names as dataset_names
from awp_jax.data._load import load as load
from awp_jax.data._npz import read_npz as read_npz
from awp_jax.data._published import published_sizes as published_sizes
from awp_jax.data._statistics import has_statistics as has_statistics
from awp_jax.data._statistics import measured_statistics as measured_statistics
from awp_jax.data._statistics import statistics as statistics
from awp_jax.data._subset import subset as subset
from awp_jax.data._tfds import prepare_tfds as prepare_tfds
from awp_jax.data.augmentation import augment as augment
from awp_jax.data.augmentation import cutout as cutout
from awp_jax.data.autoaugment import autoaugment as autoaugment
from awp_jax.data.batching import epoch_order as epoch_order
from awp_jax.data.batching import padded_batches as padded_batches
from awp_jax.data.batching import steps_per_epoch as steps_per_epoch
from awp_jax.data.labels import check_joinable as check_joinable
from awp_jax.data.labels import joined as joined
from awp_jax.data.labels import mixup as mixup
from awp_jax.data.labels import read_images as read_images
from awp_jax.data.labels import read_pseudo_labelled as read_pseudo_labelled
from awp_jax.data.labels import with_label_noise as with_label_noise
