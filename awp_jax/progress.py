"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm

from awp_jax.parallel import is_main


class Progress:
    """A tqdm bar on a terminal, one line per report otherwise, on standard error.

    Args:
        total: Steps of the whole job.
        initial: Steps done before.
        unit: What a step is called.
        quiet: Whether to show nothing; of several processes only the first shows anything.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        unit: str = "step",
        quiet: bool = False,
    ):
        self._quiet = quiet = quiet or not is_main()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, unit=unit, file=sys.stderr)
        self._done: float = initial

    def advance(self, done: float, **values: Any) -> None:
        """Moves on to ``done`` steps and shows ``values`` beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix(
                {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in values.items()},
                refresh=False,
            )
            self._bar.update(done - self._done)
        self._done = done

    def line(self, text: str) -> None:
        """Prints a line, above the bar when there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class PartsProgress:
    """Progress over the parts of a long job, with the time left; plain lines where there is no bar.

    Args:
        total: Parts of the whole job.
        unit: What a part is called.
    """

    def __init__(self, total: int, unit: str = "part"):
        self._total, self._done, self._measured = total, 0, 0
        self._unit, self._began = unit, time.monotonic()
        self._bar = Progress(total, unit=unit)
        self._told = 0.0

    def done(self, what: str, parts: int = 1, *, measured: bool = True) -> None:
        """Moves on.

        Args:
            what: What has been done, for the person who waits.
            parts: How many parts it was.
            measured: False for what was read from disk, which says nothing about the time left.
        """
        self._done += parts
        self._measured += parts if measured else 0
        self._bar.advance(self._done, part=what)
        seconds = time.monotonic() - self._began
        # A log wants no line for every one of thousands of short parts.
        if sys.stderr.isatty() or (self._done < self._total and seconds - self._told < 10):
            return
        self._told = seconds
        rate = seconds / self._measured if self._measured else 0.0
        left = f", about {rate * (self._total - self._done):.0f} s left" if rate else ""
        self._bar.line(f"{what}: {self._done} of {self._total} {self._unit}s done{left}")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
