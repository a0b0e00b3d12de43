"""Finding a data set by name and cutting it into training, validation and test examples."""

import dataclasses
import difflib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from awp_jax.data._cifar import read_cifar
from awp_jax.data._dataset import DataError, Dataset, Splits
from awp_jax.data._decoding import Decoding
from awp_jax.data._digits import read_digits
from awp_jax.data._idx import read_mnist
from awp_jax.data._images import read_images
from awp_jax.data._npz import read_npz_splits
from awp_jax.data._subset import subset
from awp_jax.data._svhn import read_svhn
from awp_jax.data._tfds import read_tfds
from awp_jax.data.extra import StoredImages

DATA_VARIABLE = "AWP_JAX_DATA"


@dataclasses.dataclass(frozen=True)
class _Files:
    read: Callable[[Path, str], tuple[Dataset, Dataset]]
    expected: str
    url: str


_MNIST_FILES = (
    "{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, each with or without .gz"
)
_FILES = {
    "mnist": _Files(read_mnist, _MNIST_FILES, "http://yann.lecun.com/exdb/mnist/"),
    "fashion-mnist": _Files(
        read_mnist, _MNIST_FILES, "https://github.com/zalandoresearch/fashion-mnist"
    ),
    "cifar10": _Files(
        read_cifar,
        "cifar-10-binary.tar.gz or cifar-10-python.tar.gz, unpacked or not",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": _Files(
        read_cifar,
        "cifar-100-binary.tar.gz or cifar-100-python.tar.gz, unpacked or not",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "svhn": _Files(
        read_svhn, "train_32x32.mat and test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"
    ),
}
_LAYOUT = "train and val with a folder for each class, or .tar or .array_record shards"
# Of any size, decoded when they are asked for. By name with what is expected.
_IMAGES = {"imagenet": f"{_LAYOUT} (from https://image-net.org)", "images": _LAYOUT}
IMAGE_FILES = tuple(_IMAGES)
_DECODING = Decoding()
_NAMES = ("digits", *_FILES, *_IMAGES, "npz", "tfds:<name>")


def load(
    name: str,
    *,
    path: str | Path | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    validation_examples: int = 0,
    seed: int = 0,
    num_classes: int | None = None,
    downsample: int = 1,
    decoding: Decoding = _DECODING,
) -> Splits:
    """Load a data set by name.

    ====================  ===========================================  =================
    name                  files                                        images
    ====================  ===========================================  =================
    digits                none: comes with scikit-learn                float32 8 x 8 x 1
    mnist, fashion-mnist  the four idx files, .gz or not               uint8 28 x 28 x 1
    cifar10, cifar100     binary or Python version, folder or .tar.gz  uint8 32 x 32 x 3
    svhn                  train_32x32.mat, test_32x32.mat              uint8 32 x 32 x 3
    npz                   .npz, see below                              uint8 or float32
    imagenet, images      image files in folders or shards, see below  uint8 224 x 224 x 3
    tfds:NAME             made by ``prepare_tfds(NAME)``               uint8
    ====================  ===========================================  =================

    An npz file holds x_train, y_train, x_test and y_test; or a folder holds train.npz and test.npz
    with images and labels each (see `read_npz`, also for other spellings of these keys); or one
    file holds images and labels, of which `test_examples`, chosen by a fixed permutation, become
    the test set.

    Image files of any size are not read into memory: the splits are `StoredImages`, decoded when
    their rows are asked for. They lie in ``train`` and ``val`` with a folder for each class, sorted
    by name, as torchvision's ImageFolder (`.JPEG`, `.png`, `.webp`, ...); or in shards of which no
    image is out of reach: ``train*.tar`` and ``val*.tar``, not compressed, with `KEY.jpg` and
    `KEY.cls` or `KEY.json`, as webdataset; or ``*train*.array_record*`` as TensorFlow Datasets
    prepares them. "imagenet" and "images" differ in the statistics that models normalise by.

    Training examples are chosen by one permutation of the training set, drawn from `seed`: its
    first `validation_examples` are the validation set, the next `train_examples` the training set,
    both then in the original order. So the validation set does not depend on `train_examples`,
    and smaller training sets are part of larger ones. The test set is never mixed in, and a
    smaller one is a `subset` of it, every class with its share.

    Args:
        name: a name in the table.
        path: the folder that holds the files, or the one file (an archive, an .npz). By default
            the folder `name` in the folder that the environment variable AWP_JAX_DATA names; for
            tfds its folder "tfds" if there, else the default of tensorflow-datasets; digits has
            none.
        train_examples: number of training examples, by default all that are not in validation.
        test_examples: number of test examples, by default all.
        validation_examples: number of training examples to hold out, by default none.
        seed: of the permutation, 0 to 2**32 - 1.
        num_classes: only for npz and shards, whose files need not say it.
        downsample: average blocks of so many times so many pixels (rounded to the nearest byte
            for uint8); 1 leaves images as they are. Height and width must divide by it.
        decoding: only for image files of any size: what they become.

    Raises:
        DataError: a ValueError with one sentence: files are missing, damaged or not what they
            should be, or fewer examples are there than asked for.
        MissingExtraError: when an extra of the installation is missing that reads them.
    """
    _check_count("train_examples", train_examples, 1)
    _check_count("test_examples", test_examples, 1)
    _check_count("validation_examples", validation_examples, 0)
    _check_count("downsample", downsample, 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise DataError(f"seed must be an integer in 0..2**32 - 1, not {seed!r}.")
    if num_classes is not None and name not in ("npz", *_IMAGES):
        raise DataError(f"num_classes is only for npz: {name} has its own.")
    where = None if path is None else Path(path)
    train, test = _read(name, where, test_examples, num_classes, decoding)
    splits = _split(name, train, test, train_examples, test_examples, validation_examples, seed)
    return _downsampled(splits, downsample) if downsample > 1 else splits


def dataset_names() -> tuple[str, ...]:
    """The names that `load` knows, with "tfds:<name>" for those of TensorFlow Datasets."""
    return _NAMES


_Pair = tuple[Dataset, Dataset] | tuple[StoredImages, StoredImages]


def _read(
    name: str,
    path: Path | None,
    test_examples: int | None,
    num_classes: int | None,
    decoding: Decoding,
) -> _Pair:
    if name == "digits":
        if path is not None:
            raise DataError(f"digits is read from no path, but path is {str(path)!r}.")
        return read_digits(name)
    if name.startswith("tfds:") and len(name) > len("tfds:"):
        root = os.environ.get(DATA_VARIABLE)
        if path is None and root and (Path(root) / "tfds").is_dir():
            path = Path(root) / "tfds"
        return read_tfds(name.removeprefix("tfds:"), path, decoding)
    if name == "npz":
        if path is None:
            raise DataError(
                "npz needs path: an .npz file, or a folder with train.npz and test.npz."
            )
        train, test = read_npz_splits(_existing(path), num_classes)
        return (train, test) if test is not None else _hold_out(train, path, test_examples)
    if name in _IMAGES:
        where = _default_path(name, _IMAGES[name]) if path is None else path
        return read_images(_existing(where), name, num_classes, decoding)
    if name not in _FILES:
        close = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_NAMES)}."
        raise DataError(f"Unknown data set {name!r}: {hint}")
    files = _FILES[name]
    if path is None:
        path = _default_path(name, f"{files.expected} (from {files.url})")
    return files.read(_existing(path), name)


