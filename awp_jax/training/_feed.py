"""Where the images of a step come from: the devices, or for large sets the host and its files."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from awp_jax import parallel
from awp_jax.training._decoded import DecodedBatches
from awp_jax.training._own_batches import OwnBatches


class Feed:
    """Hands the compiled step its images and labels.

    A pool of images up to ``data.device_megabytes`` lies whole on every device, and the step
    gathers its batch there. A larger one stays in the memory of the host, and extra images in their
    files: every process looks up what its own devices compute on, and nothing else, while the step
    before is still computed. The examples of a step are the same, and the numbers to rounding.

    Image files of any size are decoded row by row in the same way, see ``DecodedBatches``.

    One rule for both kinds of images: files that fit would gain nothing by being read row by row,
    and one key moves the border.

    Args:
        experiment: An ``Experiment``.
        own: A user's own batches in place of all these, where ``experiment.streamed``.
    """

    def __init__(self, experiment: Any, own: OwnBatches | None = None) -> None:
        self._experiment, self._own = experiment, own
        self._rows: dict[int, Any] = {}
        # Batches by their number: made ahead, as many as one call takes, and the one in use.
        self._next: dict[int, Future[Any]] = {}
        self._now: tuple[int, Any] = (-1, None)
        self._worker: ThreadPoolExecutor | None = None
        self._decoded: DecodedBatches | None = None
        if experiment.on_host:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        else:
            self._pool = experiment.on_devices()

    def begin(self, steps: range, order: jax.Array) -> None:
        """An epoch begins, or goes on: looks up which examples its steps take.

        Args:
            steps: Those of the epoch that are left.
            order: The order of its examples.
        """
        # What was fetched ahead belongs to the order before.
        self._forget()
        if self._worker is not None:
            # For all steps at once: looked up one by one, each would wait for the step before it.
            of_each = {self._experiment.batch_of(step): step for step in steps}
            chosen = [self._experiment.chosen(step, order) for step in of_each.values()]
            self._rows = dict(zip(of_each, parallel.to_host(chosen), strict=True))
            if self._experiment.decoded and self._own is None:
                d = self._experiment.config.data
                mine = {number: rows[self._mine(rows)] for number, rows in self._rows.items()}
                self._decoded = DecodedBatches(
                    self._experiment.pool.images,
                    mine,
                    d.workers,
                    seed=self._experiment.config.seed,
                    least=d.resized_crop,
                )

    def __call__(self, step: int) -> tuple[jax.Array, jax.Array]:
        """Images and labels that ``experiment.step`` takes for a step of this epoch."""
        if self._worker is None:
            return self._pool
        number = self._experiment.batch_of(step)
        if number != self._now[0]:  # else it is replayed
            ahead = self._next.pop(number, None)
            self._now = number, self._batch(number) if ahead is None else ahead.result()
        # While the device computes; in their order, as there is one thread.
        for later in range(number + 1, number + 1 + self._experiment.steps_per_call):
            if later in self._rows and later not in self._next:
                self._next[later] = self._worker.submit(self._batch, later)
        batch: tuple[jax.Array, jax.Array] = self._now[1]
        return batch

    def several(self, steps: range) -> tuple[Any, Any]:
        """The same for ``experiment.steps``."""
        if self._worker is None:
            return self._pool
        images, labels = zip(*map(self, steps), strict=True)
        return images, labels

    def close(self) -> None:
        """Ends the thread, and the processes that decode."""
        self._forget()
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)

    def _forget(self) -> None:
        for made in self._next.values():
            made.cancel()
        wait(self._next.values())
        self._next, self._now = {}, (-1, None)
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None

    def _mine(self, rows: np.ndarray) -> np.ndarray:
        """Places in a batch, in their order, that the devices of this process compute on."""
        sharding = parallel.batch_sharding(self._experiment.mesh, len(rows))
        found = np.zeros(len(rows), bool)
        for index in sharding.addressable_devices_indices_map(rows.shape).values():
            found[index or slice(None)] = True
        return np.flatnonzero(found)

    def _batch(self, number: int) -> tuple[jax.Array, jax.Array]:
        if self._own is not None:
            sharding = parallel.batch_sharding(self._experiment.mesh, len(self._rows[number]))
            return tuple(
                jax.make_array_from_process_local_data(sharding, part) for part in self._own(number)
            )
        rows, pool = self._rows[number], self._experiment.pool
        sharding = parallel.batch_sharding(self._experiment.mesh, len(rows))
        images, labels = pool.images, pool.labels
        shape = (len(rows), *images.shape[1:])
        if self._decoded is None:
            looked_up = lambda part: images[rows[part]]  # noqa: E731
        else:
            decoded, mine = self._decoded(number), self._mine(rows)
            places = np.arange(len(rows))
            looked_up = lambda part: decoded[np.searchsorted(mine, places[part])]  # noqa: E731
        return (
            parallel.place(sharding, shape, looked_up),
            parallel.place(sharding, shape[:1], lambda part: labels[rows[part]].astype(np.int32)),
        )
