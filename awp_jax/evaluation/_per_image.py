"""What happened to each image of an evaluation, and which attack broke it first."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from awp_jax import checks, results
from awp_jax.evaluation._outcomes import Outcome
from awp_jax.files import read_arrays
from awp_jax.panels import bars


class PerImage(NamedTuple):
    """Each image of an evaluation: label, predictions, and which attack broke it first.

    Attributes:
        labels: int32 ``[examples]``.
        clean_prediction: int32 ``[examples]``: the class that the model says of the clean image.
        clean_loss: float32 ``[examples]``: its cross-entropy in nats.
        attacks: str ``[attacks]``: their names, in the order in which they ran.
        stages: str ``[stages]``: ``"clean"``, then all that can break an image: the attacks, and in
            place of AutoAttack its own attacks, ``"autoattack/apgd-ce"``.
        prediction: int32 ``[attacks, examples]``: the class under each attack; of a randomised
            model that of most passes.
        success: bool ``[attacks, examples]``: misclassified under the attack.
        error: float32 ``[attacks, examples]``: 0 or 1 as ``success``; of a randomised model the
            share of passes that misclassify, in [0, 1]. ``1 - error`` averages to the accuracy in
            ``evaluation.json``.
        loss: float32 ``[attacks, examples]``: the highest cross-entropy over restarts in nats; of
            AutoAttack that of the image it found, or else of the clean one.
        stage: int32 ``[attacks, examples]``: by which of ``stages`` the attack broke the image, -1
            where it did not.
        broken_by: int32 ``[examples]``: which of ``stages`` broke the image first: 0 where the
            clean image is misclassified, -1 where nothing did.
        broken_loss: float32 ``[examples]``: the loss under that attack (of ``broken_by`` 0 the
            clean loss), NaN where nothing broke it.
    """

    labels: np.ndarray
    clean_prediction: np.ndarray
    clean_loss: np.ndarray
    attacks: np.ndarray
    stages: np.ndarray
    prediction: np.ndarray
    success: np.ndarray
    error: np.ndarray
    loss: np.ndarray
    stage: np.ndarray
    broken_by: np.ndarray
    broken_loss: np.ndarray

    def accuracy(self, attack: str | None = None) -> float:
        """Accuracy under an attack, or under all together, in [0, 1].

        Raises:
            ValueError: For an attack that is not there.
        """
        if attack is None:
            return float(np.mean(self.broken_by < 0))
        names = self.attacks.tolist()
        checks.choice(attack, names, "attack")
        return float(np.mean(1 - self.error[names.index(attack)].astype(np.float64)))

    def names(self) -> list[str | None]:
        """For each image the name of what broke it first, ``None`` where nothing did."""
        return [None if by < 0 else str(self.stages[by]) for by in self.broken_by]

    def counts(self) -> dict[str, int]:
        """How many images each of ``stages`` broke first, and ``"robust"``."""
        found = {str(n): int(np.sum(self.broken_by == i)) for i, n in enumerate(self.stages)}
        return {**found, "robust": int(np.sum(self.broken_by < 0))}

    def __repr__(self) -> str:
        lines = [f"PerImage({len(self.labels)} images, {self.accuracy():.2%} robust), broken by"]
        lines += [f"  {name}: {count}" for name, count in self.counts().items()]
        return results.cut("\n".join(lines), "found.counts()")

    def save(self, path: Any) -> None:
        """Writes the arrays by their names, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws how many images each attack broke first.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        counts = self.counts()
        bars(axes, {"": list(counts.values())}, list(counts), "images", "{:d}")
        return axes


