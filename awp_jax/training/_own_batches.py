"""Batches of a user's own: any iterator of dicts, such as a loader of grain."""

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from awp_jax.data import DataError, Dataset

_KEPT = 2  # positions: of the batch that is computed on, and the next; more are fetched ahead


class OwnBatches:
    """What an iterator yields, checked, and where it stands after each batch.

    Args:
        batches: Yields dicts of ``"image"``, uint8 in 0..255 or float32 in [0, 1] ``[batch, height,
            width, channels]``, and ``"label"``, integers ``[batch]``. Where it has ``get_state``
            and ``set_state``, as iterators of grain do, its position is kept in checkpoints.
        experiment: An ``Experiment``.

    Raises:
        ValueError: For what cannot be iterated over.
    """

    def __init__(self, batches: Iterable[Any], experiment: Any) -> None:
        try:
            self._iterator: Any = iter(batches)
        except TypeError:
            raise ValueError(
                f"batches is a {type(batches).__name__}, but an iterator of dicts with 'image' and "
                "'label' was expected."
            ) from None
        self._experiment = experiment
        # Of several processes each has an iterator of its own, but one writes what is kept.
        names = ("get_state", "set_state")
        resumable = all(hasattr(self._iterator, name) for name in names)
        self._has_state = resumable and jax.process_count() == 1
        self._states: dict[int, Any] = {}

    def go_to(self, step: int, state: Any) -> None:
        """Goes to the batch of a step: by the state that was kept, or past all before it.

        Raises:
            DataError: When there are fewer.
        """
        if self._has_state and state is not None:
            self._iterator.set_state(_decoded(state))
            self._states = {step: state}
            return
        for passed in range(step):
            self._next(passed)
        self._keep(step)

    def state(self, step: int) -> Any:
        """Where the iterator stands before a step, in plain values; ``None`` where unknown."""
        return self._states.get(step)

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Images, and labels as int32, of a step; steps come in their order.

        Raises:
            DataError: When there is none, or it is not what it should be.
        """
        train, where = self._experiment.splits.train, f"The batch of step {step + 1}"
        batch = self._next(step)
        self._keep(step + 1)
        if not isinstance(batch, dict) or not {"image", "label"} <= set(batch):
            found = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
            raise DataError(f"{where} is {found}, but a dict of 'image' and 'label' was expected.")
        images, labels = np.asarray(batch["image"]), np.asarray(batch["label"])
        count = self._experiment.config.batch_size // jax.process_count()
        expected = (count, *train.images.shape[1:])
        if images.shape != expected or images.dtype != train.images.dtype:
            raise DataError(
                f"{where} has {images.dtype} images of shape {images.shape}, but "
                f"{train.images.dtype} of shape {expected} were expected."
            )
        checked = Dataset(images, labels, train.num_classes, where)
        return checked.images, checked.labels

    def _next(self, step: int) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            raise DataError(
                f"The batches ended after {step}, but the run has {self._experiment.total_steps} "
                "steps: repeat them without end."
            ) from None

    def _keep(self, step: int) -> None:
        if self._has_state:
            self._states[step] = _encoded(self._iterator.get_state())
            self._states.pop(step - _KEPT - self._experiment.steps_per_call, None)


def go_on(own: OwnBatches | None, step: int, info: Mapping[str, Any], workdir: Path) -> None:
    """Goes to the batch with which a run goes on.

    Args:
        own: The batches that are given now, or ``None``.
        step: Those that are done.
        info: What lies in the checkpoint.
        workdir: The run.

    Raises:
        ValueError: When the run was trained on other batches until now.
    """
    if step and ("batches" in info) != (own is not None):
        before, now = ("given batches", "none are given")
        if own is not None:
            before, now = ("the training set of its config", "batches are given")
        raise ValueError(f"{workdir} was trained on {before} until step {step}, but now {now}.")
    if own is not None:
        own.go_to(step, info.get("batches"))


def _encoded(state: Any) -> Any:
    """A position as plain values for JSON: dicts of grain's datasets, bytes of its loaders."""
    if isinstance(state, bytes):
        return {"base64": base64.b64encode(state).decode()}
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError):
        raise ValueError(
            f"get_state() of the batches gave {str(state)[:80]!r}, but bytes or plain values were "
            "expected."
        ) from None


def _decoded(state: Any) -> Any:
    if isinstance(state, dict) and set(state) == {"base64"}:
        return base64.b64decode(state["base64"])
    return state
