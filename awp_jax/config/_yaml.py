"""Configs as YAML, for people: what ``awp-jax describe`` prints, ``--config`` reads back."""

import re
from typing import Any

import yaml
from ml_collections import ConfigDict

from awp_jax.config._groups import GROUPS
from awp_jax.config._schema import from_dict


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 5e-4 for text; people do not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def to_yaml(config: ConfigDict) -> str:
    """A config as plain YAML, in the order in which its keys are declared."""
    values: dict[str, Any] = {}
    for group in GROUPS:
        held = values.setdefault(group.name, {}) if group.name else values
        for key in group.keys:
            value = config[group.path(key)]
            held[key.name] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def from_yaml(text: str, name: str = "The config") -> ConfigDict:
    """The default config with what YAML (or JSON) says laid over it.

    Args:
        text: Such as ``to_yaml`` writes.
        name: What to call it in messages.

    Returns:
        A locked config in the schema of ``default``.

    Raises:
        ValueError: In one sentence, for broken YAML, an unknown key ("did you mean") or a value of
            another type.
    """
    try:
        values = yaml.load(text, _Loader)  # a SafeLoader: plain values only
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        place = f" in line {where.line + 1}" if where else ""
        raise ValueError(f"{name} is broken YAML: {error.problem}{place}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is broken YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds no keys of a config, such as 'epochs: 20'.")
    return from_dict(values)
