"""Flax NNX modules as parameters, without importing Flax for anybody who has none."""

import sys
from collections.abc import Callable
from typing import Any

import jax

from awp_jax.typing import Params


def functional(
    params: Params,
) -> tuple[Any, Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """A module as its parameters and the rest; anything else as it is.

    Args:
        params: An ``nnx.Module``, or any pytree of arrays.

    Returns:
        ``(params, rebuilt, left_of, write)``: of a module its ``nnx.Param`` as a state, in which
        tied weights are one array; ``rebuilt(params)`` gives a copy of the module with them;
        ``left_of(module)`` what a pass has done to its other variables, and ``write`` puts that
        into the module that was given.

    Raises:
        ValueError: For a module inside a pytree of other parameters.
    """
    # No module can have come in where nobody has imported Flax.
    flax = sys.modules.get("flax.nnx")
    if flax is None:
        return _as_it_is(params)
    module_type = flax.Module
    if not isinstance(params, module_type):
        inside = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, module_type))
        if any(isinstance(leaf, module_type) for leaf in inside):
            raise ValueError(
                "The parameters hold an nnx.Module beside others: give the module alone, or split "
                "each with nnx.split(module, nnx.Param, ...)."
            )
        return _as_it_is(params)
    graph, own, rest = flax.split(params, flax.Param, ...)

    def rebuilt(state: Any) -> Any:
        # A copy: the pass writes into its own variables, and `rest` stays as it was.
        return flax.merge(graph, state, rest, copy=True)

    def left_of(module: Any) -> Any:
        return flax.split(module, flax.Param, ...)[2]

    def write(left: Any) -> None:
        flax.update(params, left)

    return own, rebuilt, left_of, write


def _as_it_is(
    params: Params,
) -> tuple[Any, Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    return params, lambda p: p, lambda p: None, lambda left: None