def _default_path(name: str, expected: str) -> Path:
    root = os.environ.get(DATA_VARIABLE)
    what = f"{name} needs {expected}"
    if not root:
        raise DataError(
            f"{what}: give path, or set {DATA_VARIABLE} to a folder that holds them in {name}/."
        )
    path = Path(root) / name
    if not path.exists():
        raise DataError(f"{what} in {path} ({DATA_VARIABLE} is {root}), which does not exist.")
    return path


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    return path


def cut(
    splits: Splits,
    name: str,
    *,
    train_examples: int | None = None,
    test_examples: int | None = None,
    validation_examples: int = 0,
    seed: int = 0,
    downsample: int = 1,
) -> Splits:
    """Splits of one's own, cut as ``load`` cuts those that it reads.

    Args:
        splits: Where they hold validation images, those stay, and none are held out.
        name: Of them in messages.
        train_examples: See ``load``.
        test_examples: See ``load``.
        validation_examples: See ``load``.
        seed: See ``load``.
        downsample: See ``load``.

    Raises:
        DataError: For more examples than there are.
    """
    held_out = 0 if splits.validation is not None else validation_examples
    found = _split(name, splits.train, splits.test, train_examples, test_examples, held_out, seed)
    if splits.validation is not None:
        found = dataclasses.replace(found, validation=splits.validation)
    return found if downsample == 1 else _downsampled(found, downsample)