def per_image(outcomes: Mapping[str, Outcome], labels: Any) -> PerImage:
    """See ``PerImage``.

    Args:
        outcomes: By name of the attack, ``"clean"`` among them.
        labels: int ``[examples]``.

    Raises:
        ValueError: For another number of labels.
    """
    clean = outcomes["clean"]
    labels = np.asarray(labels)
    if labels.shape != clean.success.shape:
        raise ValueError(
            f"labels have shape {labels.shape}, but {clean.success.shape} was expected: those of "
            "the evaluation."
        )
    attacked = {name: found for name, found in outcomes.items() if name != "clean"}
    stages, rows = ["clean"], []
    for name, found in attacked.items():
        first = len(stages)
        if found.stage is None:
            stages.append(name)
            rows.append(np.where(found.success, first, -1))
        else:
            stages += [f"{name}/{stage['name']}" for stage in found.stages[1:]]
            rows.append(np.where(found.stage > 0, found.stage + first - 1, found.stage))
    n = len(labels)

    def each(arrays: list[Any], dtype: Any) -> np.ndarray:
        return np.stack(arrays).astype(dtype) if arrays else np.zeros((0, n), dtype)

    def loss_of(found: Outcome) -> np.ndarray:
        return np.asarray(found.found_loss if found.loss is None else found.loss)

    values = list(attacked.values())
    return _finished(
        {
            "labels": labels.astype(np.int32),
            "clean_prediction": np.asarray(clean.prediction, np.int32),
            "clean_loss": np.asarray(clean.loss, np.float32),
            "attacks": np.array(list(attacked), dtype=str),
            "stages": np.array(stages, dtype=str),
            "prediction": each([found.prediction for found in values], np.int32),
            "success": each([found.success for found in values], bool),
            "error": each([found.errors for found in values], np.float32),
            "loss": each([loss_of(found) for found in values], np.float32),
            "stage": each(rows, np.int32),
        },
        clean.success,
    )


def _finished(arrays: dict[str, np.ndarray], wrong: np.ndarray) -> PerImage:
    """With what broke each image first, the clean image being the first of all."""
    broken_by = np.where(wrong, 0, -1).astype(np.int32)
    loss = np.where(wrong, arrays["clean_loss"], np.nan).astype(np.float32)
    for row, stage, losses in zip(arrays["success"], arrays["stage"], arrays["loss"], strict=True):
        first = row & (broken_by < 0)
        broken_by[first], loss[first] = stage[first], losses[first]
    return PerImage(**arrays, broken_by=broken_by, broken_loss=loss)


def together(earlier: PerImage, found: PerImage) -> PerImage:
    """Attacks of both on the same images, those of ``found`` where both have one."""
    if not np.array_equal(earlier.labels, found.labels):
        return found
    new = set(found.attacks.tolist())
    kept = [i for i, name in enumerate(earlier.attacks.tolist()) if name not in new]
    if not kept:
        return found
    # Stages of what is kept go first, then those of what is new.
    used = sorted({*np.unique(earlier.stage[kept]).tolist()} - {-1, 0})
    names = [earlier.attacks[i] for i in kept]
    own = [
        place
        for place, stage in enumerate(earlier.stages.tolist())
        if place and (place in used or any(stage == n or stage.startswith(f"{n}/") for n in names))
    ]
    stages = ["clean", *(earlier.stages[i] for i in own), *found.stages[1:]]
    moved = np.zeros(len(earlier.stages) + 1, np.int32)
    moved[-1], moved[own] = -1, np.arange(1, len(own) + 1)
    later = np.where(found.stage > 0, found.stage + len(own), found.stage)
    arrays: dict[str, np.ndarray] = {
        "labels": found.labels,
        "clean_prediction": found.clean_prediction,
        "clean_loss": found.clean_loss,
        "attacks": np.array([*names, *found.attacks], dtype=str),
        "stages": np.array(stages, dtype=str),
        "stage": np.concatenate([moved[earlier.stage[kept]], later]).astype(np.int32),
    }
    for name in ("prediction", "success", "error", "loss"):
        arrays[name] = np.concatenate([getattr(earlier, name)[kept], getattr(found, name)])
    return _finished(arrays, found.broken_by == 0)


def read_per_image(path: Any, error: type[Exception] = ValueError) -> PerImage:
    """What ``PerImage.save`` has written.

    Raises:
        error: When it cannot be read, is damaged, or is something else.
    """
    arrays = read_arrays(path, error)
    try:
        return PerImage(**{name: arrays[name] for name in PerImage._fields})
    except KeyError as missing:
        raise error(f"{path} is damaged: it holds no {missing.args[0]}.") from None
