"""Orbax without its log lines, while this library calls it."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator


class _Others(logging.Filter):
    """Lets records through that Orbax did not write."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in pathlib.Path(record.pathname).parts


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Drops what Orbax logs in this block, unless somebody asked for it.

    It warns of options that are meant as they are, and logs at length what it raises as well. A
    level of INFO or below for the logger ``absl`` (``absl.logging.set_verbosity``) asks for all of
    it. No level, handler or other logger is touched.
    """
    logger = logging.getLogger("absl")
    if logger.isEnabledFor(logging.INFO):
        yield
        return
    others = _Others()  # one for every block: blocks of several threads overlap
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