def _hold_out(dataset: Dataset, path: Path, test_examples: int | None) -> tuple[Dataset, Dataset]:
    """Cut a single split in two, by a permutation that does not depend on the seed."""
    if test_examples is None:
        raise DataError(
            f"{path} holds one split: give test_examples to hold some out, or read all of it with "
            "awp_jax.data.read_npz."
        )
    if test_examples >= len(dataset):
        raise DataError(
            f"test_examples={test_examples} of the {len(dataset)} in {path} leave none."
        )
    order = np.random.RandomState(0).permutation(len(dataset))
    test, train = np.sort(order[:test_examples]), np.sort(order[test_examples:])
    return dataset.select(train), dataset.select(test)


def _split(
    name: str,
    train: Dataset | StoredImages,
    test: Dataset | StoredImages,
    train_examples: int | None,
    test_examples: int | None,
    validation_examples: int,
    seed: int,
) -> Splits:
    wanted = validation_examples + (1 if train_examples is None else train_examples)
    if wanted > len(train):
        raise DataError(
            f"{name} has {len(train)} training examples, fewer than train_examples="
            f"{train_examples} and validation_examples={validation_examples} ask for."
        )
    if test_examples is not None and test_examples > len(test):
        raise DataError(
            f"{name} has {len(test)} test examples, fewer than test_examples={test_examples}."
        )
    if test_examples is not None:
        test = subset(test, test_examples)
    if train_examples is None and validation_examples == 0:
        return Splits(train, None, test)
    # RandomState, because its stream is fixed for good: the same seed is the same split in every
    # version of numpy.
    order = np.random.RandomState(seed).permutation(len(train))
    stop = None if train_examples is None else validation_examples + train_examples
    held_out, kept = np.sort(order[:validation_examples]), np.sort(order[validation_examples:stop])
    validation = None
    if validation_examples:
        validation = dataclasses.replace(train.select(held_out), name=f"{name} validation")
    return Splits(train.select(kept), validation, test)


def _downsampled(splits: Splits, factor: int) -> Splits:
    def smaller(dataset: Dataset | StoredImages) -> Dataset:
        if not isinstance(dataset, Dataset):
            raise DataError(
                f"downsample is {factor}, but the images of {dataset.name} stay in their files: "
                "decode them to a smaller size."
            )
        count, height, width, channels = dataset.images.shape
        if height % factor or width % factor:
            raise DataError(
                f"downsample is {factor}, but a divisor of the height and width of "
                f"{dataset.name}, {height} x {width}, was expected."
            )
        blocks = (count, height // factor, factor, width // factor, factor, channels)
        means = dataset.images.reshape(blocks).mean((2, 4), dtype=np.float32)
        if dataset.images.dtype == np.uint8:
            means = np.rint(means).astype(np.uint8)
        return dataclasses.replace(dataset, images=means)

    validation = None if splits.validation is None else smaller(splits.validation)
    return Splits(smaller(splits.train), validation, smaller(splits.test))


def _check_count(argument: str, value: int | None, least: int) -> None:
    if value is None and argument != "validation_examples":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{argument} must be an integer of at least {least}, not {value!r}.")
