"""Image classification sets of TensorFlow Datasets, read without TensorFlow.

`tfds.data_source` reads what was prepared in the array_record format; only preparing needs
TensorFlow. https://www.tensorflow.org/datasets/tfless_tfds
"""

from pathlib import Path
from typing import Any

import numpy as np

from awp_jax.data._array_records import ArrayRecords
from awp_jax.data._dataset import DataError, Dataset
from awp_jax.data._decoding import Decoding
from awp_jax.data._images import stored
from awp_jax.data.extra import StoredImages
from awp_jax.extras import MissingExtraError, needed_by


def prepare_tfds(name: str, data_dir: str | Path | None = None) -> None:
    """Download a data set of TensorFlow Datasets and write it so that `load` can read it.

    Needs `pip install "awp_jax[tfds]"` and, for most data sets, TensorFlow and a network.

    Args:
        name: a name of https://www.tensorflow.org/datasets/catalog, such as "cifar10" (without
            "tfds:").
        data_dir: folder to write to; by default that of TensorFlow Datasets.

    Raises:
        DataError: when tensorflow-datasets does not know the name.
        MissingExtraError: when it is not installed, or TensorFlow, which preparing needs.
    """
    try:
        # The default format, tfrecord, cannot be read without TensorFlow.
        builder = _builder(name, data_dir, file_format="array_record")
        builder.download_and_prepare()
    except MissingExtraError:
        raise
    except ImportError as error:  # its own, at length and without the name of a module
        with needed_by(f"Preparing {name}"):
            raise ModuleNotFoundError(str(error), name="tensorflow") from error


def read_tfds(
    name: str, data_dir: Path | None, decoding: Decoding
) -> tuple[Dataset, Dataset] | tuple[StoredImages, StoredImages]:
    """Splits "train" and "test" ("validation" where there is no test split) of a prepared set.

    Images of any size stay in their shards, and are decoded when they are asked for.
    """
    builder = _builder(name, data_dir)
    features = builder.info.features
    label: Any = features["label"] if "image" in features and "label" in features else None
    if not hasattr(label, "num_classes"):
        raise DataError(f"tfds:{name} has no image and class label: it is no classification set.")
    num_classes = int(label.num_classes)
    splits = builder.info.splits  # empty while unprepared
    test = "validation" if "validation" in splits and "test" not in splits else "test"
    if None in features["image"].shape:
        parts = [_shards(name, builder, split) for split in ("train", test)]
        first, second = (
            stored(part, part.labels(), num_classes, f"tfds:{name} {split}", decoding)
            for part, split in zip(parts, ("train", test), strict=True)
        )
        return first, second
    return (
        _read_split(name, "train", data_dir, num_classes),
        _read_split(name, test, data_dir, num_classes),
    )


def _builder(name: str, data_dir: str | Path | None, **arguments: Any) -> Any:
    with needed_by(f"tfds:{name}"):
        import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=None if data_dir is None else str(data_dir), **arguments)
    except ImportError:
        raise
    except Exception as error:  # unknown names, configs and versions each have a type of their own
        # Its message may list every known name.
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(f"tensorflow-datasets cannot load {name!r}: {reason}.") from error


def _shards(name: str, builder: Any, split: str) -> ArrayRecords:
    files = builder.info.splits[split].filepaths if split in builder.info.splits else ()
    if not files or not all(".array_record" in str(file) for file in files):
        raise DataError(
            f"tfds:{name} has no split {split!r} in the array_record format; "
            f"awp_jax.data.prepare_tfds({name!r}, data_dir) makes it."
        )
    return ArrayRecords([Path(file) for file in files])


def _read_split(name: str, split: str, data_dir: Path | None, num_classes: int) -> Dataset:
    import tensorflow_datasets as tfds

    where = None if data_dir is None else str(data_dir)
    try:
        source = tfds.data_source(name, split=split, data_dir=where, download=False)
    except Exception as error:
        # Not prepared, prepared in another format, or without that split.
        place = "the default folder of tensorflow-datasets" if where is None else where
        raise DataError(
            f"tfds:{name} has no split {split!r} in the array_record format in {place}; "
            f"awp_jax.data.prepare_tfds({name!r}, data_dir) makes it."
        ) from error
    try:
        # One by one: the mock of tfds.testing supports neither slices nor several indices.
        examples = [source[index] for index in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        labels = np.array([int(example["label"]) for example in examples])
    except Exception as error:  # damaged records, or images of several sizes
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(f"tfds:{name}, split {split!r}, could not be read: {reason}.") from error
    return Dataset(images, labels, num_classes, f"tfds:{name} {split}")
