"""Norms that neither overflow nor underflow: values are scaled before they are squared."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.reductions import PARTS, keeps_axes, parts_of


def is_float(array: Any) -> bool:
    """Whether an adversary can move an array: tokens and other integers stay as they are."""
    return jnp.issubdtype(array.dtype, jnp.floating)


def at_least_float32(array: jax.Array) -> jax.Array:
    """Half precision as float32, in which it is summed and divided; float64 stays float64."""
    wide = jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits >= 32
    return array if wide else array.astype(jnp.float32)


def power_of_two(largest: jax.Array) -> jax.Array:
    """A power of two near ``largest``, by which division is exact; a small one for zero.

    It stays where its own reciprocal is a normal number, so that squares of what was divided by it
    can be summed: 3e38 becomes less than 4.
    """
    # The exponent of a float is in its bits. Taking it from there is four operations;
    # jnp.frexp and jnp.ldexp are a hundred, for each of all weights in every step.
    limits = jnp.finfo(largest.dtype)
    integer = jnp.dtype(f"int{limits.bits}")
    bits = jax.lax.bitcast_convert_type(largest, integer)
    unit = 1 << limits.nmant
    least, most = (
        exponent - limits.minexp + 1 for exponent in (limits.minexp + 1, limits.maxexp - 2)
    )
    mask = ((1 << limits.nexp) - 1) * unit
    exponent = jnp.clip(bits & jnp.array(mask, integer), least * unit, most * unit)
    return jax.lax.bitcast_convert_type(exponent.astype(integer), largest.dtype)


def largest(array: jax.Array, axes: Sequence[int] | None) -> jax.Array:
    """The largest absolute value over ``axes`` (``None``: all, without axes), zero for no entry."""
    return jnp.max(jnp.abs(array), axis=axes, keepdims=axes is not None, initial=0.0)


class Sizes(NamedTuple):
    """Norms as two factors, each a list with an entry for each array."""

    power: list[jax.Array]
    rest: list[jax.Array]

    def norms(self) -> list[jax.Array]:
        return [power * rest for power, rest in zip(self.power, self.rest, strict=True)]


def sizes(
    arrays: list[jax.Array],
    kind: str,
    axes: Sequence[Sequence[int] | None],
    *,
    together: bool = False,
    one_pass: bool = False,
    split: Sequence[tuple[str, ...]] | None = None,
) -> Sizes:
    """Norms as a power of two, by which entries may be divided, and the norm of what that leaves.

    The second factor is finite exactly where all entries are.

    Args:
        arrays: At least float32.
        kind: ``"l1"`` or ``"l2"``.
        axes: For each array the axes that one norm is taken over; ``None`` for all.
        together: Whether one norm is taken over all arrays, whose norms have the same shape.
        one_pass: Whether to try on CPU without scaling first: a fifth of AWP's step on large dense
            layers. Not inside an attack's loop, whose convolutions XLA makes slower beside a
            condition.
        split: Under ``shard_map`` or ``pmap``, for each array the mapped axes over which it is
            split; ``None``: none is.
    """
    # Outside jit the condition below would be compiled anew in each call.
    outside = one_pass and not split and checks.is_concrete(arrays)
    made = _compiled_sizes if outside else _sizes
    return made(arrays, kind, tuple(axes), together, one_pass, split, keeps_axes(arrays))


def _sizes(
    arrays: list[jax.Array],
    kind: str,
    axes: Sequence[Sequence[int] | None],
    together: bool,
    one_pass: bool,
    split: Sequence[tuple[str, ...]] | None,
    kept: bool,
) -> Sizes:
    mapped = split or [()] * len(arrays)

    def over(combine: Callable[..., Any], values: list[jax.Array]) -> list[jax.Array]:
        if not together:
            return values
        total = values[0]
        for value in values[1:]:
            total = combine(total, value)
        return [total] * len(values)

    def everywhere(combine: Callable[..., Any], values: list[jax.Array]) -> list[jax.Array]:
        pairs = zip(values, mapped, strict=True)
        return [combine(value, names) if names else value for value, names in pairs]

    def summed(parts: list[jax.Array]) -> list[jax.Array]:
        sums = [_power_sum(p, kind, along) for p, along in zip(parts, axes, strict=True)]
        return over(jnp.add, everywhere(jax.lax.psum, sums))

    def scaled() -> tuple[list[jax.Array], list[jax.Array]]:
        # Divided before it is squared: neither 1e-30 nor 1e30 would survive that in float32.
        most = [largest(a, along) for a, along in zip(arrays, axes, strict=True)]
        # Together by one power of two, without which their sums could not be added.
        most = over(jnp.maximum, everywhere(jax.lax.pmax, most))
        powers = [power_of_two(value) for value in most]
        parts = [a / p.astype(a.dtype) for a, p in zip(arrays, powers, strict=True)]
        return powers, summed(parts)

    def on_cpu() -> tuple[list[jax.Array], list[jax.Array]]:
        # One pass over the arrays where nothing was lost in it, which is nearly always: both give
        # the same norms, for division by a power of two is exact.
        sums = summed(arrays)
        plain = [jnp.ones_like(value) for value in sums], sums
        return jax.lax.cond(_all_usual(sums), lambda: plain, scaled)

    def in_stages() -> tuple[list[jax.Array], list[jax.Array]]:
        return _in_stages(arrays, kind, together)

    if not arrays:
        return Sizes([], [])
    whole = all(along is None for along in axes) and len({a.dtype for a in arrays}) == 1
    whole = whole and not kept
    # Devices that talk to each other inside a condition would have to agree on it first.
    if one_pass and not any(mapped):
        # On a GPU a condition costs more than a pass: the host would wait to know it.
        on_gpu = in_stages if whole else scaled
        powers, sums = jax.lax.platform_dependent(cpu=on_cpu, tpu=scaled, default=on_gpu)
    else:
        powers, sums = scaled()
    return Sizes(powers, sums if kind == "l1" else [jnp.sqrt(value) for value in sums])


_compiled_sizes = jax.jit(_sizes, static_argnums=(1, 2, 3, 4, 5, 6))


def _in_stages(
    arrays: list[jax.Array], kind: str, together: bool
) -> tuple[list[jax.Array], list[jax.Array]]:
    """As ``scaled``: one kernel for each array and one for all, where XLA makes two for each."""

    def over_parts(reduce: Callable[..., Any], values: list[jax.Array]) -> jax.Array:
        rows = []
        for value in values:
            row = value.reshape(parts_of(value.size), -1)
            row = reduce(row, axis=1) if value.size else row[0, :0]
            rows.append(jnp.pad(row, (0, PARTS - row.shape[0])))  # zeros, which change neither
        found = reduce(jnp.stack(rows), axis=1)
        return jnp.broadcast_to(reduce(found), found.shape) if together else found

    powers = power_of_two(over_parts(jnp.max, [jnp.abs(a) for a in arrays]))
    parts = [a / powers[place] for place, a in enumerate(arrays)]
    raised = [jnp.abs(part) if kind == "l1" else jnp.square(part) for part in parts]
    sums = over_parts(jnp.sum, raised)
    return [*powers], [*sums]


def _all_usual(sums: list[jax.Array]) -> jax.Array:
    """Whether no sum overflowed, nor what is divided by it, and no square that matters was lost."""
    usual = jnp.bool_(True)
    for value in sums:
        limits = jnp.finfo(value.dtype)
        least, most = (
            jnp.array(2.0**e, value.dtype) for e in (limits.minexp + 26, limits.maxexp - 26)
        )
        usual &= jnp.all((value > least) & (value < most))
    return usual


def _power_sum(array: jax.Array, kind: str, axes: Sequence[int] | None) -> jax.Array:
    powers = jnp.abs(array) if kind == "l1" else jnp.square(array)
    return jnp.sum(powers, axis=axes, keepdims=axes is not None)


def reciprocal(values: jax.Array) -> jax.Array:
    """``1 / values``, and 0 where they are 0."""
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
