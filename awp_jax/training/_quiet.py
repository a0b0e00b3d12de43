"""Orbax without its log lines, and without what its failed tasks say afterwards."""

import asyncio
import contextlib
import functools
import logging
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

# "task: <Task pending name='Task-5' coro=<write() running at /.../serialization.py:193> ...>"
_COROUTINE = re.compile(r"coro=<.*? (?:running at|done, defined at|defined at) (.*?):\d+>")


class _Others(logging.Filter):
    """Lets records through that Orbax did not write."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _is_orbax(record.pathname)


class _OtherTasks(logging.Filter):
    """Lets records of asyncio through that are not about a task of Orbax's."""

    def filter(self, record: logging.LogRecord) -> bool:
        return _asked() or not _is_orbax(_origin(record))


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Drops what Orbax logs in this block, unless somebody asked for it.

    It warns of options that are meant as they are, and logs at length what it raises as well. A
    level of INFO or below for the logger ``absl`` (``absl.logging.set_verbosity``) asks for all of
    it. No level, handler or other logger is touched.
    """
    if _asked():
        yield
        return
    logger = logging.getLogger("absl")
    others = _Others()  # one for every block: blocks of several threads overlap
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


@functools.cache
def quiet_tasks() -> None:
    """From now on, drops what comes of Orbax's failed tasks after it has raised their error.

    Where a file cannot be written or is damaged, Orbax raises the first error and leaves other
    tasks behind. Python reports those when they are collected as garbage, which may be much later;
    TensorStore reports on threads of its own that their event loop is gone. What others' tasks
    leave is reported as ever, and all of it where somebody asked (see ``quiet_orbax``).
    """
    logging.getLogger("asyncio").addFilter(_OtherTasks())
    ordinary = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if _asked() or not (_is_late_call(unraisable) or _is_abandoned(unraisable)):
            ordinary(unraisable)

    sys.unraisablehook = hook


def _asked() -> bool:
    return logging.getLogger("absl").isEnabledFor(logging.INFO)


def _is_orbax(path: str) -> bool:
    return not {"orbax", "tensorstore"}.isdisjoint(pathlib.Path(path).parts)


def _origin(record: logging.LogRecord) -> str:
    """The file of the coroutine that a record of asyncio is about; empty where it says none."""
    found = _COROUTINE.search(record.getMessage())
    if found:
        return found[1]
    # A gathered future names no coroutine, but its error began in one: nothing of the caller's is
    # above it, since an event loop called it.
    where = record.exc_info[2] if record.exc_info else None
    return "" if where is None else where.tb_frame.f_code.co_filename


def _is_abandoned(unraisable: Any) -> bool:
    """Whether a coroutine of Orbax's, dropped half-way, failed as it was closed."""
    code = getattr(unraisable.object, "cr_code", None)
    return code is not None and _is_orbax(code.co_filename)


def _is_late_call(unraisable: Any) -> bool:
    """Whether a thread that is not Python's called a loop that is closed."""
    error, where = unraisable.exc_value, unraisable.exc_traceback
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
        return False
    # From Python there would be the frame of the caller before it.
    first = asyncio.BaseEventLoop.call_soon_threadsafe.__code__
    return unraisable.object is None and (where is None or where.tb_frame.f_code is first)
