"""Whether the robust accuracy of a run can be trusted."""

import dataclasses
from typing import Any, NamedTuple

import jax

from awp_jax import checks, parallel, results, streams
from awp_jax.evaluation import diagnose
from awp_jax.files import write_json
from awp_jax.panels import diagnosis_panels
from awp_jax.progress import Show
from awp_jax.reporting import diagnosis_figure
from awp_jax.runs._directory import RunDirectory
from awp_jax.runs._evaluate import passes_of
from awp_jax.runs._surrogate import open_surrogate
from awp_jax.training import BEST

DIAGNOSIS = "diagnosis.json"


@dataclasses.dataclass(frozen=True)
class DiagnosisSettings:
    """What ``Run.diagnose`` looks at; see ``awp_jax.evaluation.diagnose``.

    Attributes:
        checkpoint: ``"best"``, ``"last"``, ``"average"`` or ``"epoch-N"``.
        examples: So many test images, by ``awp_jax.data.subset``.
        epsilon: Radius; ``None`` for the config's.
        queries: Of the Square attack.
        eot: For a randomised model, random passes to average over; ``None`` for 20.
        surrogate: The directory of another run, to transfer attacks from.
        surrogate_checkpoint: Which of it; ``None``: the best, where there is one.

    Raises:
        ValueError: For a number that is no positive integer.
    """

    checkpoint: str = BEST
    examples: int = 200
    epsilon: Any = None
    queries: int = 1000
    eot: int | None = None
    surrogate: str | None = None
    surrogate_checkpoint: str | None = None

    def __post_init__(self) -> None:
        for name in ("examples", "queries"):
            checks.positive_integer(getattr(self, name), name)
        if self.surrogate_checkpoint and not self.surrogate:
            raise ValueError("surrogate_checkpoint is given without surrogate.")


class RunDiagnosis(NamedTuple):
    """A diagnosis, as ``diagnosis.json`` holds it.

    Attributes:
        name: Of the run.
        values: Plain values: the checks, and robust accuracy by radius and by steps.
        verdict: In words.
    """

    name: str
    values: dict[str, Any]
    verdict: str

    @property
    def suspicious(self) -> bool:
        """Whether any check failed."""
        return bool(self.values["suspicious"])

    def plot(self, axes: Any = None) -> Any:
        """Draws robust accuracy against the radius, and against the number of steps.

        Args:
            axes: Two matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The two axes, an array.
        """
        both = results.axes_or_new(axes, 2)
        diagnosis_panels(both[0], both[1], self.values)
        return both

    def figure(self) -> Any:
        """The same as a matplotlib figure, for ``awp_jax.reporting.save_figure``."""
        return diagnosis_figure(self.values)

    def save(self, path: Any) -> None:
        """Writes the values as JSON.

        Raises:
            ValueError: For a path that does not end in ``.json``.
        """
        results.save_plain(path, self.values)

    def __repr__(self) -> str:
        return results.cut(self.verdict, "print(found.verdict)")


def diagnose_run(
    run: RunDirectory, settings: DiagnosisSettings, *, progress: Show = "auto"
) -> RunDiagnosis:
    """Diagnoses a checkpoint and writes ``diagnosis.json``.

    Raises:
        ValueError: For a randomised surrogate, a bad radius, a missing checkpoint.
    """
    config = run.experiment.config
    images = run.data("test", most=settings.examples)
    eot = passes_of(settings.eot, run.experiment.classifier.is_random)
    surrogate_fn = None
    if settings.surrogate:
        which = settings.surrogate_checkpoint
        other = open_surrogate(settings.surrogate, which, run, run.devices)
        if other.is_random:
            raise ValueError(f"surrogate {settings.surrogate} is a randomised model.")
        surrogate_fn = other.logits_fn
    found = diagnose(
        run.logits_fn(run.restore(settings.checkpoint)[0]),
        jax.random.fold_in(run.experiment.key, streams.RUN_DIAGNOSE),
        images.images,
        images.labels,
        norm=config.attack.norm,
        epsilon=settings.epsilon or config.evaluation.epsilon or config.attack.epsilon,
        surrogate_fn=surrogate_fn,
        queries=settings.queries,
        eot=eot,
        batch_size=config.evaluation.batch_size,
        progress=progress,
    )
    values = {
        "checkpoint": settings.checkpoint,
        "seed": config.seed,
        "dtype": config.model.dtype,
        **found.as_dict(),
    }
    if parallel.is_main():
        write_json(run.workdir / DIAGNOSIS, values)
    return RunDiagnosis(run.name, values, found.verdict())
