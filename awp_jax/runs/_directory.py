"""A run directory, opened for reading."""

import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from awp_jax import checks, data, results
from awp_jax import config as schema
from awp_jax.extras import MissingExtraError
from awp_jax.models import Classifier
from awp_jax.parts import NONE, Parts, record
from awp_jax.training import (
    Experiment,
    TrainState,
    build,
    checkpoint_names,
    kept_epochs,
    read_config,
    read_metrics,
    restore,
)

SETS = ("train", "validation", "test")


# Of images that lie in files: the 50,000 of ImageNet are 7 GiB at 224 x 224.
_MOST = 8 << 30


class Model(NamedTuple):
    """A checkpoint of a run, as pure functions and as arrays.

    Attributes:
        classifier: The architecture.
        params: Parameters, nested dicts of arrays.
        batch_stats: BatchNorm statistics, nested dicts of arrays; ``{}`` without.
        info: Of the checkpoint: ``step``, ``digest`` of its arrays, ``seed``, ``best``.
    """

    classifier: Classifier
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    info: dict[str, Any]

    @property
    def logits_fn(self) -> Partial:
        """``images -> logits`` on running statistics; a randomised model takes a key as well."""
        return self.classifier.logits_fn(self.params, self.batch_stats)

    @property
    def apply_fn(self) -> Partial:
        """``(params, images) -> logits`` with the running statistics."""
        return self.classifier.apply_fn(self.batch_stats)

    def as_nnx(self) -> Any:
        """The network as a Flax NNX module; it expects images normalised as ``classifier`` says.

        Raises:
            ValueError: For an architecture that is no NNX module.
        """
        return self.classifier.as_nnx(self.params, self.batch_stats)

    def save(self, path: Any) -> None:
        """Writes the arrays, an ``.npz`` file: ``params/LAYER/...``, ``batch_stats/...``; of
        ``info`` the numbers as ``info/...``, or all of it in ``json``.

        ``Run.export`` writes what PyTorch reads.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        arrays = {"params": self.params, "batch_stats": self.batch_stats}
        results.save_arrays(path, {**arrays, "info": self.info})

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in _leaves(self.params))
        return f"Model({self.classifier.name}, {count:,} parameters, step {self.info['step']})"


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [tree]


class RunDirectory:
    """What a run directory holds: config, metrics, data, checkpoints.

    Nothing but ``config.json`` is read before it is asked for: data and classifier with
    ``experiment``, a checkpoint with ``model`` or ``restore``.

    Attributes:
        workdir: The directory.
        config: What it was made with, in the schema of ``awp_jax.config.default``.
        devices: Use the first so many; ``None`` for all.
        dtype: What the model computes in; ``None`` for what it was trained in.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        given: Parts = NONE,
        *,
        devices: int | None = None,
        dtype: str | None = "float32",
        data_path: str | None = None,
    ):
        self.workdir = pathlib.Path(workdir)
        self.config: ConfigDict = schema.from_dict(read_config(self.workdir))
        if dtype is not None:
            self.config.model.dtype = dtype
        if data_path is not None:
            self.config.data.path = data_path
        record(self.config, given)
        self._given, self.devices, self.dtype = given, devices, dtype

    def __repr__(self) -> str:
        c = self.config
        about = f"{c.data.name}, {c.model.name}, seed {c.seed}"
        return f"{type(self).__name__}({str(self.workdir)!r}: {about})"

    @property
    def name(self) -> str:
        """Of the directory: what tables and figures call the run."""
        return self.workdir.resolve().name

    @functools.cached_property
    def experiment(self) -> Experiment:
        """What the config stands for: data, classifier, optimiser.

        Raises:
            ValueError: When the config does not fit this version, or its data is missing.
        """
        return build(self.config, devices=self.devices, given=self._given)

    @functools.cached_property
    def _without_data(self) -> Experiment:
        """As ``experiment``, but on blank images where the data is missing."""
        found, problem = open_experiment(self.config, devices=self.devices, given=self._given)
        if not problem:  # what was read serves all else
            self.experiment = found
        return found

    def metrics(self) -> dict[str, np.ndarray]:
        """``metrics.jsonl`` as columns: one entry per line, NaN where a line has not that value.

        Returns:
            ``kind`` ("train" or "evaluation"), ``step``, ``epoch``, ``loss``, ...; values of a set
            are called ``test/robust_accuracy``. ``pandas.DataFrame(run.metrics())`` takes it.
        """
        flat = [_flat(record) for record in read_metrics(self.workdir)]
        names = dict.fromkeys(name for record in flat for name in record)
        return {name: np.array([record.get(name, np.nan) for record in flat]) for name in names}

    def data(
        self, name: str = "test", examples: int | None = None, *, most: int | None = None
    ) -> data.Dataset:
        """Images and labels of the run.

        Args:
            name: ``"train"``, ``"validation"`` or ``"test"``.
            examples: So many, every class with its share, always the same ones (see
                ``awp_jax.data.subset``); ``None`` for all.
            most: Where ``examples`` is ``None``, at most so many.

        Raises:
            ValueError: For another set, one that the run has not, or more examples than it has.
        """
        checks.choice(name, SETS, "set")
        part = getattr(self.experiment.splits, name)
        if part is None:
            raise ValueError(f"{self.workdir} kept no validation images back.")
        if examples is None:
            return _loaded(part if most is None else data.subset(part, most))
        if checks.positive_integer(examples, "examples") > len(part):
            raise ValueError(
                f"examples is {examples}, but {name} of {self.workdir} has {len(part)}."
            )
        return _loaded(data.subset(part, examples))

    def model(self, which: str = "best") -> Model:
        """A checkpoint; the run's data need not be there, where its sizes are known.

        Args:
            which: ``"best"``, ``"last"``, ``"average"`` or ``"epoch-N"``.

        Raises:
            CheckpointError: When there is none, or none is whole.
            DataError: When the data was not found and is none of the published sets; for
                ``"epoch-N"``, whose step follows from the number of its images.
        """
        read = which.startswith("epoch-") or "experiment" in self.__dict__
        experiment = self.experiment if read else self._without_data
        state, info = restore(self.workdir, experiment, which)
        return Model(experiment.classifier, state.params, state.batch_stats, info)

    def restore(
        self, which: str, report: Callable[[str], None] = print
    ) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint with its optimiser's state, see ``awp_jax.training.restore``."""
        return restore(self.workdir, self.experiment, which, report)

    def logits_fn(self, state: TrainState) -> Partial:
        """``images -> logits`` of a restored state; see ``Model.logits_fn``."""
        return self.experiment.classifier.logits_fn(state.params, state.batch_stats)

    def apply_fn(self, state: TrainState) -> Partial:
        """``(params, images) -> logits`` of a restored state; see ``Model.apply_fn``."""
        return self.experiment.classifier.apply_fn(state.batch_stats)

    def kept_epochs(self) -> list[int]:
        """Epochs whose checkpoints ``checkpoint.keep_every_epochs`` has kept, in order."""
        return kept_epochs(self.workdir, self.experiment)

    def checkpoint_names(self, names: Iterable[str]) -> list[str]:
        """What ``restore`` takes, of a selection; see ``awp_jax.training.checkpoint_names``."""
        return checkpoint_names(self.workdir, self.experiment, names)


