"""A ``ConfigDict`` that says in one sentence what is wrong with a key."""

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


class UnknownKeyError(KeyError, AttributeError, ValueError):
    """There is no such key; the message is one sentence that says what was meant."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError puts quotes around it


class WrongTypeError(TypeError, ValueError):
    """A key was given a value of another type; the message is one sentence."""


class Config(ConfigDict):
    """A ``ConfigDict`` of a known schema.

    Args:
        prefix: What stands before its keys in messages: ``"attack."`` in a group.
    """

    def __init__(self, *arguments: Any, prefix: str = "", **options: Any):
        object.__setattr__(self, "_prefix", prefix)
        super().__init__(*arguments, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, key: str) -> Any:
        head, dot, rest = str(key).partition(".")
        if head not in self._fields:
            raise self._unknown(head)
        held = super().__getitem__(head)
        if dot and not isinstance(held, ConfigDict):
            raise self._unknown(key)
        return held[rest] if dot else held

    def __setitem__(self, key: str, value: Any) -> None:
        name = f"{self._prefix}{key}"
        if self.is_locked and key not in self._fields:
            raise self._unknown(key)
        if self.is_locked and isinstance(self[key], Config):
            if not isinstance(value, Mapping | ConfigDict):
                raise WrongTypeError(f"Config key {name!r} is a group, not a value: {value!r}.")
            for inner, one in value.items():
                self[key][inner] = one
            return
        try:
            super().__setitem__(key, value)
        except TypeError:
            wanted = self.get_type(key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            hint = " (radii and step sizes are text, such as '8/255')" if wanted is str else ""
            raise WrongTypeError(
                f"Config key {name!r} is {value!r}, but a value of type {wanted.__name__} was "
                f"expected{hint if number else ''}."
            ) from None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        object.__setattr__(self, "_prefix", state["_prefix"])

    def copy_and_resolve_references(self, visit_map: dict | None = None) -> "Config":
        """A copy with values in place of references."""
        copy = super().copy_and_resolve_references(visit_map)
        object.__setattr__(copy, "_prefix", self._prefix)
        return copy

    def _unknown(self, key: Any) -> UnknownKeyError:
        name, known = f"{self._prefix}{key}", [f"{self._prefix}{k}" for k in self._fields]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return UnknownKeyError(f"Unknown config key {name!r}.{hint}")
