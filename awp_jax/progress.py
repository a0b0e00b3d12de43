"""What a person sees while long work goes on: a bar, plain lines, or a function's doing."""

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from awp_jax import checks
from awp_jax.compilation import compile_seconds
from awp_jax.extras import needed_by
from awp_jax.parallel import is_main

# Seconds between two lines where there is no bar.
_EVERY = 10.0
# The share of the work, or the seconds of it, from which the rest can be told.
_ENOUGH = 0.02
_ENOUGH_SECONDS = 30.0


class Moment(NamedTuple):
    """Where long work stands.

    Attributes:
        what: What is being done, for a person.
        done: The share of all that is done, in [0, 1].
        seconds_left: How long the rest takes, or ``None`` where too little is done to tell.
        values: Numbers of the work itself, such as the loss.
    """

    what: str
    done: float
    seconds_left: float | None
    values: dict[str, float]

    def __str__(self) -> str:
        parts = [f"{self.what}: {self.done:.0%} done" if self.what else f"{self.done:.0%} done"]
        parts += [f"{name} {_short(value)}" for name, value in self.values.items()]
        parts += [f"about {_duration(self.seconds_left)} left"] if self.seconds_left else []
        return ", ".join(parts)


# How progress is shown: not at all, as lines on standard error, as a bar there, or by a function;
# "auto" is a bar on a terminal and lines elsewhere.
Show = str | Callable[[Moment], Any] | None


def check_show(show: Any) -> None:
    """Raises ``ValueError`` for anything but what ``Show`` says."""
    if show is not None and not callable(show):
        checks.choice(show, ("auto", "text", "bar"), "progress")


class Pace:
    """How long the rest of long work takes, by what was computed so far.

    Time in which JAX compiles says nothing about the rest, and does not count.

    Args:
        total: All that has to be computed, in any unit.
    """

    def __init__(self, total: float):
        self._total = total
        self._computed = 0.0
        self._first: tuple[float, float] | None = None
        compile_seconds()

    def advance(self, computed: float, spared: float = 0.0) -> None:
        """So much more was computed, and so much more of the total need not be."""
        self._total -= spared
        self._computed += computed
        # The first has waited for more than its own work: for data, for the device.
        if self._first is None and computed > 0:
            self._first = (_working_time(), self._computed)

    def seconds_left(self) -> float | None:
        """Seconds, or ``None`` where too little is done to tell."""
        if self._first is None:
            return None
        began, before = self._first
        computed, took = self._computed - before, max(_working_time() - began, 0.0)
        if computed <= _ENOUGH * self._total and (computed <= 0 or took < _ENOUGH_SECONDS):
            return None
        return took / computed * max(self._total - self._computed, 0.0)


def _working_time() -> float:
    return time.monotonic() - compile_seconds()


class Progress:
    """Progress of long work, with the time that is left.

    Args:
        total: All of the work, in any unit.
        initial: How much was done before.
        unit: What a unit is called, beside a bar.
        show: ``None``, ``"text"``, ``"bar"``, ``"auto"`` or a function that gets a ``Moment``; of
            several processes only the first shows anything.

    Raises:
        ValueError: For another ``show``.
        MissingExtraError: For ``"bar"`` where tqdm is not installed; ``"auto"`` then prints lines.
    """

    def __init__(
        self, total: float, initial: float = 0.0, *, unit: str = "step", show: Show = "auto"
    ):
        check_show(show)
        if show == "auto":
            bar = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
            show = "bar" if bar else "text"
        self._show: Show = show if is_main() else None
        self._total, self._done = total, initial
        self._pace = Pace(total - initial)  # of what takes time: not of what is found on disk
        self._said = time.monotonic()
        self._estimated = False
        self._text = ""
        self._bar: Any = None
        if self._show == "bar":
            with needed_by("progress='bar'"):
                from tqdm import tqdm  # only where there is a bar: attacks need no more than JAX

            self._bar = tqdm(total=total, initial=initial, unit=unit, file=sys.stderr)

    def advance(
        self,
        amount: float,
        what: str = "",
        *,
        kept: bool = False,
        spared: float = 0.0,
        say: bool = False,
        **values: Any,
    ) -> None:
        """So much more is done.

        Args:
            amount: Of the unit of ``total``.
            what: What is being done.
            kept: Whether it was found on disk, which says nothing about the time left.
            spared: How much more is done because it need not be, such as attacks on examples that
                are broken.
            say: Whether to print a line now, where lines are printed.
            values: Numbers of the work, such as the loss.
        """
        now = time.monotonic()
        self._done += amount + spared
        self._pace.advance(*((0.0, amount + spared) if kept else (amount, spared)))
        left = self._pace.seconds_left()
        # Rounding of many small amounts may add up to a little more than all.
        share = min(self._done / max(self._total, 1e-9), 1.0)
        moment = Moment(what, share, left, values)
        if callable(self._show):
            self._show(moment)
        elif self._bar is not None:
            shown = {name: _short(value) for name, value in values.items()}
            self._bar.set_postfix({"at": what, **shown} if what else shown, refresh=False)
            self._bar.update(amount + spared)
        elif self._is_news(moment) or say or now - self._said > _EVERY:
            self._said = now
            # The end of a batch, of an attack and of all may be one piece of news.
            if (text := str(moment)) != self._text:
                self._text = text
                self.line(text)

    def _is_news(self, moment: Moment) -> bool:
        """Whether it is the first that knows how long the rest takes, or the last."""
        first = moment.seconds_left is not None and not self._estimated
        self._estimated = self._estimated or first
        return first or moment.done >= 1 - 1e-9

    def line(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if callable(self._show):
            self._show(Moment(text, self._done / max(self._total, 1e-9), None, {}))
        elif self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._show is not None:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
