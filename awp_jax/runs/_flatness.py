"""Flatness of the checkpoints of runs, part by part, so that a stopped call goes on."""

import dataclasses
import pathlib
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from awp_jax import checks, data, landscape, parallel, results, streams
from awp_jax.ascent import Watch, watched
from awp_jax.attacks import PGD
from awp_jax.evaluation import PartialResults
from awp_jax.files import read_json, write_json
from awp_jax.progress import Progress, Show
from awp_jax.reporting import flatness_bars, flatness_figures, flatness_report
from awp_jax.runs._directory import SETS, RunDirectory
from awp_jax.runs._method import method_name
from awp_jax.training import BEST, LAST, WorkdirError

FLATNESS = "flatness.json"
PARTIAL = "flatness.partial"  # removed when the call is finished
ALSO = ("clean", "hessian", "histograms", "gammas", "pac-bayes")
MOST_EXAMPLES = 1000  # as many as Stutz et al.


@dataclasses.dataclass(frozen=True)
class FlatnessSettings:
    """What is measured, and how; see ``awp_jax.landscape`` for the meaning of each.

    Attributes:
        checkpoints: ``"best"``, ``"last"``, ``"average"``, ``"epoch-N"``, or ``"every"``.
        sets: Of ``"train"``, ``"validation"``, ``"test"``.
        examples: By ``Run.data``; ``None`` for 1000, or all where there are fewer.
        epsilon: ``None`` for the config's.
        step_size: Of PGD in pixel units; ``None`` for the config's.
        steps: Of PGD and of the joint ascent.
        restarts: Of the reference and of the worst case.
        draws: Of the average case.
        xi: Of the average case.
        worst_xi: Of the worst case.
        weight_step: ``None`` for that of the paper, or of the released code where nu is shared.
        shared_across_batches: One nu for all batches.
        batch_size: Examples that share one nu in the worst case.
        also: Of ``ALSO``.
    """

    checkpoints: Sequence[str] = (BEST, LAST)
    sets: Sequence[str] = ("test", "train")
    examples: int | None = None
    epsilon: str | None = None
    step_size: str | None = None
    steps: int = 20
    restarts: int = 10
    draws: int = 10
    xi: float = 0.5
    worst_xi: float = 0.00075
    weight_step: float | None = None
    shared_across_batches: bool = False
    batch_size: int = 128
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.sets:
            checks.choice(name, SETS, "set")
        if self.examples is not None:
            checks.positive_integer(self.examples, "examples")
        for name in ("steps", "restarts", "draws", "batch_size"):
            checks.positive_integer(getattr(self, name), name)
        for name in ("xi", "worst_xi", "weight_step"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checks.radius(getattr(self, name), name))
        for name in self.also:
            checks.choice(name, ALSO, "measure in also")

    def parts(self) -> int:
        """How many parts one set of one checkpoint has."""
        gammas = len(landscape.GAMMAS) * (1 + landscape.WEIGHT_DRAWS)
        extra = {
            "clean": 1 + self.draws + self.restarts,
            "hessian": 1,
            "histograms": 0,
            "gammas": gammas,
            "pac-bayes": 1 + len(landscape.RELATIVE_SIZES) * landscape.WEIGHT_DRAWS,
        }
        return 2 * self.restarts + self.draws + sum(extra[name] for name in self.also)


