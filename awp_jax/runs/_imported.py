"""Run directories of PyTorch checkpoints, and state dicts of run directories."""

import collections
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from awp_jax import checks, data, models
from awp_jax import config as schema
from awp_jax.evaluation import measure
from awp_jax.files import write_json
from awp_jax.interop import (
    CheckpointError,
    OtherArchitectureError,
    fitting,
    load_torch,
    normalisation,
    save_torch,
)
from awp_jax.runs._directory import RunDirectory, open_experiment
from awp_jax.training import (
    BEST,
    LAST,
    Checkpoints,
    Experiment,
    TrainState,
    WorkdirError,
    absolute_paths,
    plain,
    restore,
)

# Enough to see a wrong normalisation, few enough for a wide network on a CPU.
_LOOK_AT = 100
# Of the published architectures so many are tried on a file of another one: half a second each.
_LIKELY = 12


class Imported(NamedTuple):
    """What became of a PyTorch checkpoint.

    Attributes:
        workdir: The run directory.
        checkpoint: The file.
        model: The architecture.
        normalisation: Mean and deviation that were found in the file, or ``None``.
        accuracy: On a few test images, in [0, 1]; ``None`` where the data is not at hand.
        examples: How many.
        problem: Why the data is not at hand; else empty.
        published: The entry of RobustBench that it was imported as, or ``None``.
        normalized: Whether images are normalised, or it was said that they are not.
    """

    workdir: pathlib.Path
    checkpoint: str | pathlib.Path
    model: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    accuracy: float | None
    examples: int
    problem: str
    published: models.Published | None = None
    normalized: bool = True

    def __repr__(self) -> str:
        lines = [_told(self.published)] if self.published else []
        if self.normalisation is not None:
            mean, std = self.normalisation
            who = (
                "was published" if self.published and self.published.mean else "the checkpoint says"
            )
            lines.append(f"normalised as {who}: mean {mean}, standard deviation {std}")
        elif not self.normalized:
            lines.append(
                "not normalised: the file holds no mean and deviation, and whether the network "
                "expects images in [0, 1] is for you to know (--normalize=true, or --as=NAME)"
            )
        seen = ""
        if self.accuracy is not None:
            seen = f", {self.accuracy:.0%} right on {self.examples} test images"
        lines.append(f"imported {self.model} from {self.checkpoint}{seen}: {self.workdir}")
        if self.problem:
            lines.append(f"The data was not found, so the model was not tried: {self.problem}")
        return "\n".join(lines)


def _told(entry: models.Published) -> str:
    """What a name stood for, and for what else it could have."""
    others = [
        f"--data={other.data} --norm={other.norm}"
        for other in models.PUBLISHED
        if other.name == entry.name and other != entry
    ]
    also = f" (also published: {'; '.join(others)})" if others else ""
    return f"{entry.name}: {entry.data} in {entry.norm} {entry.epsilon}{also}"


