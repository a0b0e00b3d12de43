"""From the declared keys: the locked config with its defaults, and its checks."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from awp_jax.config._combinations import check_combinations
from awp_jax.config._dict import Config
from awp_jax.config._groups import GROUPS
from awp_jax.config._keys import Group, Key


def keys() -> Iterator[tuple[str, Key]]:
    """Every key with its whole name, such as ``"attack.epsilon"``, group by group."""
    for group in GROUPS:
        for key in group.keys:
            yield group.path(key), key


def default() -> ConfigDict:
    """The schema with its defaults: AT-AWP of PreActResNet-18 on CIFAR-10 (NeurIPS 2020, Table 1).

    Returns:
        A locked ``ConfigDict``, which refuses unknown keys and values of another type in one
        sentence. ``keys`` says what each key means.

    Example:
        >>> from awp_jax import config
        >>> found = config.default()
        >>> found.weights.method, found.attack.epsilon
        ('awp', '8/255')
    """
    config = Config()
    for group in GROUPS:
        if group.name:
            config[group.name] = _filled(Config(prefix=f"{group.name}."), group)
        else:
            _filled(config, group)
    config.lock()
    return config


def _filled(config: Config, group: Group) -> Config:
    for key in group.keys:
        held = key.default
        config[key.name] = config_dict.placeholder(key.kind.type) if held is None else held
    return config


def from_dict(values: Any) -> ConfigDict:
    """The default config with ``values`` laid over it.

    Args:
        values: A ``ConfigDict`` or nested dict, for instance from ``config.json``.

    Returns:
        A locked config in the schema of ``default``.

    Raises:
        ValueError: For an unknown key ("did you mean") or a value of another type.
    """
    if not hasattr(values, "items"):
        raise ValueError(f"A config is {values!r}, but a ConfigDict or dict was expected.")
    config = default()
    for key, value in values.items():
        config[key] = value
    return config


def override(config: ConfigDict, path: str, text: str) -> None:
    """Changes a value as a command line does it.

    Args:
        config: In the schema of ``default``.
        path: Such as ``"attack.epsilon"``.
        text: The value as text: ``"4/255"``; ``"null"`` or ``"None"`` for an optional one.

    Raises:
        ValueError: For an unknown key ("did you mean"), or text that is no value of its type.

    Example:
        >>> from awp_jax import config
        >>> found = config.default()
        >>> config.override(found, "weights.gamma", "0.005")
        >>> found.weights.gamma
        '0.005'
    """
    known = dict(keys())
    if path not in known:
        held = config[path]  # says what was meant
        meant = f", such as {path}.name={text}" if "name" in held else ""
        raise ValueError(f"Config key {path!r} is a group: give one of {', '.join(held)}{meant}.")
    group, _, leaf = path.rpartition(".")
    (config[group] if group else config)[leaf] = known[path].kind.read(text, path)


def validate(config: ConfigDict) -> ConfigDict:
    """Checks every value that can be checked without data, before anything is compiled.

    Args:
        config: In the schema of ``default``.

    Returns:
        The same config in the schema of this version.

    Raises:
        ValueError: One sentence naming the key, the value and what was expected.

    Warns:
        UserWarning: For a step size above 1 (2 instead of 2/255), a large L2 radius, a method or an
            average that begins behind the last epoch, or float16 without a loss scale.
    """
    config = from_dict(config)
    for path, key in keys():
        key.kind.validate(config[path], path, config)
    check_combinations(config)
    return config
