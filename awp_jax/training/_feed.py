"""Where the images of a step come from: the devices, or for large sets the host and its files."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from awp_jax import parallel


class Feed:
    """Hands the compiled step its images and labels.

    A pool of images up to ``data.device_megabytes`` lies whole on every device, and the step
    gathers its batch there. A larger one stays in the memory of the host, and extra images in their
    files: every process looks up what its own devices compute on, and nothing else, while the step
    before is still computed. The examples of a step are the same, and the numbers to rounding.

    One rule for both kinds of images: files that fit would gain nothing by being read row by row,
    and one key moves the border.

    Args:
        experiment: An ``Experiment``.
    """

    def __init__(self, experiment: Any) -> None:
        self._experiment = experiment
        self._rows: dict[int, Any] = {}
        self._next: tuple[int, Future[Any]] | None = None
        self._worker: ThreadPoolExecutor | None = None
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
        self._next = None
        if self._worker is not None:
            # For all steps at once: looked up one by one, each would wait for the step before it.
            chosen = [self._experiment.chosen(step, order) for step in steps]
            self._rows = dict(zip(steps, parallel.to_host(chosen), strict=True))

    def __call__(self, step: int) -> tuple[jax.Array, jax.Array]:
        """Images and labels that ``experiment.step`` takes for a step of this epoch."""
        if self._worker is None:
            return self._pool
        if self._next is not None and self._next[0] == step:
            batch = self._next[1].result()
        else:
            batch = self._batch(step)
        self._next = None
        if step + 1 in self._rows:
            # While the device computes this step; one thread, so at most one batch lies ready.
            self._next = (step + 1, self._worker.submit(self._batch, step + 1))
        return batch

    def close(self) -> None:
        """Ends the thread."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)

    def _batch(self, step: int) -> tuple[jax.Array, jax.Array]:
        rows, pool = self._rows[step], self._experiment.pool
        sharding = parallel.batch_sharding(self._experiment.mesh, len(rows))
        images, labels = pool.images, pool.labels
        shape = (len(rows), *images.shape[1:])
        return (
            parallel.place(sharding, shape, lambda part: images[rows[part]]),
            parallel.place(sharding, shape[:1], lambda part: labels[rows[part]].astype(np.int32)),
        )
