"""Projected ascent: the loop that every gradient attack on images or weights runs."""

import contextlib
import contextvars
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.balls._protocol import Ball
from awp_jax.typing import Inputs, Radius

# Compilation time grows with every unrolled step (8 s for 10 steps of PreActResNet-18 on CPU).
_MOST_UNROLLED = 32
# Steps of a rolled loop between two looks of who watches: of shorter loops nothing is cut.
_MOST_UNSEEN = 100
# Seconds between two looks: rarer ones leave a person in the dark, others would cost time.
_LOOKS = (0.5, 2.0)


class Watch:
    """Told how many steps of loops are done, now and then, by loops that run from Python.

    The device is waited for about once in a second, and not in every step: what is told is done,
    and steps are still sent ahead.

    Args:
        tell: Called with the number of steps since the last call.
    """

    def __init__(self, tell: Callable[[int], Any]) -> None:
        self._tell = tell
        self._every, self._since = 1, 0
        self._looked = time.monotonic()

    def restart(self) -> None:
        """Other loops begin: steps that were not told are nobody's."""
        self._since, self._looked = 0, time.monotonic()

    def stepped(self, steps: int, state: Any) -> None:
        """So many more steps have been sent, which end in ``state``."""
        self._since += steps
        if self._since < self._every:
            return
        jax.block_until_ready(state)
        now = time.monotonic()
        took, self._looked = now - self._looked, now
        if took < _LOOKS[0]:
            self._every *= 2
        elif took > _LOOKS[1]:
            self._every = max(self._every // 2, 1)
        told, self._since = self._since, 0
        self._tell(told)


_WATCH: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)


@contextlib.contextmanager
def watched(watch: Watch | None) -> Iterator[None]:
    """Loops inside the block tell ``watch`` of their steps; those that are traced tell nobody."""
    if watch is not None:
        watch.restart()
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


@jax.jit
def _call(body: Callable[..., Any], index: jax.Array, state: Any) -> Any:
    return body(index, state)


def _rolled(body: Callable[..., Any], first: jax.Array, steps: int, state: Any) -> Any:
    return jax.lax.fori_loop(0, steps, lambda index, now: body(first + index, now), state)


# Only the number of steps is static: a loop cut into segments compiles once.
_compiled_rolled = jax.jit(_rolled, static_argnums=2)


def is_traced(*values: Any) -> bool:
    """Whether ``values`` hold tracers, or ``jit`` is tracing right now.

    The second matters for functions, which may close over tracers that nobody sees: such a function
    must not become the key of a global compilation cache, where it would keep them alive.
    """
    return not checks.is_concrete((values, jnp.zeros(())))


def unrolls(steps: int, traced: bool) -> bool:
    """Whether so many turns are better written one behind the other, by the rule of ``loop``."""
    return jax.default_backend() == "cpu" and not (traced and steps > _MOST_UNROLLED)


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
    CPU the loop is unrolled when it is being traced (up to 32 steps), and otherwise runs from
    Python over one compiled step; on GPU and TPU it stays rolled.

    Args:
        body: ``(index, state) -> state``. Outside ``jit`` it is compiled once per *function*: pass
            a ``jax.tree_util.Partial`` of a module-level function with the arrays bound to it, and
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
    traced = is_traced(body, state)
    if unroll is None:
        unroll = unrolls(steps, traced)
    body = body if isinstance(body, Partial) else Partial(body)
    watch = None if traced else _WATCH.get()
    # Of NumPy outside jit: making one of JAX's own would be a program more.
    integer: Any = jnp.int32 if traced else np.int32
    if not unroll:
        rolled = _rolled if traced else _compiled_rolled
        if watch is None:
            return rolled(body, integer(first), steps, state)
        # In equal parts, as far as they go: each length is compiled once.
        length = -(-steps // -(-steps // _MOST_UNSEEN))
        for start in range(0, steps, length):
            count = min(length, steps - start)
            state = rolled(body, integer(first + start), count, state)
            watch.stepped(count, state)
        return state
    # Compiled even inside an outer trace: XLA inlines it, and the body is traced only once.
    call = jax.jit(lambda *args: body(*args)) if traced else functools.partial(_call, body)
    for index in range(first, first + steps):
        state = call(integer(index), state)
        if watch is not None:
            watch.stepped(1, state)
    return state


def ascend(
    gradient_fn: Callable[[Any, Any], tuple[Any, Any]],
    ball: Ball[Any],
    centre: Inputs,
    start: Any,
    carry: Any = None,
    *,
    steps: int,
    step_size: Radius,
    unroll: bool | None = None,
) -> tuple[Any, Any]:
    """Projected ascent on a ball around a centre.

    Args:
        gradient_fn: ``(point, carry) -> (gradient, carry)``. The carry holds what the gradient
            updates on its way: BatchNorm statistics, momentum, or nothing.
        ball: Of inputs or of weights.
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

    def body(index: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        del index
        point, carry = state
        gradient, carry = gradient_fn(point, carry)
        return ball.step(centre, point, gradient, step_size), carry

    return loop(body, (start, carry), steps, unroll=unroll)
