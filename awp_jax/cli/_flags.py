"""What flags of several commands stand for."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from awp_jax import checks, runs
from awp_jax.cli._command import Command
from awp_jax.cli._errors import UsageError
from awp_jax.config import validate


def read_config(command: Command) -> ConfigDict:
    """The validated config of a parsed command line."""
    return validate(command.config)


def required(values: flags.FlagValues, name: str) -> str:
    """The value of a flag that must be given.

    Raises:
        UsageError: When it is missing or empty.
    """
    value = values[name].value
    if not value:
        raise UsageError(f"--{name} is missing.")
    return value


def boolean(values: flags.FlagValues, name: str) -> bool:
    """The value of a flag that is ``true`` or ``false``.

    Raises:
        UsageError: For anything else.
    """
    value = str(values[name].value).lower()
    if value not in ("true", "false"):
        raise UsageError(f"--{name} is {values[name].value!r}, but true or false was expected.")
    return value == "true"


def declare_dtype(command: Command) -> None:
    """Adds ``--dtype`` to a command that judges a model."""
    command.string(
        "dtype", "float32", "what is computed in: float32, or model for what the run trained in"
    )


def declare_data_path(command: Command) -> None:
    """Adds ``--data_path`` to a command that looks at the images of a run."""
    command.string("data_path", None, "where the run's data is now, when it has moved")


def given(values: flags.FlagValues, *flag_names: str) -> dict[str, Any]:
    """The flags that were given or have a default, as keywords of settings."""
    return {name: values[name].value for name in flag_names if values[name].value is not None}


def workdirs_of(values: flags.FlagValues) -> list[pathlib.Path]:
    """The run directories of ``--workdir``, which tables call by their names.

    Raises:
        UsageError: When two have the same name.
    """
    paths = [pathlib.Path(name) for name in names(required(values, "workdir"), "workdir")]
    called = [path.name for path in paths]
    for name in called:
        if called.count(name) > 1:
            raise UsageError(f"Two run directories are called {name!r}.")
    return paths


def open_several(values: flags.FlagValues, devices: int | None) -> list[runs.Run]:
    """The runs of ``--workdir``, in what ``--dtype`` says, where the command has it."""
    dtype = chosen_dtype(values) if "dtype" in values else "float32"
    where = values["data_path"].value
    return [
        runs.open(path, devices=devices, dtype=dtype, data_path=where)
        for path in workdirs_of(values)
    ]


def open_one(values: flags.FlagValues, devices: int | None) -> runs.Run:
    """The run of ``--workdir``."""
    return runs.open(
        required(values, "workdir"),
        devices=devices,
        dtype=chosen_dtype(values),
        data_path=values["data_path"].value,
    )


def chosen_dtype(values: flags.FlagValues) -> str | None:
    """What ``runs.open`` takes for ``--dtype``.

    Raises:
        ValueError: For anything but float32 and model.
    """
    chosen = checks.choice(values["dtype"].value, ("float32", "model"), "dtype")
    return None if chosen == "model" else chosen


def declare_json(command: Command) -> None:
    """Adds ``--json`` to a command that prints what it found."""
    command.switch("json", "for scripts: what was found, as JSON in place of text")


def print_json(found: Any) -> None:
    """Prints plain values as JSON; what is not finite, which JSON has not, as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): plain(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(plain(found), indent=2, allow_nan=False))


def names(text: str | None, flag: str) -> list[str]:
    """A comma-separated list without empty entries.

    Raises:
        UsageError: When nothing is left.
    """
    found = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not found:
        raise UsageError(f"--{flag} is empty.")
    return found
