"""``awp-jax import``."""

import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from awp_jax import checks, data
from awp_jax import config as schema
from awp_jax.cli._flags import Command, UsageError, boolean, required
from awp_jax.evaluation import measure
from awp_jax.files import write_json
from awp_jax.interop import (
    CheckpointError,
    OtherArchitectureError,
    load_torch,
    normalisation,
)
from awp_jax.training import (
    BEST,
    LAST,
    Checkpoints,
    Experiment,
    TrainState,
    WorkdirError,
    build,
    plain,
)

# Enough to see a wrong normalisation, few enough for a wide network on a CPU.
_LOOK_AT = 100


def main(argv: Sequence[str]) -> int:
    """Imports; returns the exit status."""
    command = Command(
        "import",
        "Makes a run directory of a PyTorch checkpoint (.pt, .pth or .safetensors), which\n"
        "'awp-jax evaluate' then measures. Nothing in the file is executed.",
        argument="CHECKPOINT",
    )
    command.string("model", None, "its architecture, such as wrn-34-10 or preact-resnet-18")
    command.string("workdir", None, "the run directory to make")
    command.string("data", "cifar10", "the data set that it classifies")
    command.string("data_path", None, "where the data is; see awp_jax.data.load")
    command.string(
        "normalize",
        None,
        "true: images are normalised by the data's mean and deviation before the network, as for "
        "AT in the AWP release; false: not so, as in TRADES, MART, RST; by default as the "
        "checkpoint's own mean and deviation say, where it holds them, else false",
    )
    command.string("rename", None, "other names of modules in the file, such as fc:linear,head:fc")
    command.integer("width", None, "channels of the first stage; the architecture's by default")
    command.string("norm", "linf", "of the ball that it is evaluated in: linf, l2, l1")
    command.string("epsilon", "8/255", "radius that it is evaluated at")
    values = command.parse(argv)
    if not command.given:
        raise UsageError("The checkpoint is missing: awp-jax import CHECKPOINT --model=... .")
    told = values["normalize"].value is not None
    own = None if told else normalisation(command.given)
    config = imported_config(
        required(values, "model"),
        name=required(values, "data"),
        path=values["data_path"].value,
        normalize=boolean(values, "normalize") if told else own is not None,
        width=values["width"].value,
        norm=required(values, "norm"),
        epsilon=required(values, "epsilon"),
    )
    if own is not None:
        config.model.mean, config.model.std = own
        print(f"normalised as the checkpoint says: mean {own[0]}, standard deviation {own[1]}")
    rename = _pairs(values["rename"].value)
    print(import_checkpoint(command.given, required(values, "workdir"), config, rename))
    return 0


def _pairs(text: str | None) -> dict[str, str]:
    pairs = [part.split(":") for part in text.split(",")] if text else []
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise UsageError(f"--rename is {text!r}, but OLD:NEW,OLD:NEW was expected.")
    return {old: new for old, new in pairs}


def imported_config(
    model: str,
    *,
    name: str,
    path: str | None,
    normalize: bool,
    width: int | None,
    norm: str,
    epsilon: str,
) -> ConfigDict:
    """The config of an imported run, in the schema of ``awp_jax.config.default``."""
    config = schema.default()
    config.epochs = 1
    config.batch_size = 1
    config.data.name, config.data.path = name, path
    config.data.validation_examples = 0
    config.model.name, config.model.width, config.model.normalize = model, width, normalize
    config.weights.method = "none"
    config.optimizer.momentum = 0.0  # an optimiser state would only take room
    config.attack.norm, config.attack.epsilon = norm, epsilon
    quarter = checks.radius(epsilon, "epsilon", norm) / 4  # 2/255 at 8/255
    config.attack.step_size = f"{quarter:.6g}"
    config.evaluation.selection = "test"
    return config


def open_experiment(config: ConfigDict) -> tuple[Experiment, str]:
    """What a config stands for, also where its data is not at hand.

    Returns:
        ``(experiment, problem)``: where the data was not found, the images are blank and
        ``problem`` says why; else it is empty.

    Raises:
        DataError: Where the data was not found and is not one of those whose sizes are known.
    """
    try:
        return build(config), ""
    except data.DataError as error:
        stand_in = data.published_sizes(config.data.name, config.data.validation_examples)
        if stand_in is None:
            raise
        return build(config, stand_in), str(error)


def import_checkpoint(
    checkpoint: str | pathlib.Path,
    workdir: str | pathlib.Path,
    config: ConfigDict,
    rename: Mapping[str, str] | None = None,
) -> str:
    """Makes a run directory of a PyTorch checkpoint, whole or not at all.

    Args:
        checkpoint: ``.pt``, ``.pth`` or ``.safetensors``.
        workdir: The run directory; must not be there, or be empty.
        config: From ``imported_config``.
        rename: Of ``awp_jax.interop.load_torch``.

    Returns:
        What was done, as text for a person.

    Raises:
        WorkdirError: When the directory is in use.
        ValueError: When the checkpoint does not fit, the config is wrong, or its ``data.path`` has
            no such data.
    """
    workdir, checkpoint = pathlib.Path(workdir), pathlib.Path(checkpoint)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise WorkdirError(f"{workdir} is not empty: choose another --workdir.")
    experiment, problem = open_experiment(config)
    if problem and config.data.path is not None:  # it would be fixed in the run
        raise data.DataError(problem)
    params, batch_stats = _load(checkpoint, experiment, rename)
    state = TrainState(
        jnp.zeros([], jnp.int32), params, batch_stats, experiment.optimizer.init(params)
    )
    accuracy = "" if problem else _look(experiment, state)
    info = {"step": 0, "seed": config.seed, "best": None, "imported": checkpoint.name}
    workdir.parent.mkdir(parents=True, exist_ok=True)
    temporary = workdir.absolute().with_name(f".{workdir.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, experiment.config, state, info)
        os.replace(temporary, workdir.absolute())  # over an empty directory, if one is there
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    note = f"\nThe data was not found, so the model was not tried: {problem}" if problem else ""
    return f"imported {config.model.name} from {checkpoint}{accuracy}: {workdir}{note}"


def _load(
    checkpoint: pathlib.Path, experiment: Experiment, rename: Mapping[str, str] | None
) -> Any:
    try:
        return load_torch(checkpoint, experiment.classifier, rename=rename)
    except OtherArchitectureError as error:
        # Those two have no width of their own: that of a wide ResNet is in its name.
        if experiment.config.model.name.startswith(("wrn-", "linear")):
            raise
        raise CheckpointError(
            f"{error.problem}; where the images are of another size, give --data, where only the "
            "number of channels differs, give --width, the channels of the first stage."
        ) from None


def _look(experiment: Experiment, state: TrainState) -> str:
    few = data.subset(experiment.splits.test, _LOOK_AT)
    logits_fn = experiment.classifier.logits_fn(state.params, state.batch_stats)
    found = measure(logits_fn, few.images, few.labels, batch_size=_LOOK_AT)
    return f", {found.accuracy:.0%} right on {found.examples} test images"


def _write(workdir: pathlib.Path, config: ConfigDict, state: Any, info: dict[str, Any]) -> None:
    workdir.mkdir()
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        for kind in (BEST, LAST):
            checkpoints.save(kind, state, info)
    finally:
        checkpoints.close()
    write_json(workdir / "config.json", plain(config))
