"""What AutoAttack returns, and what it goes on from."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from awp_jax import results
from awp_jax.panels import accuracy_bars
from awp_jax.typing import Radius


class Row(NamedTuple):
    """One line of the table of results.

    Attributes:
        name: Of the attack; ``"clean"`` for the first line.
        accuracy: Share of examples still robust after it, in [0, 1].
        broke: How many examples it broke.
        median_steps: Over those, steps (APGD, FAB) or queries (Square) to the first success,
            counted over all targets and restarts; ``None`` where not known or none broke.
        seconds: Wall time, compilation included.
    """

    name: str
    accuracy: float
    broke: int
    median_steps: float | None
    seconds: float


@dataclasses.dataclass(frozen=True, repr=False)
class AutoAttackState:
    """Everything that has to be saved to go on after any attack: NumPy arrays and plain values.

    Attributes:
        images: float ``[examples, ...]``: adversarial where one was found, else clean.
        robust: bool ``[examples]``: not broken so far.
        rows: One ``Row`` per finished attack, the clean accuracy first.
        broken_by: As in ``AutoAttackResult``, so far; ``None``, as the next two, in a state that
            was saved without them: then the result has none either.
        loss: As in ``AutoAttackResult``.
        prediction: As in ``AutoAttackResult``.
    """

    images: np.ndarray
    robust: np.ndarray
    rows: tuple[Row, ...]
    broken_by: np.ndarray | None = None
    loss: np.ndarray | None = None
    prediction: np.ndarray | None = None

    @property
    def finished(self) -> int:
        """Number of finished attacks."""
        return len(self.rows) - 1

    def __repr__(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return results.described("AutoAttackState", fields)


class AutoAttackResult(NamedTuple):
    """The outcome of an ensemble.

    Attributes:
        images: float ``[examples, ...]``: inside the ball and its bounds; adversarial where found.
        robust: bool ``[examples]``: by a last forward pass on ``images``.
        clean_accuracy: In [0, 1].
        accuracy: Robust accuracy in [0, 1].
        rows: A ``Row`` per attack, ``"clean"`` first.
        norm: Of the ball; ``None`` for a ball of one's own, as the next.
        epsilon: Its exact radius in the units of the images; an array for several.
        left_out: ``(name, reason)`` of attacks that are not defined for these images or classes.
        broken_by: int32 ``[examples]``: which row of ``rows`` broke it, so 0 where the clean image
            is misclassified, 1 for the first attack; -1 where none did. ``names`` has their names.
        loss: float64 ``[examples]``: cross-entropy of ``images`` by that last pass, in nats: where
            an attack broke it, the loss at which it did.
        prediction: int32 ``[examples]``: the class that the model says of ``images``.
    """

    images: np.ndarray
    robust: np.ndarray
    clean_accuracy: float
    accuracy: float
    rows: tuple[Row, ...]
    norm: str | None
    epsilon: Radius
    left_out: tuple[tuple[str, str], ...] = ()
    broken_by: np.ndarray | None = None
    loss: np.ndarray | None = None
    prediction: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the attacks in the order in which they ran, ``"clean"`` first."""
        return tuple(row.name for row in self.rows)

    def __repr__(self) -> str:
        try:
            rows = [
                f"  {row.name}: {row.accuracy:.2%} left, {row.broke} broken, {row.seconds:.1f} s"
                for row in self.rows
            ]
            head = (
                f"AutoAttackResult({self.accuracy:.2%} robust, {self.clean_accuracy:.2%} clean; "
                f"{len(self.robust)} examples, {self.norm} epsilon {results.short(self.epsilon)})"
            )
            arrays = [
                f"  {name}: {results.short(getattr(self, name))}"
                for name in ("images", "robust", "broken_by", "loss", "prediction")
                if getattr(self, name) is not None
            ]
            text = "\n".join([head, *rows, *arrays])
        except Exception:  # as a pytree it may hold anything
            return results.described("AutoAttackResult", self._asdict())
        return results.cut(text)

    def save(self, path: Any) -> None:
        """Writes an ``.npz`` file: every attribute that is an array or a number, and in ``json``
        the others as text.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the accuracy that is left after each attack.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        left = {row.name: row.accuracy for row in self.rows}
        accuracy_bars(axes, left, "accuracy left (%)")
        axes.set_title(f"AutoAttack, {self.norm} epsilon {results.short(self.epsilon)}")
        return axes
