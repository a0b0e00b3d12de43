"""The form in which keys are declared."""

import dataclasses
from typing import Any

from awp_jax.config._kinds import Kind


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config: its default, what it may hold and what it means, in one place.

    Attributes:
        name: Within its group.
        default: ``None`` only where the kind is optional.
        kind: What it may hold.
        sentence: What it means, with unit and range, and where its default is from.
    """

    name: str
    default: Any
    kind: Kind
    sentence: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Keys that belong together.

    Attributes:
        name: As in ``--config.NAME.KEY``; empty for the keys that stand alone.
        sentence: What they are about.
        keys: In the order in which they are shown.
    """

    name: str
    sentence: str
    keys: tuple[Key, ...]

    def path(self, key: Key) -> str:
        """The whole name of a key: ``"attack.epsilon"``."""
        return f"{self.name}.{key.name}" if self.name else key.name


def group(name: str, sentence: str, *keys: tuple[str, Any, Kind, str]) -> Group:
    """A group of keys, each written ``(name, default, kind, sentence)``."""
    return Group(name, sentence, tuple(Key(*key) for key in keys))
