"""Runs attacks on the examples that are still robust, in padded batches of a few fixed sizes."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import parallel
from awp_jax.ascent import Watch, loop, watched
from awp_jax.attacks._result import AttackResult, outcome
from awp_jax.attacks._stepped import SteppedAttack, advance, begin, finish, judged
from awp_jax.attacks._told import Account, Tell
from awp_jax.attacks._work import steps_of
from awp_jax.balls import InputBall
from awp_jax.random import fold_keys
from awp_jax.typing import Key, PyTree


class Found(NamedTuple):
    """What one attack did to all examples (NumPy arrays, ``[examples]``).

    Attributes:
        images: Adversarial where found, else as they were.
        success: Which it broke.
        steps: Steps or queries to the first success, 0 elsewhere; ``None`` when not known.
    """

    images: np.ndarray
    success: np.ndarray
    steps: np.ndarray | None


def batch_sizes(batch_size: int, multiple: int = 1) -> tuple[int, ...]:
    """The only sizes that are ever compiled: the full one, a third and a ninth, largest first.

    They are rounded up to a multiple of the number of devices.
    """
    sizes = {-(-batch_size // (share * multiple)) * multiple for share in (1, 3, 9)}
    return tuple(sorted(sizes, reverse=True))


def padded(rows: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Repeats the first of ``rows`` until the smallest of ``sizes`` that fits is full."""
    # With an example and not with zeros: it is one that model and ball are known to take.
    size = min(n for n in sizes if n >= len(rows))
    return np.concatenate([rows, np.full(size - len(rows), rows[0])]).astype(int)


