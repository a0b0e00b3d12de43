"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """A tqdm bar on a terminal, one line per report otherwise, on standard error.

    Args:
        total: Steps of the whole job.
        initial: Steps done before.
        unit: What a step is called.
        quiet: Whether to show nothing.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        unit: str = "step",
        quiet: bool = False,
    ):
        self._quiet = quiet
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
