"""One's own model, objective, attack, weight perturbation, optimiser or data in a config.

A config names them ``"package.module:function"`` beside the names of this library; from Python the
object itself may be given, and is named so where it can be imported again.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Stands for the module of what was given from Python and can be found by no name.
GIVEN = "<given>"

NAMES = {
    "model": "model.name",
    "objective": "objective.name",
    "attack": "attack.name",
    "weights": "weights.method",
    "optimizer": "optimizer.name",
    "data": "data.name",
}


class PartError(ValueError):
    """One's own part cannot be found or used; the message is one sentence that says why."""


class Parts(NamedTuple):
    """Parts of a run that were given as objects, in place of what the config's names find.

    Attributes:
        model: A function ``(image_shape, num_classes, ...)`` to a ``Classifier``, ``nnx.Module`` or
            ``linen.Module``, or one of these.
        objective: An ``Objective``, or a function that returns one.
        attack: An attack, or a class of them.
        weights: ``(ascent, ball) -> displacement``.
        optimizer: A function ``(learning_rate, ...)`` to an optax optimiser.
        data: ``Splits``, or a function that returns them.
    """

    model: Any = None
    objective: Any = None
    attack: Any = None
    weights: Any = None
    optimizer: Any = None
    data: Any = None


NONE = Parts()


def is_reference(name: Any) -> bool:
    """Whether a name is ``"package.module:function"``, and none of this library's."""
    return isinstance(name, str) and ":" in name and not name.startswith("tfds:")


def short(name: str) -> str:
    """How tables and messages call a part: its own name, without the module."""
    return name.rpartition(":")[2] if is_reference(name) else name


def find(reference: str, key: str) -> Any:
    """What a reference names.

    Args:
        reference: ``"package.module:function"``.
        key: The config key that holds it, for messages.

    Raises:
        PartError: For a module that cannot be imported, or that has no such name.
    """
    module_name, _, attribute = reference.partition(":")
    if module_name == GIVEN:
        kind = next(kind for kind, name in NAMES.items() if name == key)
        raise PartError(
            f"{key} is {reference!r}, which was given from Python and can be imported from no "
            f"module: give it again, as {kind}=... of awp_jax.runs.open or train."
        )
    what = f"{key} is {reference!r}"
    if not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise PartError(f"{what}, but 'package.module:function' was expected.")
    found = _imported(module_name, what)
    for name in attribute.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise PartError(f"{what}, but module {module_name!r} has no {attribute!r}{hint}.")
        found = getattr(found, name)
    return found


def _imported(name: str, what: str) -> Any:
    # As `python file.py` does, and an installed command does not: modules beside the user.
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise PartError(
                f"{what}, but there is no module {error.name!r}: put its folder on PYTHONPATH, or "
                "call from there."
            ) from None
        raise PartError(f"{what}, but importing {name!r} failed: {error}.") from error
    except (Exception, SystemExit) as error:  # a module is any Python, so is what it raises
        first = (str(error).strip().splitlines() or [""])[0]
        raise PartError(
            f"{what}, but importing {name!r} failed: {type(error).__name__}: {first}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def reference_of(part: Any) -> str:
    """The name by which ``find`` finds an object, or one that begins with ``<given>``."""
    named = part if hasattr(part, "__qualname__") else type(part)
    module, name = getattr(named, "__module__", ""), named.__qualname__
    if named is part and module != "__main__" and "<" not in name:
        try:
            if find(f"{module}:{name}", "") is part:
                return f"{module}:{name}"
        except PartError:
            pass
    return f"{GIVEN}:{name.rpartition('.')[2].strip('<>')}"


def record(config: ConfigDict, parts: Parts) -> ConfigDict:
    """``config`` with the names of the parts that were given, changed in place."""
    for kind, part in parts._asdict().items():
        if part is not None:
            group, _, leaf = NAMES[kind].partition(".")
            config[group][leaf] = reference_of(part)
    return config


def own(config: ConfigDict, kind: str, parts: Parts) -> Any:
    """The user's own part of a kind, or ``None`` where the config names one of this library.

    Raises:
        PartError: When it cannot be found.
    """
    given = getattr(parts, kind)
    if given is not None:
        return given
    name = config[NAMES[kind]]
    return find(name, NAMES[kind]) if is_reference(name) else None


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """What a user's function, or the making of a class of theirs, takes."""
    if not inspect.isclass(function):
        return inspect.signature(function)
    # Not that of the class: a metaclass (of Flax NNX) takes anything, and hands it on.
    found = inspect.signature(function.__init__)
    kept = list(found.parameters.values())[1:]
    if any(base.__module__.startswith("flax.linen") for base in function.__mro__):
        kept = [p for p in kept if p.name not in ("parent", "name")]  # linen's own
    return found.replace(parameters=kept)


def call(
    function: Callable[..., Any],
    what: str,
    *arguments: Any,
    names: Sequence[str] = (),
    options: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Calls a user's function with those options that its signature names.

    Args:
        function: The user's.
        what: How messages call it: ``"model.name 'mine:net'"``.
        *arguments: What it must take.
        names: Of these, for messages.
        options: What it may take, by name.
        defaults: Of options: one that it does not take must be so, or is refused.

    Raises:
        PartError: For a function that takes other arguments, or an option that would have no
            effect.
    """
    if not callable(function):
        raise PartError(f"{what} is a {type(function).__name__}, but a function was expected.")
    signature = signature_of(function)
    parameters = signature.parameters.values()
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_name = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    taken = {name: value for name, value in options.items() if every or name in by_name}
    try:
        signature.bind(*arguments, **taken)
    except TypeError as error:
        wanted = ", ".join([*names, *(f"{name}=" for name in taken)])
        raise PartError(f"{what} is called with ({wanted}), but {signature}: {error}.") from None
    for name, value in (defaults or {}).items():
        if name not in taken and options.get(name, value) != value:
            raise PartError(
                f"{what} takes no {name!r}, but the config sets it to {options[name]!r}."
            )
    return function(*arguments, **taken)
