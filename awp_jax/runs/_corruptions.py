"""Common corruptions of a run's images, beside its attacks."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from awp_jax import data
from awp_jax.data.corruptions import SEVERITIES
from awp_jax.evaluation import PartialResults
from awp_jax.evaluation._corruptions import as_bytes, by_severity, chosen
from awp_jax.results import CORRUPTIONS

_SEED = 0  # of the images, so the same for every run


class Corrupted:
    """Measures accuracy under the corruptions that images allow, one after the other.

    Args:
        names: Of the corruptions.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    @property
    def passes(self) -> int:
        """Through the network, for each image."""
        return len(self._names) * len(SEVERITIES)

    def __call__(
        self,
        logits_fn: Callable[..., Any],
        part: data.Dataset,
        partial: PartialResults,
        tell: Callable[[float, float], Any],
        **settings: Any,
    ) -> dict[str, Any]:
        """What ``evaluation.json`` holds of it.

        Args:
            logits_fn: ``images -> logits [batch, classes]``.
            part: The images.
            partial: Keeps each corruption that is done.
            tell: Called with the share that is done, and that was computed.
            **settings: Of ``awp_jax.evaluation.measure``.

        Returns:
            ``accuracy``, the mean over corruptions and severities; ``by_severity``, accuracies
            ``[5]`` by corruption; ``loss`` (none is measured), ``examples`` and ``seconds``.
        """
        images = as_bytes(part.images)
        done = computed = 0
        tell(0.0, 0.0)

        def one_done(severity: int) -> None:
            nonlocal done, computed
            done, computed = done + 1, computed + 1
            tell(done / self.passes, computed / self.passes)

        found, seconds = {}, 0.0
        for name in self._names:
            identity = {"corruption": name, "seed": _SEED, "eot": settings["eot"]}
            kept = partial.load(identity)
            if kept is None:
                before = time.perf_counter()
                values = by_severity(
                    logits_fn, images, part.labels, name, _SEED, one_done, **settings
                )
                kept = {"accuracy": values, "seconds": np.array(time.perf_counter() - before)}
                partial.save(identity, kept)
            else:
                done += len(SEVERITIES)
                tell(done / self.passes, computed / self.passes)
            found[name] = kept["accuracy"].tolist()
            seconds += float(kept["seconds"])
        return {
            "accuracy": float(np.mean(list(found.values()))),
            "loss": None,
            "examples": len(part),
            "seconds": seconds,
            "by_severity": found,
        }


def corruptions_of(settings: Any, parts: Mapping[str, data.Dataset]) -> Corrupted | None:
    """What measures the corruptions that settings of an evaluation ask for, if they do.

    Args:
        settings: ``EvaluationSettings``.
        parts: The sets of images, by name.

    Raises:
        ValueError: For images that cannot be corrupted, or together with a surrogate.
        MissingExtraError: Where Pillow is not installed.
    """
    if CORRUPTIONS not in settings.attacks:
        return None
    if settings.surrogate:
        raise ValueError(
            f"surrogate is {settings.surrogate!r}, but corruptions are crafted on no network: "
            "measure them without it."
        )
    names = [chosen(as_bytes(part.images[:1])) for part in parts.values()]
    return Corrupted(names[0])
