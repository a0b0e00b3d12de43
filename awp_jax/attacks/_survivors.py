"""Runs attacks on the examples that are still robust, in padded batches of a few fixed sizes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import parallel
from awp_jax.ascent import Watch, loop, watched
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._judging import batches, evaluate, inside, padded
from awp_jax.attacks._result import AttackResult, outcome
from awp_jax.attacks._stepped import SteppedAttack, advance, begin
from awp_jax.attacks._told import Account, Tell
from awp_jax.attacks._work import steps_of
from awp_jax.balls import InputBall
from awp_jax.random import fold_keys
from awp_jax.typing import Key, PyTree

# Steps of an attack from which a smaller batch is worth compiling its step twice: APGD-CE of
# AutoAttack has 100, the others 900 and more.
_LONG = 500


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

    They are rounded up to a multiple of the number of devices. Attacks of one's own get all three,
    stepped ones the first two, and begin in the first; the verdict knows the first alone.
    """
    sizes = {-(-batch_size // (share * multiple)) * multiple for share in (1, 3, 9)}
    return tuple(sorted(sizes, reverse=True))


def stepping_sizes(sizes: tuple[int, ...], steps: int, left: int, multiple: int) -> tuple[int, ...]:
    """The sizes that a step is compiled for: a second one where many steps gain by it.

    Where all that is left fits into one batch, the second is the least of a third, a half and two
    thirds that holds it: a third alone would let one example too many cost the whole batch.

    Args:
        sizes: See ``batch_sizes``.
        steps: Of all runs.
        left: Examples.
        multiple: The number of devices.
    """
    if steps < _LONG:
        return sizes[:1]
    held = [-(-sizes[0] * share // (6 * multiple)) * multiple for share in (2, 3, 4)]
    second = next((size for size in held if size >= left), min(held))
    return (sizes[0], second) if second < sizes[0] else sizes[:1]


@jax.jit
def _take(tree: PyTree, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def attack_survivors(
    attack: Callable[..., Any],
    function: Partial,
    keys: Key,
    place: int,
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
        place: Of the attack in its list, which is folded into the keys.
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
    if stepped:
        steps = attack.passes * len(runs)  # type: ignore[attr-defined]
        sizes = stepping_sizes(sizes, steps, int(robust.sum()), parallel.shards(function))
    else:
        keys = fold_keys(keys, place)
    known = True
    passes = attack.passes if stepped else steps_of(attack)  # type: ignore[attr-defined]
    account = Account(tell, passes, len(runs), sizes, int(robust.sum()))
    watch = None if tell is None else Watch(account.stepped)
    for number, (rank, restart) in enumerate(runs):
        parts = batches(np.flatnonzero(robust & ~found.success), sizes)
        # A stepped attack begins in the largest size, which is compiled in any case.
        rows_of = [padded(part, sizes[:1] if stepped else sizes) for part in parts]
        for count, (part, padding) in enumerate(zip(parts, rows_of, strict=True)):
            account.begin(number, len(padding), sum(map(len, rows_of[count + 1 :])))
            if stepped:
                run: Any = _Run(attack, function, keys, place, images, labels, sizes)
                results: Any = run.segments(part, padding, rank, restart, account, watch)
            else:
                data = _batch(function, keys, images, labels, padding)
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


@functools.partial(jax.jit, static_argnames="impl")
def _begin(
    attack: SteppedAttack,
    function: Partial,
    key_data: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    place: Any,
    rank: Any,
    restart: Any,
    *,
    impl: Any,
) -> Any:
    # Wrapped and folded here: outside, each would be a program of its own.
    keys = fold_keys(jax.random.wrap_key_data(key_data, impl=impl), place)
    return begin(attack, function, keys, images, labels, rank, restart)


class _Run(NamedTuple):
    """What the runs of a stepped attack share, see ``attack_survivors``."""

    attack: Any
    function: Partial
    keys: Key
    place: int
    images: np.ndarray
    labels: np.ndarray
    sizes: tuple[int, ...]

    def segments(
        self,
        rows: np.ndarray,
        padding: np.ndarray,
        rank: int,
        restart: int,
        account: Account,
        watch: Watch | None,
    ) -> Iterator[tuple[np.ndarray, AttackResult]]:
        """One run, cut into segments; between them finished examples leave the batch.

        Yields ``(rows, AttackResult)`` with one result for each of ``rows``.
        """
        attack, state = self._begun(padding, rank, restart)
        sizes, index = self.sizes, 0
        while True:
            # The device is waited for once in a segment, not in every step.
            alive = ~parallel.to_host(state.success)[: len(rows)]
            last = index >= attack.passes or not alive.any()
            account.reach(index, len(state.success), int((~alive).sum()))
            # Until they fit into a smaller compiled size, finished examples stay where they are.
            size = min(n for n in sizes if n >= alive.sum())
            if last or size < len(state.success):
                leaving = np.flatnonzero(np.ones(len(rows), bool) if last else ~alive)
                if len(leaving):
                    yield rows[leaving], self._judged(state, rows, leaving)
                if last:
                    return
                rows = rows[alive]
                state = _take(state, padded(np.flatnonzero(alive), sizes))
                # Radii, bounds and masks of single examples go along.
                attack = of_examples(self.attack, self.images, padded(rows, sizes))
            steps = min(attack.segment, attack.passes - index)
            body = Partial(advance, attack, self.function)
            with watched(watch):
                state = loop(body, state, steps, unroll=attack.unroll, first=index)
            index += steps

    def _begun(self, rows: np.ndarray, rank: int, restart: int) -> tuple[SteppedAttack, Any]:
        """The attack on a padded batch, and its first state."""
        attack = of_examples(self.attack, self.images, rows)
        # Cut out on the host, where indexing is no program.
        key_data = parallel.to_host(jax.random.key_data(self.keys))
        arrays = (key_data[rows], self.images[rows], self.labels[rows])
        arrays = parallel.follow(self.function, arrays)
        impl = jax.random.key_impl(self.keys)
        return attack, _begin(attack, self.function, *arrays, self.place, rank, restart, impl=impl)

    def _judged(self, state: Any, rows: np.ndarray, leaving: np.ndarray) -> AttackResult:
        """The results of those that leave: projected, and by a forward pass."""
        attack, size = self.attack, self.sizes[0]
        mask, first, second, steps = (
            parallel.to_host(part)[leaving] for part in (*attack.candidates(state), state.first)
        )
        mask = mask.reshape(mask.shape + (1,) * (first.ndim - 1))
        chosen = np.where(mask, first, second)
        # Before the verdict: what is judged is what is returned.
        images = inside(attack.ball, self.images, rows[leaving], chosen, size, exact=False)
        goal = attack.goal
        if goal.classifies and not goal.targeted:
            goal = Goal()  # whatever was ascended: one program judges all
        success, loss, _ = evaluate(
            self.function,
            goal,
            state.keys[leaving] if attack.eot else None,
            attack.passes + 1,
            images,
            self.labels[rows[leaving]],
            size,
        )
        return AttackResult(images, success, loss, steps)  # type: ignore[arg-type]


def _batch(
    function: Partial, keys: Key, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> Any:
    """Some of the examples, where the model is: among its devices."""
    arrays = (keys[rows], jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
    return parallel.follow(function, arrays)
