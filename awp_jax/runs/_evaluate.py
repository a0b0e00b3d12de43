"""Accuracy and loss of a run's checkpoints, clean and attacked; kept in its directory."""

import dataclasses
import functools
import pathlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from awp_jax import checks, parallel, results, streams
from awp_jax.attacks._work import work
from awp_jax.evaluation import (
    Evaluation,
    PartialResults,
    attacks_by_name,
    evaluate,
    write_arrays,
)
from awp_jax.evaluation._tell import Tell
from awp_jax.files import write_json
from awp_jax.progress import Progress, Show
from awp_jax.reporting import accuracy_panel, attack_table, evaluation_table
from awp_jax.results import CORRUPTIONS
from awp_jax.runs._corruptions import corruptions_of
from awp_jax.runs._directory import SETS, RunDirectory
from awp_jax.runs._kept import EVALUATION, read_evaluation, with_earlier
from awp_jax.runs._method import method_name
from awp_jax.runs._per_image import keep_per_image, kept_attacks
from awp_jax.runs._surrogate import Surrogate, open_surrogate
from awp_jax.training import BEST, LAST

PARTIAL = "evaluation.partial"  # removed when the evaluation is finished
IMAGES = "adversarial"
# As many as AutoAttack's rand averages over.
EOT = 20


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What ``Run.evaluate`` measures, and how.

    Attributes:
        attacks: Names of ``awp_jax.evaluation.attacks_by_name`` ("pgd-20", "autoattack"), attacks,
            which are called by their class, or a mapping from names to attacks; and
            "corruptions", see ``awp_jax.evaluation.corruption_accuracy``.
        checkpoints: ``"best"``, ``"last"``, ``"average"``, ``"epoch-N"``, or ``"every"``.
        sets: Of ``"train"``, ``"validation"``, ``"test"``.
        examples: So many of each set, by ``Run.data``; ``None`` for all.
        epsilon: Radius, ``8 / 255`` or ``"8/255"``; ``None`` for the config's.
        restarts: Of the iterated attacks; ``None`` for the config's.
        eot: For a randomised model, the random passes that gradients and verdicts average over;
            ``None`` for 20.
        surrogate: The directory of another run: attacks are crafted on it, and this run judges.
        surrogate_checkpoint: Which of it; ``None``: the best, where there is one.
        save_images: Whether to write ``adversarial/CHECKPOINT-SET-ATTACK.npz``: images, labels, and
            which of them are misclassified; of checkpoints with the same weights for the first.
            Images of an evaluation that was made without it were not kept: attacks run again.

    Raises:
        ValueError: For an unknown set, or a number that is no positive integer.
    """

    attacks: Sequence[Any] | Mapping[str, Any] = ("fgsm", "pgd-20")
    checkpoints: Sequence[str] = (BEST, LAST)
    sets: Sequence[str] = ("train", "test")
    examples: int | None = None
    epsilon: Any = None
    restarts: int | None = None
    eot: int | None = None
    surrogate: str | None = None
    surrogate_checkpoint: str | None = None
    save_images: bool = False

    def __post_init__(self) -> None:
        for name in self.sets:
            checks.choice(name, SETS, "set")
        for name in ("examples", "restarts", "eot"):
            if getattr(self, name) is not None:
                checks.positive_integer(getattr(self, name), name)
        if self.surrogate_checkpoint and not self.surrogate:
            raise ValueError("surrogate_checkpoint is given without surrogate.")


class RunEvaluation(NamedTuple):
    """What was measured on a run, as its ``evaluation.json`` holds it.

    Attributes:
        name: Of the run.
        values: Settings, device, under ``checkpoints`` accuracy and loss by checkpoint, set and
            attack, and under ``unions`` all attacks of a checkpoint and set together.
        note: A sentence where a wider evaluation stands before this one; else empty.
    """

    name: str
    values: dict[str, Any]
    note: str = ""

    def accuracy(self, attack: str, which: str = BEST, part: str = "test") -> float:
        """Accuracy under an attack (or ``"clean"``), in [0, 1].

        Raises:
            ValueError: For what was not measured, with what was.
        """
        found = self.values["checkpoints"]
        for name, what in ((which, "checkpoint"), (part, "set"), (attack, "attack")):
            checks.choice(name, found, f"measured {what}")
            found = found[name]
        return found["accuracy"]

    def table(self) -> str:
        """Markdown: one row per checkpoint, and everything that a number needs."""
        return evaluation_table({self.name: self.values})

    def attacks(self) -> str:
        """Markdown: what each attack did."""
        return attack_table(self.values)

    def save(self, path: Any) -> None:
        """Writes the values as JSON.

        Raises:
            ValueError: For a path that does not end in ``.json``.
        """
        results.save_plain(path, self.values)

    def plot(self, axes: Any = None) -> Any:
        """Draws accuracies as bars: for each attack one of every checkpoint and set.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        accuracy_panel(axes, self.values)
        axes.set_title(self.name)
        return axes

    def __repr__(self) -> str:
        return results.cut(self.table(), "print(found.table())")


