"""The flags of one command: fresh for every call, so that commands can be called from Python."""

import pathlib
import shutil
import textwrap
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from awp_jax.cli._config import about, named, read_config_flags
from awp_jax.cli._errors import UsageError
from awp_jax.config import from_dict
from awp_jax.training import CONFIG, read_config


class Help(Exception):
    """Help was asked for; the message is the help."""


class _Integer(flags.IntegerParser):
    """An integer flag that says itself what was expected of it."""

    def __init__(self, name: str, minimum: int):
        super().__init__()
        self._name, self._minimum = name, minimum

    def parse(self, argument: str | int) -> int:
        """The integer that ``argument`` stands for."""
        try:
            value = int(argument)
        except ValueError:
            value = None
        if value is None or value < self._minimum:
            raise UsageError(
                f"--{self._name} is {argument!r}, but an integer of at least {self._minimum} was "
                "expected."
            )
        return value


class Command:
    """The flags of one command.

    Args:
        name: Of the command.
        summary: What it does, shown by ``--help``.
        with_config: Whether it takes ``--config``.
        instead: Flags of which one may be given in place of ``--config``.
        resumes: Whether without ``--config`` that of the run in ``--workdir`` is taken.
        argument: What its one argument without a flag is called; ``None`` for a command that takes
            none. ``given`` holds it after ``parse``, empty when it was left out.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        *,
        with_config: bool = False,
        instead: Sequence[str] = (),
        resumes: bool = False,
        argument: str | None = None,
    ):
        self.name = name
        self.summary = summary
        self.with_config, self.instead, self.resumes = with_config, instead, resumes
        self.argument = argument
        self.given = ""
        self.config: ConfigDict | None = None
        self.values = flags.FlagValues()

    def string(self, name: str, default: str | None, text: str) -> None:
        """Declares a text flag."""
        flags.DEFINE_string(name, default, text, flag_values=self.values)

    def integer(self, name: str, default: int | None, text: str, minimum: int = 1) -> None:
        """Declares an integer flag."""
        flags.DEFINE(_Integer(name, minimum), name, default, text, flag_values=self.values)

    def switch(self, name: str, text: str) -> None:
        """Declares a flag that is off unless it is given."""
        flags.DEFINE_boolean(name, False, text, flag_values=self.values)

    def help(self) -> str:
        """The text of ``--help``."""
        argument = f" {self.argument}" if self.argument else ""
        rows = []
        if self.with_config:
            rows += [
                (
                    "--config=NAME[:ARGUMENT]",
                    "one of the configs below, such as quickstart:at; a Python file with "
                    "get_config(ARGUMENT); or a .yaml file, such as awp-jax describe prints",
                ),
                ("--config.KEY=VALUE", "overrides a value, such as --config.weights.gamma=0.005"),
            ]
        for name in self.values:
            default = self.values[name].default
            shown = "" if default in (None, False, "") else f" (default: {default})"
            value = "" if default is False else "="
            rows.append((f"--{name}{value}", f"{self.values[name].help}{shown}"))
        wide = max((len(flag) for flag, _ in rows), default=0) + 4
        lines = [
            textwrap.fill(
                text,
                width=min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120),
                initial_indent=f"  {flag}".ljust(wide),
                subsequent_indent=" " * wide,
                break_on_hyphens=False,
            )
            for flag, text in rows
        ]
        flags_too = " [--flags]" if rows else ""
        head = [f"usage: awp-jax {self.name}{argument}{flags_too}", "", self.summary]
        if self.with_config:
            lines += ["", "configs:"]
            lines += [f"  {name:<14} {about(path)}" for name, path in named().items()]
        return "\n".join(head + (["", "flags:"] if rows else []) + lines)

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
            self.config, argv = read_config_flags(argv)
        try:
            rest = self.values([f"awp-jax {self.name}", *argv])
        except flags.Error as error:
            raise UsageError(str(error)) from None
        if self.argument and len(rest) > 1:
            self.given = rest.pop(1)
        if len(rest) > 1:
            raise UsageError(f"{rest[1]!r} was not expected: flags are written --name=value.")
        if self.with_config:
            self._check_config_given()
        return self.values

    def _check_config_given(self) -> None:
        if self.config is None and self.resumes and self.values["workdir"].value:
            workdir = pathlib.Path(self.values["workdir"].value)
            if (workdir / CONFIG).is_file():
                self.config = from_dict(read_config(workdir))
        given = [name for name in self.instead if self.values[name].value]
        given += ["config"] * (self.config is not None)
        if len(given) > 1:
            both = " and ".join(f"--{name}" for name in sorted(given))
            raise UsageError(f"{both} are both given: give one of them.")
        if not given:
            others = ", or " * bool(self.instead) + " or ".join(f"--{n}" for n in self.instead)
            raise UsageError(
                f"--config is missing: give a config, such as --config=quickstart{others}"
                + ("; a run that is there needs none." if self.resumes else ".")
            )


def _with_underscores(argument: str) -> str:
    """``--process-id=1`` and ``--process_id=1`` are the same flag, in configs as well."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