def _loaded(part: data.Dataset | data.StoredImages) -> data.Dataset:
    """Images in memory: what is measured is attacked and kept there anyway."""
    if part.images.nbytes > _MOST and not isinstance(part, data.Dataset):
        raise ValueError(
            f"{part.name} has {len(part)} images that are decoded from their files, "
            f"{part.images.nbytes / 2**30:.0f} GiB in memory: give a number of examples."
        )
    return part.in_memory()


def open_experiment(
    config: ConfigDict, *, devices: int | None = None, given: Parts = NONE
) -> tuple[Experiment, str]:
    """What a config stands for, also where its data is not at hand.

    Args:
        config: Of the run.
        devices: Use the first so many; ``None`` for all.
        given: Parts to use in place of what the config's names find.

    Returns:
        ``(experiment, problem)``: where the data was not found, the images are blank and
        ``problem`` says why; else it is empty.

    Raises:
        DataError: Where the data was not found and is not one of those whose sizes are known.
    """
    try:
        return build(config, devices=devices, given=given), ""
    except (data.DataError, MissingExtraError) as error:
        d = config.data
        stand_in = data.published_sizes(d.name, d.validation_examples, d.image_size)
        if stand_in is None:
            raise
        return build(config, stand_in, devices=devices, given=given), str(error)


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}/")
        else:
            found[prefix + name] = value
    return found