class RunFlatness(NamedTuple):
    """Flatness of one run, as its ``flatness.json`` holds it.

    Attributes:
        name: Of the run.
        values: Settings and device; under ``checkpoints`` the measures by checkpoint and set; under
            ``differences`` test minus train and last minus best.
    """

    name: str
    values: dict[str, Any]

    def table(self) -> str:
        """Markdown: tables, and everything that a number needs."""
        return flatness_report({self.name: self.values})

    def plot(self, axes: Any = None) -> Any:
        """Draws average- and worst-case flatness as bars, for each checkpoint and set.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        flatness_bars(axes, self.values)
        axes.set_title(self.name)
        return axes

    def figures(self) -> dict[str, Any]:
        """Matplotlib figures by name, of what was measured beside (epochs, histograms, ...)."""
        return flatness_figures({self.name: self.values})

    def save(self, path: Any) -> None:
        """Writes the values as JSON.

        Raises:
            ValueError: For a path that does not end in ``.json``.
        """
        results.save_plain(path, self.values)

    def __repr__(self) -> str:
        return results.cut(self.table(), "print(found.table())")


def read_flatness(workdir: pathlib.Path) -> RunFlatness:
    """What ``Run.flatness`` has written.

    Raises:
        WorkdirError: When there is none, or it is damaged.
    """
    path = workdir / FLATNESS
    if not path.is_file():
        raise WorkdirError(
            f"{workdir} holds no {FLATNESS}: run awp-jax flatness --workdir={workdir} first."
        )
    return RunFlatness(workdir.resolve().name, read_json(path, WorkdirError))


def flatness_runs(
    runs: Sequence[RunDirectory], settings: FlatnessSettings, *, progress: Show = "auto"
) -> list[RunFlatness]:
    """Measures flatness and writes it to the run directories; a stopped call goes on.

    Everything that can be wrong is found before anything is measured.

    Args:
        runs: From ``awp_jax.runs.open``, in float32: bfloat16 would round perturbations away.
        settings: What to measure.
        progress: See ``awp_jax.progress.Progress``.

    Returns:
        One for each run.

    Raises:
        ValueError: For sets that a run has not, more examples than there are, missing checkpoints.
    """
    plans = [
        (
            run,
            run.checkpoint_names(settings.checkpoints),
            {n: run.data(n, settings.examples, most=MOST_EXAMPLES) for n in settings.sets},
        )
        for run in runs
    ]
    total = sum(len(which) * len(images) for _, which, images in plans) * settings.parts()
    shown = Progress(total, unit="part", show=progress)
    found = []
    for run, which, images in plans:
        values = _measure_run(run, settings, which, images, shown)
        found.append(RunFlatness(run.name, values))
        if parallel.is_main():
            write_json(run.workdir / FLATNESS, values)
    shown.close()
    if parallel.is_main():
        for run in runs:  # only now: until then the whole call may be made again
            shutil.rmtree(run.workdir / PARTIAL, ignore_errors=True)
    return found


def _measure_run(
    run: RunDirectory,
    settings: FlatnessSettings,
    checkpoints: Sequence[str],
    sets: Mapping[str, data.Dataset],
    progress: Progress,
) -> dict[str, Any]:
    config = run.experiment.config
    epsilon = settings.epsilon or config.evaluation.epsilon or config.attack.epsilon
    step_size = settings.step_size or config.evaluation.step_size or config.attack.step_size
    attack = PGD(epsilon, steps=settings.steps, step_size=step_size, norm=config.attack.norm)
    result: dict[str, Any] = {
        "method": method_name(config),
        "seed": config.seed,
        "norm": attack.ball.norm,
        **_measures(settings),
        "epsilon": epsilon,
        "step_size": step_size,
        "selection": config.evaluation.selection,
        "device": jax.devices()[0].device_kind,
        "data": config.data.name,
        "model": config.model.name,
        "dtype": config.model.dtype,
        "training_examples": len(run.experiment.splits.train),
        "checkpoints": {},
    }
    twins: dict[int, str] = {}
    for which in checkpoints:
        state, info = run.restore(which)  # one at a time: there may be hundreds
        if "imported" in info:
            result["method"] = "imported"
        twin = twins.setdefault(info["step"], which)
        if twin != which:  # best and last are often the same state
            result["checkpoints"][which] = result["checkpoints"][twin]
            progress.advance(settings.parts() * len(sets), f"{which} is {twin}", kept=True)
            continue
        measured: dict[str, Any] = {
            "step": info["step"],
            "epoch": info["step"] / run.experiment.steps_per_epoch,
        }
        for name, part in sets.items():
            identity = {
                "state": info.get("digest"),
                "seed": config.seed,
                "model": config.model.to_json(),
                "images": [zlib.crc32(a.tobytes()) for a in (part.images, part.labels)],
                "attack": repr(attack),
                **{k: v for k, v in _measures(settings).items() if k != "also"},
            }
            keep = _Keep(
                PartialResults(run.workdir / PARTIAL, identity),
                progress,
                f"{run.workdir.name} {which} {name}",
            )
            measured[name] = _measure_set(run, state, part, attack, settings, keep)
        if "histograms" in settings.also:
            measured["histograms"] = {
                layer: plain(found)
                for layer, found in landscape.weight_histograms(state.params).items()
            }
        result["checkpoints"][which] = measured
    result["differences"] = differences(result["checkpoints"])
    return result


def _measures(settings: FlatnessSettings) -> dict[str, Any]:
    """What a number depends on: not which checkpoints and sets were asked for beside it."""
    return {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in ("checkpoints", "sets", "examples")
    }


@dataclasses.dataclass
class _Keep:
    """Looks for a part on disk, computes and keeps it otherwise, and tells progress."""

    partial: PartialResults
    progress: Progress
    where: str
    prefix: str = ""

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        name = self.prefix + name
        part = self.partial.load({"part": name})
        stored = part is not None
        if part is None:
            # A part may take minutes: the same share, said again, tells that it goes on.
            with watched(Watch(lambda steps: self.progress.advance(0, f"{self.where} {name}"))):
                part = {key: np.asarray(value) for key, value in compute().items()}
            self.partial.save({"part": name}, part)
        self.progress.advance(1, f"{self.where} {name}", kept=stored)
        return part


def _measure_set(
    run, state, part, attack, settings: FlatnessSettings, keep: _Keep
) -> dict[str, Any]:
    common = (
        run.apply_fn(state),
        state.params,
        part.images,
        part.labels,
        jax.random.fold_in(run.experiment.key, streams.RUN_FLATNESS),
    )
    found = _measure_loss(common, attack, settings, keep)
    found["examples"] = len(part)
    if "clean" in settings.also:
        clean = dataclasses.replace(keep, prefix="clean ")
        found["clean"] = _measure_loss(common, None, settings, clean)
    batches: dict[str, Any] = {"attack": attack, "batch_size": settings.batch_size}
    if "hessian" in settings.also:

        def spectrum():
            return landscape.hessian_spectrum(*common, **batches)._asdict()

        found["hessian"] = plain(keep("hessian", spectrum))
    if "gammas" in settings.also:
        found["gammas"] = plain(landscape.perturbed_loss(*common, **batches, keep=keep))
    if "pac-bayes" in settings.also:
        n = len(run.experiment.splits.train)
        bound = landscape.pac_bayes(*common, **batches, training_examples=n, keep=keep)
        found["pac_bayes"] = plain(bound)
    return found


def _measure_loss(common, attack, settings: FlatnessSettings, keep) -> dict[str, Any]:
    batches = {"attack": attack, "batch_size": settings.batch_size, "keep": keep}
    reference = landscape.robust_loss(*common, restarts=settings.restarts, **batches)
    average = landscape.average_flatness(
        *common, xi=settings.xi, draws=settings.draws, reference=reference, **batches
    )
    worst = landscape.worst_case_flatness(
        *common,
        xi=settings.worst_xi,
        weight_step=settings.weight_step,
        steps=settings.steps,
        restarts=settings.restarts,
        shared_across_batches=settings.shared_across_batches,
        reference=reference,
        **batches,
    )
    return {
        "loss": float(reference.loss),
        "loss_single": float(reference.single),
        "error": float(reference.error),
        "average": float(average.flatness),
        "draws": average.draws.tolist(),
        "worst_case": float(worst.flatness),
        "worst_case_per_batch": float(worst.per_batch),
        "restarts": worst.restarts.tolist(),
    }


def plain(found: Any) -> dict[str, Any]:
    """A named tuple or dict of arrays as plain values for JSON; NaN becomes None."""
    items = found._asdict() if hasattr(found, "_asdict") else found

    def value(array):
        listed = np.asarray(array).tolist()
        if isinstance(listed, list):
            return [None if x != x else x for x in listed] if np.ndim(array) == 1 else listed
        return None if listed != listed else listed

    return {name: value(array) for name, array in items.items()}


DIFFERENCES = ("loss", "error", "average", "worst_case")


def differences(checkpoints: Mapping[str, Any]) -> dict[str, Any]:
    """Test minus train for every checkpoint, and last minus best for every set, where measured."""

    def minus(one, other):
        return {name: one[name] - other[name] for name in DIFFERENCES}

    found: dict[str, Any] = {"test_minus_train": {}, "last_minus_best": {}}
    for which, measured in checkpoints.items():
        if "test" in measured and "train" in measured:
            found["test_minus_train"][which] = minus(measured["test"], measured["train"])
    if "last" in checkpoints and "best" in checkpoints:
        last, best = checkpoints["last"], checkpoints["best"]
        for name in ("train", "validation", "test"):
            if name in last and name in best:
                found["last_minus_best"][name] = minus(last[name], best[name])
    return found
