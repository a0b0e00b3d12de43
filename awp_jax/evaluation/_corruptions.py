"""Accuracy under common corruptions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from awp_jax import results
from awp_jax.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from awp_jax.evaluation._measure import measure
from awp_jax.panels import clean as clean_axes
from awp_jax.progress import Progress, Show


class CorruptionAccuracy(NamedTuple):
    """Accuracy under common corruptions.

    Attributes:
        names: Of the corruptions.
        accuracy: In [0, 1], by corruption and severity 1 to 5.  # shape=(corruptions, 5)
        clean: Without corruption.
        examples: How many images.
    """

    names: tuple[str, ...]
    accuracy: np.ndarray
    clean: float
    examples: int

    @property
    def mean(self) -> float:
        """Over all corruptions and severities, as RobustBench's tables have it."""
        return float(self.accuracy.mean())

    def __repr__(self) -> str:
        head = f"CorruptionAccuracy({self.mean:.2%} of {self.examples}, clean {self.clean:.2%})"
        rows = [
            f"  {name}: " + ", ".join(f"{value:.2%}" for value in row)
            for name, row in zip(self.names, self.accuracy, strict=True)
        ]
        return results.cut("\n".join([head, *rows]))

    def save(self, path: Any) -> None:
        """Writes all of it as JSON.

        Raises:
            ValueError: For a path that does not end in ``.json``.
        """
        plain = {**self._asdict(), "accuracy": self.accuracy.tolist(), "mean": self.mean}
        results.save_plain(path, plain)

    def plot(self, axes: Any = None) -> Any:
        """Draws the accuracy over the severity, a line for each corruption.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        for name, row in zip(self.names, self.accuracy, strict=True):
            axes.plot([0, *SEVERITIES], 100 * np.array([self.clean, *row]), label=name)
        axes.set_xlabel("severity")
        axes.set_ylabel(f"accuracy of {self.examples} images (%)")
        axes.legend(fontsize=7)
        clean_axes(axes)
        return axes


def corruption_accuracy(
    logits_fn: Callable,
    images: Any,
    labels: Any,
    *,
    corruptions: Sequence[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    key: jax.Array | None = None,
    eot: int = 0,
    progress: Show = None,
) -> CorruptionAccuracy:
    """Accuracy under common corruptions computed here, at five severities each.

    Not the released files of CIFAR-10-C: ten of their nineteen corruptions (see
    ``awp_jax.data.corruptions``), with noise of its own, so a mean that is not comparable with
    theirs; between models measured here it is.

    Args:
        logits_fn: ``images -> logits [batch, classes]``, see ``measure``.
        images: uint8 ``[n, height, width, channels]``, or float in [0, 1], which is rounded to
            bytes first, as files of images have them.
        labels: int ``[n]``.
        corruptions: Names of ``awp_jax.data.CORRUPTIONS``; ``None`` for all that the images allow.
        batch_size: Images per pass; does not change the result.
        seed: Of the noise of the images.
        key: One typed key, for a randomised model.
        eot: As in ``measure``.
        progress: See ``awp_jax.progress.Progress``; ``None`` for silence.

    Returns:
        A ``CorruptionAccuracy``.

    Raises:
        ValueError: For unknown names, and bad images or labels.
        MissingExtraError: For "pixelate" and "jpeg" where Pillow is not installed.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from awp_jax.evaluation import corruption_accuracy
        >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) @ jnp.array([[1.0, -1.0]])
        >>> images = np.stack([np.full((8, 8, 1), value, np.uint8) for value in (100, 200)])
        >>> found = corruption_accuracy(logits_fn, images, np.array([1, 0]),
        ...                             corruptions=["brightness"])
        >>> found.accuracy.tolist()  # 100 / 255 + 0.15 is above 1/2
        [[1.0, 1.0, 0.5, 0.5, 0.5]]
    """
    images, labels = as_bytes(images), np.asarray(labels)
    names = chosen(images, corruptions)
    lines = Progress(1 + len(names) * len(SEVERITIES), unit="set", show=progress)
    settings: dict[str, Any] = {"batch_size": batch_size, "key": key, "eot": eot}
    plain = measure(logits_fn, images, labels, **settings)
    lines.advance(1, "clean")

    def tell(severity: int) -> None:
        lines.advance(1, f"{name} {severity}")

    rows = []
    for name in names:
        rows.append(by_severity(logits_fn, images, labels, name, seed, tell, **settings))
    lines.close()
    return CorruptionAccuracy(names, np.stack(rows), plain.accuracy, len(labels))


def as_bytes(images: Any) -> np.ndarray:
    """uint8 images, rounded where they are float in [0, 1]."""
    images = np.asarray(images)
    if images.dtype.kind != "f":
        return images
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8)


def chosen(images: np.ndarray, corruptions: Sequence[str] | None = None) -> tuple[str, ...]:
    """The corruptions to measure; what cannot be is said before anything is compiled."""
    if corruptions is None:
        grey = images.ndim == 4 and images.shape[-1] == 1
        corruptions = [name for name in CORRUPTIONS if not (grey and name == "saturate")]
    if isinstance(corruptions, str) or not corruptions:
        raise ValueError(f"corruptions is {corruptions!r}, but a list of names was expected.")
    for name in corruptions:
        corrupt(images[:1], name, 1)
    return tuple(corruptions)


def by_severity(
    logits_fn: Callable,
    images: np.ndarray,
    labels: np.ndarray,
    name: str,
    seed: int,
    tell: Callable[[int], Any],
    **settings: Any,
) -> np.ndarray:
    """Accuracy ``[5]`` under one corruption; ``tell(severity)`` after each."""
    found = []
    for severity in SEVERITIES:
        changed = corrupt(images, name, severity, seed=seed)
        found.append(measure(logits_fn, changed, labels, **settings).accuracy)
        tell(severity)
    return np.array(found)