def evaluate_run(
    run: RunDirectory,
    settings: EvaluationSettings,
    *,
    folder: str | pathlib.Path | None = None,
    progress: Show = "auto",
) -> RunEvaluation:
    """Measures checkpoints of a run and keeps the result in ``evaluation.json``.

    What happened to each image is kept beside it, in ``per_image/`` (see ``Run.per_image`` and
    ``awp_jax.evaluation.PerImage``).

    Args:
        run: From ``awp_jax.runs.open``.
        settings: What to measure.
        folder: Where ``evaluation.json`` and all else is written; ``None``: the run's directory.
        progress: See ``awp_jax.progress.Progress``.

    Returns:
        The evaluation, together with earlier attacks of the same settings, images and weights.

    Raises:
        ValueError: For unknown names, more examples than there are, missing checkpoints, or ``eot``
            for a deterministic model.
    """
    folder = run.workdir if folder is None else pathlib.Path(folder)
    earlier = read_evaluation(folder)  # a damaged one is said now and not after hours
    surrogate = None
    if settings.surrogate:
        surrogate = open_surrogate(
            settings.surrogate, settings.surrogate_checkpoint, run, run.devices
        )
    result = _measure(run, settings, surrogate, folder, progress)
    if not parallel.is_main():
        return RunEvaluation(run.name, result)
    whole, mine, note = with_earlier(earlier, result, run.config)
    write_json(folder / EVALUATION, whole)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return RunEvaluation(run.name, mine, note)


def _attacks(settings: EvaluationSettings, described: Mapping[str, Any]) -> dict[str, Any]:
    """By name, clean first; an attack of one's own keeps the settings that it was made with."""
    if isinstance(settings.attacks, str):
        raise ValueError(f"attacks is {settings.attacks!r}, but a list of names was expected.")
    if isinstance(settings.attacks, Mapping):
        return {"clean": None, **settings.attacks}
    found: dict[str, Any] = {"clean": None}
    for attack in settings.attacks:
        if attack == CORRUPTIONS:
            continue
        if isinstance(attack, str):
            found |= attacks_by_name([attack], **described)
        else:
            name = getattr(attack, "__name__", type(attack).__name__).lower()
            if not callable(attack) or name in found:
                raise ValueError(
                    f"attacks holds {attack!r}, but names and attacks, each class once, were "
                    "expected: a mapping gives them names of your own."
                )
            found[name] = attack
    if len(found) == 1 and not {"clean", CORRUPTIONS} & set(settings.attacks):
        raise ValueError("attacks is empty: at least one name was expected, such as 'pgd-20'.")
    return found


