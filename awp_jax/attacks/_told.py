"""What AutoAttack says while it runs: how far it is, what is left, and for how long."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from awp_jax import progress
from awp_jax.attacks._work import passes_per_step, steps_of

# Called with what is spent and what is left of one attack, in steps of one example, and with how
# many examples are still robust.
Tell = Callable[[float, float, int], Any]


class Progress(NamedTuple):
    """Where AutoAttack stands.

    Attributes:
        attack: Name of the attack.
        done: Share of this attack that is done, in [0, 1]; it jumps ahead when examples break.
        robust: Number of examples still robust.
        examples: Number of examples.
        share: Of all attacks together, in [0, 1]; what is not to be computed as examples are
            broken, or was found in ``state``, counts as done.
        computed: The part of ``share`` that was computed, and took time.
        seconds: Since the call.
        seconds_left: How long the rest takes, compilation left out; ``None`` where too little is
            done to tell.
    """

    attack: str
    done: float
    robust: int
    examples: int
    share: float = 0.0
    computed: float = 0.0
    seconds: float = 0.0
    seconds_left: float | None = None

    def __str__(self) -> str:
        return (
            f"{self.attack} {self.done:.0%}, {self.robust} of {self.examples} images left, robust "
            f"accuracy {self.robust / max(self.examples, 1):.2%} so far, {self.seconds:.0f} s"
        )


def padded_count(rows: int, sizes: tuple[int, ...]) -> int:
    """How many examples are computed where ``rows`` are left, padding included.

    Args:
        rows: Examples.
        sizes: That are compiled, largest first; see ``batch_sizes``.
    """
    full, rest = divmod(rows, sizes[0])
    return full * sizes[0] + (min(n for n in sizes if n >= rest) if rest else 0)


class Account:
    """What of one attack is spent and left, in steps of one example, padding included.

    Args:
        tell: Called when that changes; ``None``: nobody is.
        passes: Steps of one run.
        runs: How many runs.
        sizes: Of batches.
        robust: Examples that are attacked.
    """

    def __init__(
        self, tell: Tell | None, passes: int, runs: int, sizes: tuple[int, ...], robust: int
    ) -> None:
        self._tell, self._passes, self._runs, self._sizes = tell, passes, runs, sizes
        self._robust = robust  # with those that are broken, and not yet taken out
        self._spent = 0.0
        self._run = self._size = self._later = self._index = self._broken = 0

    def begin(self, run: int, size: int, later: int) -> None:
        """A batch of so many begins; after it so many follow in this run."""
        self._run, self._size, self._later, self._index, self._broken = run, size, later, 0, 0

    def stepped(self, steps: int) -> None:
        """So many more steps of the batch are done."""
        # An attack of one's own may take more steps than it says.
        steps = min(steps, self._passes - self._index)
        self._spent += steps * self._size
        self._index += steps
        self._say()

    def reach(self, index: int, size: int, broken: int) -> None:
        """The batch has come to step ``index``; so many of it are broken and not yet taken out."""
        self._spent += (index - self._index) * self._size
        self._index, self._size, self._broken = index, size, broken
        self._say()

    def leave(self, robust: int) -> None:
        """Broken examples were taken out; so many are left."""
        self._robust, self._broken = robust, 0

    def end(self) -> None:
        """The batch is done, whatever steps it had left."""
        self._index, self._broken = self._passes, 0
        self._say()

    def finish(self) -> None:
        """The attack is done."""
        self._run, self._later, self._size = self._runs - 1, 0, 0
        self._say()

    def _say(self) -> None:
        if self._tell is None:
            return
        robust = self._robust - self._broken
        left = self._passes * (
            self._later + (self._runs - 1 - self._run) * padded_count(robust, self._sizes)
        )
        self._tell(self._spent, left + (self._passes - self._index) * self._size, robust)


class Teller:
    """Tells of an ensemble, attack by attack.

    Args:
        show: As in ``autoattack``.
        plan: From ``ensemble``.
        classes: Number of classes.
        examples: Number of examples.
        sizes: Of batches.
        finished: Robust examples before each of the attacks that are done already, and now.
    """

    def __init__(
        self,
        show: Any,
        plan: Sequence[tuple[str, Callable[..., Any]]],
        classes: int,
        examples: int,
        sizes: tuple[int, ...],
        finished: Sequence[int],
    ) -> None:
        self._names = [name for name, _ in plan]
        self._costs = [passes_per_step(attack, classes) for _, attack in plan]
        self._steps = [steps_of(attack, classes) for _, attack in plan]
        self._examples, self._sizes = examples, sizes
        self._total = max(self._ahead(0, examples), 1.0)
        self._began = time.monotonic()
        self._computed = self._share = self._done = 0.0
        self._stage = len(finished) - 1
        self._show: Callable[[Progress], Any] | None = show if callable(show) else None
        self._lines: progress.Progress | None = None
        if not callable(show):
            self._lines = progress.Progress(self._total, unit="pass", show=show)
        self._pace = progress.Pace(self._total)
        self._robust = finished[-1]
        if self._stage:  # what is done costs no time, nor what fewer examples are spared
            self._move(self._ahead(self._stage, self._robust), 0.0)

    def _ahead(self, stage: int, robust: int) -> float:
        """The work of the attacks from ``stage`` on."""
        rows = padded_count(robust, self._sizes)
        return rows * sum(
            c * n for c, n in zip(self._costs[stage:], self._steps[stage:], strict=True)
        )

    def _move(self, remaining: float, computed: float) -> float:
        """What is spared besides what was computed."""
        share = max(1.0 - remaining / self._total, self._share)
        gained = (share - self._share) * self._total
        # The share never goes back: where more was computed than it grew by, nothing was spared.
        spared = gained - computed
        self._share = share
        self._computed += min(computed, gained) / self._total
        self._pace.advance(min(computed, gained), max(spared, 0.0))
        return max(spared, 0.0)

    def stage(self, number: int) -> Tell:
        """What ``attack_survivors`` calls while the attack of that number runs."""
        self._stage, self._done, before = number, 0.0, 0.0
        cost = self._costs[number]

        def tell(spent: float, left: float, robust: int) -> None:
            nonlocal before
            computed, before = (spent - before) * cost, spent
            self._robust = robust
            self._done = max(self._done, spent / (spent + left) if left else 1.0)
            spared = self._move(cost * left + self._ahead(number + 1, robust), computed)
            self._say(computed, spared)

        return tell

    def _say(self, computed: float, spared: float, say: bool = False) -> None:
        seconds = time.monotonic() - self._began
        now = Progress(
            self._names[self._stage],
            self._done,
            self._robust,
            self._examples,
            self._share,
            self._computed,
            seconds,
            self._pace.seconds_left(),
        )
        if self._show is not None:
            self._show(now)
        elif self._lines is not None:
            self._lines.advance(computed, f"autoattack {now}", spared=spared, say=say)

    def end(self, robust: int) -> None:
        """An attack is done, and its images were judged anew."""
        self._robust, self._done = robust, 1.0
        self._say(0.0, self._move(self._ahead(self._stage + 1, robust), 0.0), say=True)

    def close(self) -> None:
        """Leaves a bar as it stands."""
        if self._lines is not None:
            self._lines.close()


def robust_counts(rows: Sequence[Any], robust: np.ndarray) -> list[int]:
    """Robust examples before each finished attack, by the rows of a state, and now."""
    counts = [round(row.accuracy * len(robust)) for row in rows[:-1]]
    return [*counts, int(robust.sum())]