def batches(rows: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Cuts ``rows`` into batches of the largest size; the last may be shorter (pad it)."""
    return [rows[first : first + sizes[0]] for first in range(0, len(rows), sizes[0])]


@jax.jit
def _take(tree: PyTree, rows: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def attack_survivors(
    attack: Callable[..., Any],
    function: Partial,
    keys: Key,
    images: np.ndarray,
    labels: np.ndarray,
    robust: np.ndarray,
    *,
    classes: int,
    batch_size: int,
    tell: Tell | None = None,
) -> Found:
    """Attacks the examples in ``robust``; what breaks goes on to no further target or restart.

    Args:
        attack: A ``SteppedAttack``, which is stopped early, or any
            ``(logits_fn, key, images, labels) -> AttackResult``.
        function: The model.
        keys: One typed key per example, ``[examples]``.
        images: Clean images ``[examples, ...]``.
        labels: ``[examples]``.
        robust: bool ``[examples]``.
        classes: Number of classes.
        batch_size: Largest number of examples per step.
        tell: See ``Account``; ``None`` to tell nobody.

    Returns:
        A ``Found``.
    """
    sizes = batch_sizes(min(batch_size, len(labels)), parallel.shards(function))
    found = Found(images.copy(), np.zeros(len(labels), bool), np.zeros(len(labels), int))
    stepped = isinstance(attack, SteppedAttack)
    runs = attack.runs(classes) if stepped else [(0, 0)]  # type: ignore[attr-defined]
    known = True
    passes = attack.passes if stepped else steps_of(attack)  # type: ignore[attr-defined]
    account = Account(tell, passes, len(runs), sizes, int(robust.sum()))
    watch = None if tell is None else Watch(account.stepped)
    for number, (rank, restart) in enumerate(runs):
        parts = batches(np.flatnonzero(robust & ~found.success), sizes)
        rows_of = [padded(part, sizes) for part in parts]
        for count, (part, padding) in enumerate(zip(parts, rows_of, strict=True)):
            account.begin(number, len(padding), sum(map(len, rows_of[count + 1 :])))
            data = _batch(function, keys, images, labels, padding)
            if stepped:
                cut = Partial(of_examples, attack, images)
                run = (function, data, part, rank, restart, sizes)
                results: Any = _segments(cut, *run, account, watch)
            else:
                one = of_examples(attack, images, padding)
                with watched(watch):
                    results = [(part, outcome(one(function, *data), attack))]
                account.stepped(passes)
            before = number * attack.passes if stepped else 0  # type: ignore[attr-defined]
            for which, result in results:
                # The call comes first: behind `and` it would be left out.
                known = _record(found, which, result, before) and known
                account.leave(int(robust.sum() - found.success.sum()))
            account.end()
    account.finish()
    return found if known else found._replace(steps=None)


def _record(found: Found, rows: np.ndarray, result: AttackResult, steps_before: int) -> bool:
    """Writes the successes among the first ``len(rows)`` results; whether steps are known."""
    result = parallel.to_host(result)
    success = result.success[: len(rows)]
    broken = rows[success]
    found.images[broken] = result.images[: len(rows)][success]
    found.success[broken] = True
    if result.steps is None:
        return False
    assert found.steps is not None
    found.steps[broken] = steps_before + result.steps[: len(rows)][success]
    return True


def of_examples(attack: Any, images: np.ndarray, rows: np.ndarray) -> Any:
    """The attack on some of the examples, where its ball has numbers for each of them."""
    ball = getattr(attack, "ball", None)
    if not (isinstance(ball, InputBall) and dataclasses.is_dataclass(attack)):
        return attack
    own = ball.examples(images, rows)
    return attack if own is ball else dataclasses.replace(attack, ball=own)  # type: ignore[type-var]


def _segments(
    cut: Callable[..., Any],
    function: Partial,
    data: tuple[Any, ...],
    rows: np.ndarray,
    rank: int,
    restart: int,
    sizes: tuple[int, ...],
    account: Account,
    watch: Watch | None,
) -> Iterator[tuple[np.ndarray, AttackResult]]:
    """One run, cut into segments; between them finished examples leave the batch.

    Yields ``(rows, AttackResult)`` with one result for each of ``rows``.
    """
    attack = cut(padded(rows, sizes))
    state = begin(attack, function, *data, rank, restart)
    body, index = Partial(advance, attack, function), 0
    while True:
        # The device is waited for once in a segment, not in every step.
        alive = ~parallel.to_host(state.success)[: len(rows)]
        last = index >= attack.passes or not alive.any()
        account.reach(index, len(state.success), int((~alive).sum()))
        # Until they fit into a smaller compiled size, finished examples stay where they are.
        size = min(n for n in sizes if n >= alive.sum())
        if last or size < len(state.success):
            leaving = np.ones(len(rows), bool) if last else ~alive
            # All are judged, in the size that is compiled already, and those that leave are kept.
            verdict = parallel.to_host(finish(attack, function, state).result)
            yield (
                rows[leaving],
                AttackResult(*(v[: len(rows)][leaving] for v in verdict)),
            )
            if last:
                return
            rows = rows[alive]
            state = _take(state, jnp.asarray(padded(np.flatnonzero(alive), sizes)))
            # Radii, bounds and masks of single examples go along.
            attack = cut(padded(rows, sizes))
            body = Partial(advance, attack, function)
        steps = min(attack.segment, attack.passes - index)
        with watched(watch):
            state = loop(body, state, steps, unroll=attack.unroll, first=index)
        index += steps


def _batch(
    function: Partial, keys: Key, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> Any:
    """Some of the examples, where the model is: among its devices."""
    arrays = (keys[rows], jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
    return parallel.follow(function, arrays)


def evaluate(
    function: Partial,
    attack: SteppedAttack,
    keys: Key,
    images: np.ndarray,
    labels: np.ndarray,
    sizes: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdict on all images in padded batches: ``(success, loss, said)`` as NumPy arrays."""
    success, loss = np.zeros(len(labels), bool), np.zeros(len(labels), np.float64)
    said = np.zeros(len(labels), np.int32)
    for part in batches(np.arange(len(labels)), sizes):
        rows = padded(part, sizes)
        data = _batch(function, keys, images, labels, rows)
        found = judged(attack, function, *data)
        verdict, classes = parallel.to_host((found.result, found.said))
        success[part] = verdict.success[: len(part)]
        loss[part] = verdict.loss[: len(part)]
        said[part] = classes[: len(part)]
    return success, loss, said


def attack_keys(keys: Key, number: int) -> jax.Array:
    """Keys of the attack of that number in a list, ``[examples]``."""
    return fold_keys(keys, number)