def _measure(
    run: RunDirectory,
    settings: EvaluationSettings,
    surrogate: Surrogate | None,
    folder: pathlib.Path,
    show: Show,
) -> dict[str, Any]:
    config = run.experiment.config
    random = run.experiment.classifier.is_random
    crafted_random = random if surrogate is None else surrogate.is_random
    passes = passes_of(settings.eot, random or crafted_random)
    described: dict[str, Any] = {
        "norm": config.attack.norm,
        "epsilon": settings.epsilon or config.evaluation.epsilon or config.attack.epsilon,
        "step_size": config.evaluation.step_size or config.attack.step_size,
        "restarts": settings.restarts or config.evaluation.restarts,
        "eot": passes if crafted_random else 0,
    }
    checks.radius(described["epsilon"], "epsilon", described["norm"])
    named = _attacks(settings, described)
    described["eot"] = passes
    if surrogate is not None:
        named = {
            name if attack is None else f"{name} from {surrogate.name}": attack
            for name, attack in named.items()
        }
    parts = {name: run.data(name, settings.examples) for name in settings.sets}
    corrupted = corruptions_of(settings, parts)
    states = {name: run.restore(name) for name in run.checkpoint_names(settings.checkpoints)}
    imported = any("imported" in info for _, info in states.values())
    costs: dict[str, float] = {name: work(attack) for name, attack in named.items()}
    costs |= {CORRUPTIONS: corrupted.passes} if corrupted else {}
    digests = {info["digest"] for _, info in states.values()}
    total = len(digests) * sum(costs.values()) * sum(map(len, parts.values()))
    progress = Progress(total, unit="pass", show=show)
    key = jax.random.fold_in(run.experiment.key, streams.RUN_EVALUATE)
    result: dict[str, Any] = {
        "method": "imported" if imported else method_name(config),
        "seed": config.seed,
        **described,
        "selection": config.evaluation.selection,
        "device": jax.devices()[0].device_kind,
        "data": config.data.name,
        "model": config.model.name,
        "dtype": config.model.dtype,
        "surrogate": None if surrogate is None else surrogate.identity,
        "checkpoints": {},
        "unions": {},
    }
    seen: dict[int, str] = {}
    for which, (state, info) in states.items():
        twin = seen.setdefault(info["digest"], which)
        if twin != which:  # best and last are often the same state
            for group in ("checkpoints", "unions"):
                result[group][which] = result[group][twin]
            continue
        measured = result["checkpoints"][which] = {
            "step": info["step"],
            "epoch": info["step"] / run.experiment.steps_per_epoch,
            "digest": info["digest"],
        }
        unions = result["unions"][which] = {}
        for set_name, part in parts.items():
            identity = {
                **described,
                "state": info.get("digest"),
                "seed": config.seed,
                "model": config.model.to_json(),
                "surrogate": None if surrogate is None else surrogate.identity,
                "images": [zlib.crc32(a.tobytes()) for a in (part.images, part.labels)],
            }
            if settings.save_images and parallel.is_main():
                before = kept_attacks(folder, result, which, set_name, len(part))
                again = [name for name in before if name in named]
                if again:
                    progress.line(
                        f"{which} {set_name}: {', '.join(again)} ran before, but its images were "
                        "not kept: attacked again to save them."
                    )
            tell = Tell(progress, f"{which} {set_name}", costs, len(part))
            kept = PartialResults(folder / PARTIAL, identity)
            logits_fn = run.logits_fn(state)
            found = evaluate(
                logits_fn,
                key,
                part.images,
                part.labels,
                named,
                norm=described["norm"],
                epsilon=described["epsilon"],
                batch_size=config.evaluation.batch_size,
                eot=passes if random else 0,
                surrogate_fn=None if surrogate is None else surrogate.logits_fn,
                partial=kept,
                progress=tell,
            )
            measured[set_name], unions[set_name] = found.attacks, found.union
            if corrupted:
                measured[set_name][CORRUPTIONS] = corrupted(
                    logits_fn,
                    part,
                    kept,
                    functools.partial(tell, CORRUPTIONS),
                    batch_size=config.evaluation.batch_size,
                    key=key,
                    eot=passes if random else 0,
                )
            if parallel.is_main():
                images = found.per_image(part.labels)
                keep_per_image(folder, result, which, set_name, images)
            if settings.save_images and parallel.is_main():
                _save_images(folder, f"{which}-{set_name}", found, part.labels)
    progress.close()
    return result


def _save_images(folder: pathlib.Path, prefix: str, found: Evaluation, labels: np.ndarray) -> None:
    for name, outcome in found.outcomes.items():
        if name != "clean":
            arrays = {"images": outcome.images, "labels": labels, "success": outcome.success}
            write_arrays(folder / IMAGES / f"{prefix}-{name.replace(' ', '-')}.npz", arrays)


def passes_of(eot: int | None, is_random: bool) -> int:
    """How many random passes to average over; 0 for a deterministic model.

    Raises:
        ValueError: When ``eot`` is given for a deterministic model.
    """
    if eot is not None and not is_random:
        raise ValueError(f"eot is {eot}, but the model is deterministic: leave it out.")
    return (eot or EOT) if is_random else 0
