"""Meshes of ``AxisType.Explicit``, where the sharding of an array is part of its type.

There an operation on arrays of different shardings is an error, which whoever writes a model wants
to see, but which says nothing of use about the inside of an attack. So what the library computes on
such arrays it computes in Auto mode, in which XLA chooses, the user's functions run in Explicit
mode as they were written, and results are sharded as the inputs they belong to.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, reshard, use_abstract_mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from awp_jax.parallel import AXIS

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def explicit_mesh(tree: Any) -> Any:
    """The mesh with explicit axes that an array of ``tree`` is sharded over; ``None`` for none."""
    for leaf in jax.tree.leaves(tree):
        sharding = _sharding(leaf)
        if sharding is not None and AxisType.Explicit in sharding.mesh.axis_types:
            return sharding.mesh
    return None


def on_any_mesh(**functions: str) -> Callable[[AnyFunction], AnyFunction]:
    """Decorates what takes a user's functions and arrays, so that these may lie on explicit meshes.

    Args:
        **functions: The arguments that are a user's functions, and after which arguments theirs are
            shaped: ``logits_fn="images"``, ``apply_fn="params images"``. Inputs are arrays
            ``[batch, ...]``; what the functions are called with beside is whole on every device.
    """

    def decorate(function: AnyFunction) -> AnyFunction:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            mesh = explicit_mesh((args, kwargs))
            if mesh is None:
                return function(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            before = dict(given.arguments)
            with _entered(mesh, (args, kwargs)):
                auto = mesh.update_axis_types({name: AxisType.Auto for name in mesh.axis_names})
                with use_abstract_mesh(auto):
                    for name, value in before.items():
                        if name in functions and value is not None:
                            shaped = {like: before[like] for like in functions[name].split()}
                            given.arguments[name] = _as_explicit(value, shaped, mesh)
                        else:
                            given.arguments[name] = _cast(value)
                    found = function(*given.args, **given.kwargs)
                shapes = {like for names in functions.values() for like in names.split()}
                return _like(found, [before[name] for name in sorted(shapes)])

        return call  # type: ignore[return-value]

    return decorate


def _sharding(leaf: Any) -> NamedSharding | None:
    """Of an array or tracer, as its type says it."""
    if not isinstance(leaf, jax.Array):
        return None
    sharding = getattr(jax.typeof(leaf), "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and not sharding.mesh.empty else None


def _spec(leaf: Any) -> Any:
    sharding = _sharding(leaf)
    return P() if sharding is None else sharding.spec


def _concrete_mesh(tree: Any) -> Any:
    """The devices themselves, where arrays are no tracers."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            if _sharding(leaf) is not None and isinstance(leaf.sharding, NamedSharding):
                return leaf.sharding.mesh
    return None


def _entered(mesh: AbstractMesh, tree: Any) -> Any:
    """The mesh as that of the context, where the caller has set none."""
    if not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    concrete = _concrete_mesh(tree)
    return use_abstract_mesh(mesh) if concrete is None else jax.set_mesh(concrete)


def _cast(tree: Any) -> Any:
    """Arrays of explicit axes as those of the Auto mesh of the context; nothing moves."""

    def cast(leaf: Any) -> Any:
        return leaf if _sharding(leaf) is None else reshard(leaf, P(*[None] * leaf.ndim))

    return jax.tree.map(cast, tree)


def _as_explicit(function: Any, shaped: dict[str, Any], mesh: AbstractMesh) -> Partial:
    """A function that is called in Auto mode, and runs in Explicit mode."""
    whole = function if isinstance(function, Partial) else Partial(function)
    leaves, structure = jax.tree.flatten(whole)
    specs = tuple(_spec(leaf) for leaf in leaves)
    # Images that lie nowhere yet are split as those of the library are.
    rows = P(AXIS) if AXIS in mesh.axis_names else P()
    likes = tuple(
        tuple(
            rows if name != "params" and _sharding(leaf) is None else _spec(leaf)
            for leaf in jax.tree.leaves(like)
        )
        for name, like in shaped.items()
    )
    return Partial(_InExplicitMode(structure, specs, likes, mesh), *map(_cast, leaves))


@dataclasses.dataclass(frozen=True)
class _InExplicitMode:
    """Known by its parts, so that it is the key of what is compiled."""

    structure: Any
    specs: tuple[Any, ...]
    likes: tuple[Any, ...]
    mesh: AbstractMesh

    def __call__(self, *args: Any) -> Any:
        leaves, given = args[: len(self.specs)], args[len(self.specs) :]

        def places(value: Any, like: Any) -> Any:
            there, form = jax.tree.flatten(value)
            pairs = zip(like or [P()] * len(there), there, strict=True)
            found = [_dividing(spec, leaf.shape, self.mesh) for spec, leaf in pairs]
            return jax.tree.unflatten(form, found)

        beside = [()] * (len(given) - len(self.likes))
        wanted = [places(*pair) for pair in zip(given, [*self.likes, *beside], strict=True)]

        def run(leaves: Any, *given: Any) -> Any:
            return jax.tree.unflatten(self.structure, leaves)(*given)

        entered = jax.sharding.explicit_axes(run, in_sharding=(list(self.specs), *wanted))
        return entered(list(leaves), *given)


def _dividing(spec: Any, shape: tuple[int, ...], mesh: AbstractMesh) -> Any:
    """``spec`` for other sizes of the batch: whole where an axis does not divide."""
    kept = []
    for names, size in zip((*spec, *[None] * len(shape))[: len(shape)], shape, strict=True):
        count = 1
        for name in (names,) if isinstance(names, str) else names or ():
            count *= mesh.shape[name]
        kept.append(names if size % count == 0 else None)
    return P(*kept)


def _like(found: Any, inputs: Any) -> Any:
    """Results in Explicit mode: what has the shape of inputs is sharded as they are."""
    shaped = {leaf.shape: _spec(leaf) for leaf in jax.tree.leaves(inputs)}
    (batch, *_), rows = next(((s, p) for s, p in shaped.items() if len(s)), ((None,), P()))

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        spec = shaped.get(leaf.shape)
        if spec is None:
            spec = P(*rows[:1]) if leaf.ndim and leaf.shape[0] == batch else P()
        return reshard(leaf, P(*spec, *[None] * (leaf.ndim - len(spec))))

    return jax.tree.map(place, found)
