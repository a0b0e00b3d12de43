"""What a key may hold: its type, how the command line writes it, and which values are refused."""

import ast
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax.parallel import axes_of, rules_of
from awp_jax.parts import is_reference

_NOTHING = ("null", "None")  # as YAML writes it, and Python; "none" is a value of some keys


def _any(value: Any, name: str, config: ConfigDict) -> None:
    """Where it is used it is checked as well, with what is known there."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a key may hold.

    Attributes:
        type: Of the value.
        expected: What is expected, in words: ``"an integer of at least 1"``.
        check: ``check(value, name, config)`` raises ``ValueError`` for a value that is refused.
        optional: Whether ``None`` is a value as well.
    """

    type: type
    expected: str
    check: Callable[[Any, str, ConfigDict], Any] = _any
    optional: bool = False

    def validate(self, value: Any, name: str, config: ConfigDict) -> None:
        """Raises ``ValueError``, in one sentence, for a value that is refused."""
        if value is None and self.optional:
            return
        if not isinstance(value, self.type):
            raise ValueError(f"{name} is {value!r}, but {self.expected} was expected.")
        self.check(value, name, config)

    def read(self, text: str, name: str) -> Any:
        """The value that ``text`` stands for on a command line.

        Raises:
            ValueError: In one sentence, when it stands for none.
        """
        if self.optional and (text in _NOTHING or (self.type is not str and text == "none")):
            return None
        try:
            return _READERS[self.type](text)
        except (ValueError, SyntaxError, KeyError, RecursionError, MemoryError):
            bare = self.type is tuple and text and text[0] not in "([" and "," not in text
            alone = f"; one alone is written '({text},)'" if bare else ""
            nothing = " or null" if self.optional else ""
            raise ValueError(
                f"{name} is {text!r}, but {self.expected}{nothing} was expected{alone}."
            ) from None


def optional(kind: Kind) -> Kind:
    """The same kind, or ``None``."""
    return dataclasses.replace(kind, optional=True)


def integer(minimum: int, maximum: int | None = None) -> Kind:
    """An integer of at least ``minimum``, and at most ``maximum`` where there is one."""
    limit = f"an integer of at least {minimum}"
    if maximum is not None:
        limit = f"an integer from {minimum} to {maximum}"

    def check(value, name, config):
        checks.positive_integer(value, name, minimum)
        if maximum is not None and value > maximum:
            raise ValueError(f"{name} is {value!r}, but {limit} was expected.")

    return Kind(int, limit, check)


def threshold() -> Kind:
    """A number of at least 0, or infinity."""

    def check(value, name, config):
        if not value >= 0:
            raise ValueError(
                f"{name} is {value!r}, but a number of at least 0, or inf, was expected."
            )

    return Kind(float, "a number of at least 0, or inf", check)


def number(below: float = math.inf) -> Kind:
    """A finite number of at least 0, and less than ``below``."""
    limit = "a finite number of at least 0" if below == math.inf else f"a number in [0, {below:g})"

    def check(value, name, config):
        if not 0 <= value < below:
            raise ValueError(f"{name} is {value!r}, but {limit} was expected.")

    return Kind(float, limit, check)


def share() -> Kind:
    """A number from 0 to 1."""

    def check(value, name, config):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}, but a number in [0, 1] was expected.")

    return Kind(float, "a number in [0, 1]", check)


def choice(*names: str) -> Kind:
    """One of these names."""

    def check(value, name, config):
        checks.choice(value, names, name)

    return Kind(str, f"one of {', '.join(names)}", check)


def scale() -> Kind:
    """A positive number in text, or ``"dynamic"``."""
    expected = "a positive number such as 1024, or dynamic"

    def check(value, name, config):
        if value == "dynamic":
            return
        try:
            good = 0 < float(value) < math.inf
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"{name} is {value!r}, but {expected} was expected.")

    return Kind(str, expected, check)


# Services that follow runs; they have the interface of wandb.
TRACKERS = ("wandb", "trackio")


def tracked() -> Kind:
    """A service that follows runs, and a project there."""
    expected = " or ".join(f"{service}:PROJECT" for service in TRACKERS)

    def check(value, name, config):
        service, _, project = value.partition(":")
        if service not in TRACKERS or not project:
            raise ValueError(f"{name} is {value!r}, but {expected} was expected.")

    return Kind(str, expected, check)


def mesh() -> Kind:
    """The axes of a mesh of devices, and how many each has."""

    def check(value, name, config):
        axes_of(value)

    return Kind(str, "data:2,fsdp:4", check)


def rules() -> Kind:
    """Which weights are split along which axis."""

    def check(value, name, config):
        rules_of(value)

    return Kind(str, "linear.kernel:0,*embed*:none", check)


OWN = "package.module:function"


def named(*names: str) -> Kind:
    """One of these names, or ``"package.module:function"`` for one's own."""

    def check(value, name, config):
        if is_reference(value):
            return
        try:
            checks.choice(value, names, name)
        except ValueError as error:
            raise ValueError(f"{error} One's own is written {OWN!r}.") from None

    return Kind(str, f"one of {', '.join(names)}, or {OWN!r}", check)


def _step(value: Any, name: str, config: ConfigDict) -> None:
    checks.radius(value, name, config.attack.norm)


def _radius(value: Any, name: str, config: ConfigDict) -> None:
    norm = config.attack.norm
    # No L1 ball is suspiciously large, so this only reads the number.
    if norm != "linf" or checks.radius(value, name, "l1") <= 1:
        checks.radius(value, name, norm)
    elif not config.attack.large_epsilon:
        raise ValueError(
            f"{name} is {value}, but images are in [0, 1], where no Linf radius above 1 makes "
            f"sense: write {_in_255ths(value)} where 255ths are meant, or set attack.large_epsilon "
            "to True to insist."
        )


def _in_255ths(value: str) -> str:
    return f"{value}/255" if value.strip().isdigit() else "a fraction such as 8/255"


def _size(value: Any, name: str, config: ConfigDict) -> None:
    checks.radius(value, name)


def _fractions(value: Any, name: str, config: ConfigDict) -> None:
    for m in value:
        if isinstance(m, bool) or not isinstance(m, int | float) or not 0 <= m <= 1:
            raise ValueError(
                f"{name} is {value}, but fractions of all epochs from 0 to 1, such as (0.5, 0.75), "
                "were expected."
            )


def _in_pixels(value: Any, name: str, config: ConfigDict) -> None:
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} is {value}, but {PIXELS.expected} was expected.")
        if not number <= 1:
            raise ValueError(
                f"{name} is {value}, but images are in [0, 1] before they are normalised: divide "
                "by 255."
            )


_FRACTION = "a number or a fraction such as '8/255'"
SWITCH = Kind(bool, "true or false")
TEXT = Kind(str, "text")
SIZES = Kind(tuple, "a sequence of numbers such as '(0.5, 1.5)'")
PIXELS = Kind(tuple, "a sequence of numbers in [0, 1], one for each channel or for all", _in_pixels)
RADIUS = Kind(str, _FRACTION, _radius)
STEP = Kind(str, _FRACTION, _step)
SIZE = Kind(str, "a number such as '0.005'", _size)
FRACTIONS = Kind(tuple, "a sequence of fractions such as '(0.5, 0.75)'", _fractions)

_SWITCHES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def _several(text: str) -> tuple:
    found = ast.literal_eval(text)
    if not isinstance(found, tuple | list):
        raise ValueError
    return tuple(found)


_READERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: _SWITCHES[text.lower()],
    tuple: _several,
}
