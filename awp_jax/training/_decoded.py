"""Batches of image files, decoded ahead of the step by threads or by processes."""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from awp_jax.data import DataError, DecodedRows
from awp_jax.extras import needed_by

# Images that a process decodes before it hands them over: the processes share each batch.
_PIECE = 16
_Crops = Callable[..., np.ndarray]


class DecodedBatches:
    """The images of one step after the other, of the rows that this process computes on.

    What is decoded is a function of the number of the batch and of the rows (see
    ``DecodedRows.crops``), so that there is no position to keep beside the step: a run that goes on
    asks for the same rows again.

    Args:
        images: Where they are decoded from.
        rows: By number of the batch, in their order, the rows to decode.
        workers: Processes that decode; 0 for threads of this one.
        seed: See ``DecodedRows.crops``.
        least: See ``DecodedRows.crops``.

    Raises:
        MissingExtraError: For workers without grain.
    """

    def __init__(
        self,
        images: DecodedRows,
        rows: dict[int, np.ndarray],
        workers: int,
        *,
        seed: int,
        least: float,
    ) -> None:
        self._rows, self._shape = rows, images.shape[1:]
        self._crops = functools.partial(images.crops, seed=seed, least=least)
        self._pieces: Any = None
        if workers:
            cuts = [
                (number, found[start : start + _PIECE])
                for number, found in rows.items()
                for start in range(0, len(found), _PIECE)
            ]
            self._pieces = _decoded_by(workers, self._crops, cuts)

    def __call__(self, number: int) -> np.ndarray:
        """uint8 ``[rows, height, width, 3]`` of a batch; with workers, batches come in their order.

        Raises:
            DataError: When a file is damaged or gone, or a worker process was killed.
        """
        rows = self._rows[number]
        if self._pieces is None:
            return self._crops(rows, number)
        found, done = np.empty((len(rows), *self._shape), np.uint8), 0
        while done < len(rows):
            piece = np.frombuffer(next(self._pieces), np.uint8).reshape(-1, *self._shape)
            found[done : done + len(piece)] = piece
            done += len(piece)
        return found

    def close(self) -> None:
        """Ends the processes."""
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None


def _decoded_by(
    workers: int, crops: _Crops, cuts: Sequence[tuple[int, np.ndarray]]
) -> Iterator[bytes]:
    with needed_by(f"data.workers {workers}"):
        import grain
        from absl import flags
    # Started by other commands than absl's, which read no flags; grain asks for one of its own.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    pieces = grain.MapDataset.source(cuts).map(functools.partial(_piece, crops))
    # One thread in each: there are as many processes as are to work.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    ahead = pieces.to_iter_dataset(options).mp_prefetch(processes, worker_init_fn=_begin)
    return _one_sentence(iter(ahead))


def _piece(crops: _Crops, cut: tuple[int, np.ndarray]) -> bytes:
    number, rows = cut
    # Not an array, which would come through shared memory: containers have little of it, and what
    # a killed process leaves there stays.
    return crops(rows, number, threads=1).tobytes()


def _one_sentence(pieces: Any) -> Iterator[bytes]:
    with contextlib.closing(pieces):
        try:
            yield from pieces
        except RuntimeError as error:  # killed, for memory say
            raise DataError(
                f"A process of data.workers has ended before its time: {str(error).split('.')[0]}."
            ) from None


def _begin(number: int, count: int) -> None:
    """What a worker process does first."""
    del number, count
    # A run that is told to stop saves itself after the step, for which it needs its workers.
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    # Killed at once, a run cannot end its workers, which would wait for it without end.
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
