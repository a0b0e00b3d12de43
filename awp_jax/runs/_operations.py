"""Floating-point operations of a function, counted without compiling it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def operations(function: Callable[..., Any], *arguments: Any) -> int:
    """Additions and multiplications of the convolutions and matrix products of a function.

    Two for each product that is summed, padding included; all else (activations, normalisation,
    pools) is left out, as in the numbers that are published with architectures, which count one.
    A loop counts by its length, or once where that is not known; of branches the longest counts.

    Args:
        function: Traced once.
        *arguments: Its arguments, or ``jax.ShapeDtypeStruct`` in their place.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, values = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = values["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[values["dimension_numbers"].rhs_spec[0]]
        products = equation.outvars[0].aval.size * (kernel.size // outputs)
        # Behind a stride the backward pass has zeros between its inputs: no work in itself.
        return 2 * products // math.prod(values["lhs_dilation"])
    inner = [_of(jaxpr) for jaxpr in _inside(values)]
    if name == "cond":
        return max(inner)
    return values.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _inside(values: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in values.values() if isinstance(values, dict) else values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            yield from _inside(value)
