"""``--config=NAME[:ARGUMENT]``, ``--config=FILE[:ARGUMENT]`` and ``--config.KEY=VALUE``."""

import ast
import importlib.machinery
import importlib.util
import pathlib
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

import awp_jax
from awp_jax import checks
from awp_jax import config as schema
from awp_jax.cli._errors import UsageError

_YAML = (".yaml", ".yml", ".json")


def read_config_flags(argv: Sequence[str]) -> tuple[ConfigDict | None, list[str]]:
    """The config of a command line, not validated yet, and the arguments that are left.

    Args:
        argv: The arguments, with underscores in the names of flags.

    Returns:
        ``(config, rest)``; the config is ``None`` where no file is given.

    Raises:
        UsageError: In one sentence, for files that cannot be read and values that are none.
    """
    file, changes, rest = None, [], []
    left = iter(argv)
    for argument in left:
        name, equals, value = argument.partition("=")
        key = name.lstrip("-").removeprefix("config.")
        if argument == "--":
            rest += [argument, *left]
        elif name in ("--config", "-config"):
            file = value if equals else next(left, "")
        elif name.startswith(("--config.", "-config.")):
            changes.append((key, value if equals else _next_value(key, left)))
        elif name.startswith("--noconfig.") and not equals:
            changes.append((name.removeprefix("--noconfig."), "false"))
        else:
            rest.append(argument)
    if file is None:
        if changes:
            raise UsageError(
                f"--config.{changes[0][0]} changes a config, but --config names none: give a "
                "config, such as --config=quickstart."
            )
        return None, rest
    config = load(file)
    for key, text in changes:
        try:
            schema.override(config, key, text)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return config, rest


def _next_value(key: str, left: Iterable[str]) -> str:
    """The value behind ``--config.KEY``; a switch needs none."""
    kinds = {path: declared.kind for path, declared in schema.keys()}
    if key in kinds and kinds[key] == schema.SWITCH:
        return "true"
    return next(iter(left), "")


def named() -> dict[str, pathlib.Path]:
    """The configs of this library by their names: those of the wheel, or of the clone."""
    package = pathlib.Path(awp_jax.__file__).parent
    inside = package / "configs"  # as setup.py says
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def about(path: pathlib.Path) -> str:
    """The first line of a config's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _find(name: str) -> pathlib.Path:
    """The file of a path or, where there is none, of a name."""
    path, known = pathlib.Path(name), named()
    if path.is_file():
        return path
    if path.name == name and not path.suffix:
        return known[checks.choice(name, known, "config")]
    by_name = f": this library's own is --config={path.stem}" if path.stem in known else ""
    raise UsageError(f"There is no config file {name!r}{by_name}.")


def load(text: str) -> ConfigDict:
    """The config in a file.

    Args:
        text: ``NAME`` or ``NAME:ARGUMENT`` of a config of this library, ``FILE.py``,
            ``FILE.py:ARGUMENT`` or ``FILE.yaml``.

    Returns:
        A config in the schema of ``awp_jax.config.default``, not validated yet.

    Raises:
        UsageError: In one sentence, when there is no such file, or it holds no config.
        ValueError: For a name that no config has, with the names there are.
    """
    name, colon, argument = text.partition(":")
    if not text:
        raise UsageError("--config is empty: give a config, such as --config=quickstart.")
    path = _find(name)
    try:
        if path.suffix not in _YAML:
            return schema.from_dict(_get_config(path)(*([argument] if colon else [])))
        if colon:
            raise UsageError(f"{name} takes no argument, but {argument!r} was given.")
        return schema.from_yaml(path.read_text(encoding="utf-8"), name)
    except UsageError:
        raise
    except Exception as error:  # a config file is any Python, so is what it raises
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UsageError(f"{_where(path, name, error)}{kind}{_one_line(error)}") from None


def _get_config(path: pathlib.Path) -> Any:
    # A loader of its own, because the name of a config file need not end in .py.
    loader = importlib.machinery.SourceFileLoader(f"awp_jax_config_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise UsageError(f"{path} has no function get_config, which a config file needs.")
    return module.get_config


def _where(path: pathlib.Path, name: str, error: Exception) -> str:
    """Where in a config file an error arose: file, line, and what stands there."""
    if isinstance(error, SyntaxError):
        return f"{name}, line {error.lineno}: "
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if not lines:  # YAML, which says it itself, or a value that from_dict refuses
        return "" if name in str(error) else f"{name}: "
    if isinstance(error, ValueError) and path.resolve() in {p.resolve() for p in named().values()}:
        return ""  # what this library's own config says of its argument
    return f"{name}, line {lines[-1].lineno} ({lines[-1].line}): "


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