def import_checkpoint(
    checkpoint: str | pathlib.Path,
    workdir: str | pathlib.Path,
    model: str | None = None,
    *,
    published: str | None = None,
    data_name: str | None = None,
    data_path: str | None = None,
    normalize: bool | None = None,
    width: int | None = None,
    norm: str | None = None,
    epsilon: Any = None,
    rename: Mapping[str, str] | None = None,
) -> Imported:
    """Makes a run directory of a PyTorch checkpoint, whole or not at all.

    Args:
        checkpoint: As in ``awp_jax.interop.load_torch``: a file, a folder, or an address
            ``hf://owner/name``; nothing in it is executed.
        workdir: The run directory; must not be there, or be empty.
        model: Its architecture, such as ``"wrn-34-10"``; see ``awp_jax.models.names``.
        published: In place of ``model``: its name at RobustBench, which knows all of what follows;
            see ``awp_jax.models.PUBLISHED``.
        data_name: The data set that it classifies, see ``awp_jax.data.load``; by default CIFAR-10.
        data_path: Where its files are.
        normalize: Whether images are normalised by the data's mean and deviation before the
            network; ``None``: as the checkpoint's own say, where it holds them, else not.
        width: Channels of the first stage; ``None`` for the architecture's own.
        norm: Of the ball that it is evaluated in: ``"linf"`` (the default), ``"l2"`` or ``"l1"``.
        epsilon: Its radius; by default ``"8/255"``.
        rename: Other names of modules in the file, see ``awp_jax.interop.load_torch``.

    Returns:
        What was done.

    Raises:
        WorkdirError: When the directory is in use.
        ValueError: When the checkpoint does not fit, or ``data_path`` has no such data; for an
            unknown name, and where both or none of ``model`` and ``published`` are given.
    """
    if (model is None) == (published is None):
        raise ValueError(
            f"model is {model!r} and published is {published!r}, but one of the two was expected."
        )
    entry = models.published(published, data=data_name, norm=norm) if published else None
    if entry is not None:
        model, data_name, norm = entry.model, entry.data, entry.norm
        epsilon = entry.epsilon if epsilon is None else epsilon
    own = None
    if normalize is None:
        known = (entry.mean, entry.std) if entry is not None and entry.mean else None
        own = known or normalisation(checkpoint)
    workdir = pathlib.Path(workdir)
    config = _config(
        str(model),
        data_name or "cifar10",
        data_path,
        width,
        norm or "linf",
        "8/255" if epsilon is None else epsilon,
    )
    config.model.normalize = own is not None if normalize is None else normalize
    if own is not None:
        config.model.mean, config.model.std = own
    absolute_paths(config)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise WorkdirError(f"{workdir} is not empty: choose another --workdir.")
    experiment, problem = open_experiment(config)
    if problem and config.data.path is not None:  # it would be fixed in the run
        raise data.DataError(problem)
    params, batch_stats = _load(checkpoint, experiment, rename, entry)
    state = TrainState(
        jnp.zeros([], jnp.int32), params, batch_stats, experiment.optimizer.init(params)
    )
    accuracy = None if problem else _look(experiment, state)
    info = {
        "step": 0,
        "seed": config.seed,
        "best": None,
        "imported": str(checkpoint).rstrip("/").rpartition("/")[2],
    }
    workdir.parent.mkdir(parents=True, exist_ok=True)
    temporary = workdir.absolute().with_name(f".{workdir.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, experiment.config, state, info)
        os.replace(temporary, workdir.absolute())  # over an empty directory, if one is there
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    examples = min(_LOOK_AT, len(experiment.splits.test))
    return Imported(
        workdir,
        checkpoint,
        config.model.name,
        own,
        accuracy,
        examples,
        problem,
        entry,
        # What was chosen, or belongs to an entry, needs no word.
        config.model.normalize or normalize is not None or entry is not None,
    )


def _config(
    model: str, name: str, path: str | None, width: int | None, norm: str, epsilon: Any
) -> ConfigDict:
    config = schema.default()
    config.epochs = 1
    config.batch_size = 1
    config.data.name, config.data.path = name, path
    config.data.validation_examples = 0
    config.model.name, config.model.width = model, width
    config.weights.method = "none"
    config.optimizer.momentum = 0.0  # an optimiser state would only take room
    config.attack.norm, config.attack.epsilon = norm, str(epsilon)
    config.attack.step_size = _quarter(epsilon, norm)  # 2/255 at 8/255
    config.evaluation.selection = "test"
    return config


def _quarter(epsilon: Any, norm: str) -> str:
    """A fourth of a radius, as text of the same form, which tables show beside it."""
    quarter = checks.radius(epsilon, "epsilon", norm) / 4
    upper, slash, lower = str(epsilon).replace(" ", "").partition("/")
    if not slash:
        return f"{quarter:.6g}"
    whole = upper.isdigit() and int(upper) % 4 == 0
    return f"{int(upper) // 4}/{lower}" if whole else str(Fraction(f"{upper}/{lower}") / 4)


def _load(
    checkpoint: str | pathlib.Path,
    experiment: Experiment,
    rename: Mapping[str, str] | None,
    entry: models.Published | None,
) -> Any:
    try:
        return load_torch(checkpoint, experiment.classifier, rename=rename)
    except OtherArchitectureError as error:
        if entry is not None:  # which has its data and its width
            like = _looks_like(checkpoint, entry)
            raise CheckpointError(
                f"{error.problem}: it is not the file of {entry.name}{like}."
            ) from None
        # Those two have no width of their own: that of a wide ResNet is in its name.
        if "wrn-" in experiment.config.model.name or experiment.config.model.name == "linear":
            raise
        raise CheckpointError(
            f"{error.problem}; where the images are of another size, give --data, where only the "
            "number of channels differs, give --width, the channels of the first stage."
        ) from None


def _looks_like(checkpoint: str | pathlib.Path, entry: models.Published) -> str:
    """The end of a sentence: of which published architecture a file is; empty if of none known."""
    others = [other for other in models.PUBLISHED if other.name == entry.name and other != entry]
    of_data = [other for other in models.PUBLISHED if other.data == entry.data]
    common = collections.Counter(other.model for other in of_data).most_common(_LIKELY)
    asked = dict.fromkeys([(other.model, other.data) for other in others])
    asked |= dict.fromkeys([(model, entry.data) for model, _ in common])

    def classifiers() -> Iterator[Any]:
        for model, name in asked:
            sizes = data.published_sizes(name)
            if sizes is not None and (model, name) != (entry.model, entry.data):
                height, width, channels = sizes.test.images.shape[1:]
                shape, classes = (height, width, channels), sizes.test.num_classes
                yield models.create(model, image_shape=shape, num_classes=classes)

    found = fitting(checkpoint, classifiers())
    return "" if found is None else f", but looks like {found.name} of {found.num_classes} classes"


def _look(experiment: Experiment, state: TrainState) -> float:
    few = data.subset(experiment.splits.test, _LOOK_AT).in_memory()
    logits_fn = experiment.classifier.logits_fn(state.params, state.batch_stats)
    return measure(logits_fn, few.images, few.labels, batch_size=_LOOK_AT).accuracy


def _write(workdir: pathlib.Path, config: ConfigDict, state: Any, info: dict[str, Any]) -> None:
    workdir.mkdir()
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        for kind in (BEST, LAST):
            checkpoints.save(kind, state, info)
    finally:
        checkpoints.close()
    write_json(workdir / "config.json", plain(config))


class Exported(NamedTuple):
    """What was written of a run for PyTorch.

    Attributes:
        path: The file.
        classifier: What its weights are of; images are normalised as it says, outside the file.
        which: The checkpoint.
        step: Its step.
        back: The command that imports it again.
    """

    path: str | pathlib.Path
    classifier: Any
    which: str
    step: int
    back: str

    def __repr__(self) -> str:
        tensors = str(self.path).endswith(".safetensors")
        reader = "safetensors.torch.load_file" if tensors else ""
        lines = [
            f"exported {self.classifier.name}, {self.which} checkpoint, step {self.step}: "
            f"{self.path}; weights for {reader or 'torch.load'} and load_state_dict"
        ]
        if self.classifier.mean:
            lines.append(
                f"The network expects normalised images: mean {self.classifier.mean}, standard "
                f"deviation {self.classifier.std}; a state dict does not hold them."
            )
        return "\n".join([*lines, f"Back again: {self.back}"])


def export_run(run: RunDirectory, path: str | pathlib.Path, which: str = BEST) -> Exported:
    """Writes a run's model as a PyTorch state dict; its data need not be there.

    Args:
        run: From ``awp_jax.runs.open``.
        path: As in ``awp_jax.interop.save_torch``.
        which: ``"best"``, ``"last"``, ``"average"`` or ``"epoch-N"``.

    Raises:
        ValueError: For a missing checkpoint, or another suffix.
    """
    experiment, _ = open_experiment(run.config)
    state, info = restore(run.workdir, experiment, which)
    classifier = experiment.classifier
    save_torch(path, classifier, state.params, state.batch_stats)
    c = experiment.config
    back = [f"--model={c.model.name}", f"--data={c.data.name}", "--workdir=runs/imported"]
    back += [f"--width={c.model.width}"] * (c.model.width is not None)
    back += ["--normalize=true"] * bool(c.model.normalize)
    back += [f"--norm={c.attack.norm}", f"--epsilon={c.attack.epsilon}"]
    words = f"awp-jax import {shlex.join([str(path), *back])}"
    return Exported(path, classifier, which, info["step"], words)
