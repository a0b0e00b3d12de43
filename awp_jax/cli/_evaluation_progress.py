"""What a person sees while an evaluation goes on."""

import sys
import time
from collections.abc import Mapping

from awp_jax.progress import Progress

# Without a terminal: a line now and then within a long attack.
_EVERY_SECONDS = 30.0
# The share of the work from which the rest can be told.
_ENOUGH = 0.02


class EvaluationProgress:
    """A bar with the time left over all attacks of all sets; plain lines where there is none.

    Attacks count by what they have to compute, not one each: AutoAttack is thousands of FGSMs.
    It grows faster than it says where examples break early.

    Args:
        work: By name of the attack, what it computes for one example.
        examples: By name of the set, how many.
        checkpoints: How many different ones.
    """

    def __init__(self, work: Mapping[str, float], examples: Mapping[str, int], checkpoints: int):
        self._work, self._examples = dict(work), dict(examples)
        self._total = checkpoints * sum(work.values()) * sum(examples.values())
        self._done = self._found = 0.0  # found: kept from a stopped evaluation, took no time
        self._attacks, self._all = 0, checkpoints * len(examples) * len(work)
        self._what, self._set, self._now = "", "", ""
        self._began = self._said = time.monotonic()
        self._bar = Progress(100, unit="%")

    def begin(self, checkpoint: str, part: str) -> None:
        """The next set of a checkpoint."""
        self._what, self._set, self._now = f"{checkpoint} {part}", part, ""

    def tell(self, name: str, share: float) -> None:
        """How much of an attack is done, in [0, 1]."""
        mine, now = self._work[name] * self._examples[self._set], time.monotonic()
        if self._now != name:
            self._now = name
            # What is there at once, or leaps over a stage, was kept.
            if (share == 1 and now - self._said < 0.2) or 0.25 <= share < 1:
                self._found += share * mine
        done = self._done + share * mine
        self._bar.advance(round(100 * done / self._total, 1), attack=f"{self._what} {name}")
        if share == 1:
            self._done, self._attacks = done, self._attacks + 1
        if not sys.stderr.isatty() and (share == 1 or now - self._said > _EVERY_SECONDS):
            part = "" if share == 1 else f" {share:.0%},"
            self._bar.line(
                f"{self._what} {name}:{part} {self._attacks} of {self._all} attacks done"
                f"{self._left(done, now)}"
            )
            self._said = now

    def _left(self, done: float, now: float) -> str:
        computed = done - self._found
        # The first few passes are nearly all compilation.
        if computed <= _ENOUGH * (self._total - self._found):
            return ""
        return f", about {(now - self._began) * (self._total - done) / computed:.0f} s left"

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
