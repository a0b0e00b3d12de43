"""Data sets in memory, augmentation inside jit, and batches."""

from awp_jax.data._dataset import DataError as DataError
from awp_jax.data._dataset import Dataset as Dataset
from awp_jax.data._dataset import Splits as Splits
from awp_jax.data._dataset import as_float as as_float
from awp_jax.data._dataset import statistics as statistics
from awp_jax.data._load import dataset_names as dataset_names
from awp_jax.data._load import load as load
from awp_jax.data._npz import read_npz as read_npz
from awp_jax.data._published import published_sizes as published_sizes
from awp_jax.data._tfds import prepare_tfds as prepare_tfds
from awp_jax.data.augmentation import augment as augment
from awp_jax.data.augmentation import cutout as cutout
from awp_jax.data.batching import epoch_order as epoch_order
from awp_jax.data.batching import padded_batches as padded_batches
from awp_jax.data.batching import steps_per_epoch as steps_per_epoch
