"""How a call of ``train`` ends."""

from typing import Any, NamedTuple

from awp_jax.training._state import TrainState


class NonFiniteError(RuntimeError):
    """Loss, gradient or weights became NaN or infinite; earlier checkpoints are kept."""


class Outcome(NamedTuple):
    """How a call of ``train`` ended.

    Attributes:
        state: The last state.
        finished: Whether all epochs are done.
        preempted: Whether it was told to stop before that.
        best: ``{"step", "epoch", "selection", "robust_accuracy"}`` of the best checkpoint, or None.
    """

    state: TrainState
    finished: bool
    best: dict[str, Any] | None
    preempted: bool = False
