"""Projected ascent: the loop that every gradient attack on images or weights runs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks


@jax.jit
def _call(body, index, state):
    return body(index, state)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _rolled(body, first, last, state):
    return jax.lax.fori_loop(first, last, body, state)


def loop(
    body: Callable[[Any, Any], Any],
    state: Any,
    steps: int,
    *,
    unroll: bool | None = None,
    first: int = 0,
) -> Any:
    """Runs ``state = body(index, state)`` for ``index`` from ``first`` to below ``first + steps``.

    Convolutions inside XLA loop bodies are several times slower on CPU (jax issue 12868). So on
    CPU the loop is unrolled when it is being traced, and otherwise runs from Python over one
    compiled step; on GPU and TPU it stays rolled.

    Args:
        body: ``(index, state) -> state``. Outside ``jit`` it is compiled once per *function*: pass a
            ``jax.tree_util.Partial`` of a module-level function with the arrays bound to it, and
            later calls with other arrays reuse the compiled step.
        state: Any pytree of arrays.
        steps: Number of iterations, a Python integer.
        unroll: ``None`` for the rule above, ``True`` for unrolled or Python loops, ``False`` for
            ``fori_loop``.
        first: First index.

    Returns:
        The last state.
    """
    if steps == 0:
        return state
    if unroll is None:
        unroll = jax.default_backend() == "cpu"
    body = body if isinstance(body, Partial) else Partial(body)
    if not unroll:
        return _rolled(body, first, first + steps, state)
    for index in range(first, first + steps):
        # Compiled even inside an outer trace: XLA inlines it, and the body is traced only once.
        state = _call(body, jnp.int32(index), state)
    return state


def ascend(
    gradient_fn: Callable[[Any, Any], tuple[Any, Any]],
    ball: Any,
    centre: Any,
    start: Any,
    carry: Any = None,
    *,
    steps: int,
    step_size: Any,
    unroll: bool | None = None,
) -> tuple[Any, Any]:
    """Projected ascent on a ball around a centre.

    Args:
        gradient_fn: ``(point, carry) -> (gradient, carry)``. The carry holds what the gradient
            updates on its way: BatchNorm statistics, momentum, or nothing.
        ball: An ``ImageBall`` or a ``WeightBall``.
        centre: Clean images, or weights.
        start: First point: images, or a displacement of the weights.
        carry: First carry.
        steps: Number of steps, at least 0.
        step_size: In the units of the ball (pixels, or relative to the weights' norm).
        unroll: See ``loop``.

    Returns:
        ``(point, carry)`` after the last step.

    Raises:
        ValueError: When ``steps`` is negative or no integer.
    """
    checks.positive_integer(steps, "steps", minimum=0)

    def body(index, state):
        del index
        point, carry = state
        gradient, carry = gradient_fn(point, carry)
        return ball.step(centre, point, gradient, step_size), carry

    return loop(body, (start, carry), steps, unroll=unroll)
