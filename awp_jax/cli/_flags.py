"""Flags of one command: fresh for every call, so that commands can be called from Python."""

import pathlib
import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from awp_jax.config import validate


class UsageError(Exception):
    """The command line is not understood; the message is one sentence."""


class Help(Exception):
    """Help was asked for; the message is the help."""


class Command:
    """The flags of one command.

    Args:
        name: Of the command.
        summary: What it does, shown by ``--help``.
        with_config: Whether it takes ``--config``.
        instead: A flag that may be given in place of ``--config``.
        argument: What its one argument without a flag is called; ``None`` for a command that takes
            none. ``given`` holds it after ``parse``, empty when it was left out.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        *,
        with_config: bool = False,
        instead: str | None = None,
        argument: str | None = None,
    ):
        self.name = name
        self.summary = summary
        self.with_config = with_config
        self.instead = instead
        self.argument = argument
        self.given = ""
        self.values = flags.FlagValues()

    def string(self, name: str, default: str | None, text: str) -> None:
        """Declares a text flag."""
        flags.DEFINE_string(name, default, text, flag_values=self.values)

    def integer(self, name: str, default: int | None, text: str, minimum: int = 1) -> None:
        """Declares an integer flag."""
        flags.DEFINE_integer(name, default, text, flag_values=self.values, lower_bound=minimum)

    def help(self) -> str:
        """The text of ``--help``."""
        argument = f" {self.argument}" if self.argument else ""
        lines = [f"usage: awp-jax {self.name}{argument} [--flags]", "", self.summary, "", "flags:"]
        if self.with_config:
            lines += [
                "  --config=FILE[:ARGUMENT]  a Python file with get_config(ARGUMENT), such as "
                "configs/quickstart.py:at",
                "  --config.KEY=VALUE        overrides a value, e.g. --config.weights.gamma=0.005",
            ]
        for name in self.values:
            if name == "config" or name.startswith("config."):
                continue
            default = self.values[name].default
            shown = "" if default is None else f" (default: {default})"
            lines.append(f"  --{name}=  {self.values[name].help}{shown}")
        return "\n".join(lines)

    def parse(self, argv: Sequence[str]) -> flags.FlagValues:
        """Reads the command line.

        Raises:
            Help: When ``--help`` or ``-h`` is among the arguments.
            UsageError: For unknown flags, stray arguments, and configs that cannot be read.
        """
        argv = [_with_underscores(a) for a in argv]
        if any(a in ("--help", "-h", "-help", "--helpfull") for a in argv):
            raise Help(self.help())
        if self.with_config:
            if any(a == "--config=" for a in argv):
                raise UsageError("--config is empty: give a config file.")
            self._check_config_file(argv)
        try:
            if self.with_config:
                config_flags.DEFINE_config_file(
                    "config",
                    None,
                    "config file",
                    flag_values=self.values,
                    sys_argv=[f"awp-jax {self.name}", *argv],
                )
            rest = self.values([f"awp-jax {self.name}", *argv])
            _check_sequences(argv, self.values)
        except UsageError:
            raise
        except Exception as error:  # a config file is any Python, so is what it raises
            raise UsageError(_one_sentence(error)) from None
        if self.argument and len(rest) > 1:
            self.given = rest.pop(1)
        if len(rest) > 1:
            raise UsageError(f"{rest[1]!r} was not expected: flags are written --name=value.")
        instead = self.values[self.instead].value if self.instead else None
        if instead and self.values["config"].value is not None:
            raise UsageError(f"--config and --{self.instead} are both given: give one of them.")
        if self.with_config and not instead and self.values["config"].value is None:
            raise UsageError(
                "--config is missing: give a config file, such as --config=configs/quickstart.py"
                + (f", or --{self.instead}." if self.instead else ".")
            )
        return self.values

    def _check_config_file(self, argv: list[str]) -> None:
        for place, argument in enumerate(argv):
            value = None
            if argument.startswith("--config="):
                value = argument.partition("=")[2]
            elif argument == "--config" and place + 1 < len(argv):
                value = argv[place + 1]
            if value is not None and not pathlib.Path(value.partition(":")[0]).is_file():
                raise UsageError(f"There is no config file {value.partition(':')[0]!r}.")


def read_config(values: flags.FlagValues) -> ConfigDict:
    """The validated config of parsed flags."""
    return validate(values["config"].value)


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


def names(text: str | None, flag: str) -> list[str]:
    """A comma-separated list without empty entries.

    Raises:
        UsageError: When nothing is left.
    """
    found = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not found:
        raise UsageError(f"--{flag} is empty.")
    return found


def _check_sequences(argv: Sequence[str], values: flags.FlagValues) -> None:
    # ml_collections makes one value of a single number, where two may have been meant.
    for argument in argv:
        name, _, text = argument.removeprefix("--").partition("=")
        several = name in values and values[name].flag_type().endswith("tuple")
        if several and text and text[0] not in "([" and "," not in text:
            raise UsageError(
                f"--{name} is {text}, but several values were expected; one alone is written "
                f"'({text},)'."
            )


def _with_underscores(argument: str) -> str:
    """``--process-id=1`` and ``--process_id=1`` are the same flag, in configs as well."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _one_sentence(error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):  # what a config file itself raised
        lines = [lines[-1].partition(": ")[2] or lines[-1]]
    # ml_collections says so of an unknown key, in quotes within quotes.
    unknown = re.fullmatch(
        r"""["'\\]*(\w+)["'\\]*(?:\\n|\s)*(?:Did you mean "(\w+)" instead of .*)?["'\\]*""", text
    )
    if unknown:
        hint = f" Did you mean {unknown[2]!r}?" if unknown[2] else ""
        return f"Unknown config key {unknown[1]!r}.{hint}"
    number = re.fullmatch(r"flag --(\w+)=(.*): invalid literal for int\(\).*", text)
    if number:
        return f"--{number[1]} is {number[2]!r}, but an integer was expected."
    if "cannot be casted to type <class 'str'>" in text:
        lines.append("; radii and step sizes are text in configs, such as '8/255'.")
    return " ".join(lines).replace(" ; ", "; ") if lines else type(error).__name__
