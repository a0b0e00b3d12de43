"""Frozen dataclasses that travel through ``jit``: numbers as leaves, words as constants.

``jax.tree_util.register_dataclass`` builds the object anew with its constructor, whose checks would
meet tracers and placeholders; here a copy is filled in without it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

Class = TypeVar("Class", bound=type)


@jax.tree_util.register_static
class Constant:
    """Any object as a static value, known by identity: ``jit`` compiles once for each object.

    Text is known by what it says.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant):
            return False
        text = isinstance(self.value, str) and isinstance(other.value, str)
        return self.value == other.value if text else self.value is other.value

    def __hash__(self) -> int:
        return hash(self.value) if isinstance(self.value, str) else id(self.value)


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """``jax.tree.flatten``, whose structure type checkers do not know."""
    return jax.tree.flatten(tree)


def is_constant(value: Any) -> bool:
    """Whether ``value`` is an object that JAX cannot look into: no pytree, array or number."""
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        return False
    number = isinstance(value, bool | int | float | complex | np.generic | np.ndarray | jax.Array)
    return not (number or (hasattr(value, "dtype") and hasattr(value, "shape")))


def is_function(value: Any) -> bool:
    """Whether ``value`` is a function, and no pytree of arrays that is callable (Equinox)."""
    return callable(value) and (jax.tree_util.all_leaves([value]) or not jax.tree.leaves(value))


def as_argument(value: Any) -> Any:
    """``value``, in a ``Constant`` where JAX cannot look into it: an argument for ``jit``."""
    return Constant(value) if is_constant(value) else value


def from_argument(value: Any) -> Any:
    """What ``as_argument`` was given."""
    return value.value if isinstance(value, Constant) else value


def pytree_dataclass(*children: str) -> Callable[[Class], Class]:
    """Registers a frozen dataclass as a pytree.

    Args:
        *children: Fields whose numbers and arrays are leaves: they may be traced, sharded and
            mapped, and other values compile nothing anew. A child that JAX cannot look into (a
            user's own ball) is a constant, known by identity. All other fields are constants,
            compared by ``==``.

    Returns:
        A decorator, to stand above ``dataclasses.dataclass``.

    Example:
        >>> import dataclasses, jax
        >>> from awp_jax.pytrees import pytree_dataclass
        >>> @pytree_dataclass("radius")
        ... @dataclasses.dataclass(frozen=True)
        ... class Disc:
        ...     radius: float
        ...     unit: str = "cm"
        >>> jax.tree.map(lambda number: 2 * number, Disc(3.0))
        Disc(radius=6.0, unit='cm')
    """

    def register(cls: Class) -> Class:
        names = tuple(field.name for field in dataclasses.fields(cls))
        unknown = set(children) - set(names)
        assert not unknown, f"{cls.__name__} has no fields {sorted(unknown)}"
        static = tuple(name for name in names if name not in children)

        def flatten(self: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            # What was a constant stays one while JAX puts placeholders into the leaves.
            constants = self.__dict__.get("_constants")
            if constants is None:
                constants = tuple(n for n in children if is_constant(getattr(self, n)))
            leaves = tuple(getattr(self, n) for n in children if n not in constants)
            kept = tuple((n, Constant(getattr(self, n))) for n in constants)
            return leaves, (kept, tuple(getattr(self, n) for n in static))

        def flatten_with_keys(self: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            leaves, aux = flatten(self)
            there = [n for n in children if n not in dict(aux[0])]
            keys = [jax.tree_util.GetAttrKey(n) for n in there]
            return tuple(zip(keys, leaves, strict=True)), aux

        def unflatten(aux: tuple[Any, ...], leaves: Any) -> Any:
            kept, values = aux
            constants = dict(kept)
            self: Any = object.__new__(cls)
            there = (n for n in children if n not in constants)
            for name, value in zip(there, leaves, strict=True):
                object.__setattr__(self, name, value)
            for name, constant in kept:
                object.__setattr__(self, name, constant.value)
            for name, value in zip(static, values, strict=True):
                object.__setattr__(self, name, value)
            object.__setattr__(self, "_constants", tuple(constants))
            return self

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return register
