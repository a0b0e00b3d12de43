"""Landscapes of runs: the loss along directions around their checkpoints."""

import dataclasses
import pathlib
import shutil
import time
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks, data, parallel, results, streams
from awp_jax.ascent import Watch, watched
from awp_jax.attacks import PGD
from awp_jax.evaluation import PartialResults
from awp_jax.files import write_arrays, write_json
from awp_jax.landscape import Surface, adversarial_directions, axis, directions, surface
from awp_jax.progress import Progress, Show
from awp_jax.reporting import landscape_figure, landscape_panel, landscape_table, read_landscape
from awp_jax.runs._directory import SETS, RunDirectory
from awp_jax.runs._method import method_name
from awp_jax.training import LAST

# How many examples of a set, when not told.
_EXAMPLES = 1000
# Seconds between two savings of the points that are done.
_SAVE_EVERY = 1.0
_HOWS = {"anew": ("anew",), "centre": ("centre",), "both": ("anew", "centre"), "none": ("none",)}


@dataclasses.dataclass(frozen=True)
class LandscapeSettings:
    """What ``Run.landscape`` computes; see ``awp_jax.landscape.surface``.

    Attributes:
        checkpoints: ``"best"``, ``"last"``, ``"average"``, ``"epoch-N"``, or ``"every"``.
        dims: 1 for curves, 2 for surfaces.
        directions: ``"random"``, or ``"adversarial"``: the ascent direction of AWP.
        normalisation: ``"filter"`` (``None`` with random directions) or ``"layer"``.
        points: Of each direction, odd; ``None`` for 41, in two dimensions 21.
        extent: Largest coordinate; ``None`` for 1, with adversarial directions 0.02.
        examples: By ``Run.data``; ``None`` for 1000, or all where there are fewer.
        set: ``"train"``, ``"validation"`` or ``"test"``.
        draws: Directions to average over; ``None`` for 3, in two dimensions 1.
        seed: Of directions and attack starts.
        adversarial: Examples ``"anew"`` at every point, made once at the ``"centre"``, ``"both"``,
            or ``"none"`` for the clean loss.
        epsilon, steps, step_size, restarts: Of PGD; ``None`` for those of the training attack.
        name: Of the files; ``None`` for "landscape", with "-2d" and "-adversarial".

    Raises:
        ValueError: For an unknown name, an even number of points, a range of 0.
    """

    checkpoints: Sequence[str] = (LAST,)
    dims: int = 1
    directions: str = "random"
    normalisation: str | None = None
    points: int | None = None
    extent: float | None = None
    examples: int | None = None
    set: str = "train"
    draws: int | None = None
    seed: int = 0
    adversarial: str = "anew"
    epsilon: str | None = None
    steps: int | None = None
    step_size: str | None = None
    restarts: int = 1
    name: str | None = None

    def __post_init__(self) -> None:
        if self.dims not in (1, 2):
            raise ValueError(f"dims is {self.dims}, but 1 or 2 was expected.")
        checks.choice(self.directions, ("random", "adversarial"), "directions")
        checks.choice(self.set, SETS, "set")
        checks.choice(self.adversarial, _HOWS, "adversarial")
        for name in ("examples", "draws", "steps", "restarts"):
            if getattr(self, name) is not None:
                checks.positive_integer(getattr(self, name), name)
        random, flat = self.directions == "random", self.dims == 1
        usual = {
            "normalisation": "filter" if random else "layer",
            "points": 41 if flat else 21,
            "extent": 1.0 if random else 0.02,
            "draws": 3 if flat else 1,
            "name": "landscape" + "-2d" * (not flat) + "-adversarial" * (not random),
        }
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        checks.choice(self.normalisation, ("filter", "layer"), "normalisation")
        if pathlib.Path(str(self.name)).name != self.name:
            raise ValueError(
                f"name is {self.name!r}, but a file name without folders was expected."
            )
        self.axis  # noqa: B018

    @property
    def axis(self) -> np.ndarray:
        """Coordinates of every direction."""
        assert self.points is not None and self.extent is not None
        return axis(self.points, self.extent)

    def attack(self, run: RunDirectory) -> PGD:
        """PGD with these settings, or those of the run's training attack."""
        a = run.config.attack
        steps = a.steps if self.steps is None else self.steps
        if steps < 1:
            raise ValueError(f"{run.workdir} was trained with {steps} attack steps: give steps.")
        epsilon, size = self.epsilon or a.epsilon, self.step_size or a.step_size
        return PGD(epsilon, steps=steps, step_size=size, norm=a.norm, restarts=self.restarts)

    def images(self, run: RunDirectory) -> data.Dataset:
        """The examples that the loss is averaged over."""
        return run.data(self.set, self.examples, most=_EXAMPLES)

    def passes(self, how: str) -> float:
        """Work of one point, in forward passes; a gradient is about two."""
        return 1.0 if how in ("centre", "none") else 1.0 + 2.0 * (self.steps or 10)

    @property
    def weight(self) -> float:
        """Work of one checkpoint."""
        assert self.draws is not None
        each = sum(self.passes(how) for how in _HOWS[self.adversarial])
        return each * self.draws * len(self.axis) ** self.dims


class RunLandscape(NamedTuple):
    """A landscape of one run, as NAME.json and NAME.npz of its directory hold it.

    Attributes:
        name: Of the run.
        values: What ``awp_jax.reporting.read_landscape`` reads: settings, ``axis``, and under
            ``checkpoints`` losses and accuracies.
    """

    name: str
    values: dict[str, Any]

    def table(self) -> str:
        """Markdown: how far the loss changes, and everything that a number needs."""
        return landscape_table({self.name: self.values})

    def plot(self, axes: Any = None) -> Any:
        """Draws a curve for each checkpoint; in two dimensions contours of the latest.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        landscape_panel(axes, self.values)
        axes.set_title(self.name)
        return axes

    def figure(self) -> Any:
        """A matplotlib figure with a panel for each checkpoint, and all draws."""
        return landscape_figure(self.values)

    def save(self, path: Any) -> None:
        """Writes an ``.npz`` file: ``axis``, ``CHECKPOINT/HOW/loss`` and ``.../accuracy``; in
        ``json`` all other values.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        arrays, plain = {"axis": self.values["axis"]}, {**self.values, "checkpoints": {}}
        del plain["axis"]
        for which, measured in self.values["checkpoints"].items():
            kept = plain["checkpoints"][which] = {}
            for how, found in measured.items():
                one = found if isinstance(found, dict) else {}
                numbers = {n: value for n, value in one.items() if isinstance(value, np.ndarray)}
                arrays |= {f"{which}/{how}/{n}": value for n, value in numbers.items()}
                words = {n: value for n, value in one.items() if n not in numbers}
                kept[how] = words if one else found
        results.save_arrays(path, {**arrays, "values": plain})

    def __repr__(self) -> str:
        return results.cut(self.table(), "print(found.table())")


def landscape_runs(
    runs: Sequence[RunDirectory], settings: LandscapeSettings, *, progress: Show = "auto"
) -> list[RunLandscape]:
    """Computes landscapes and writes them to the run directories; a stopped call goes on.

    Everything that can be wrong is found before anything is computed.

    Args:
        runs: From ``awp_jax.runs.open``.
        settings: What to compute.
        progress: See ``awp_jax.progress.Progress``.

    Returns:
        One for each run.

    Raises:
        ValueError: For unknown names, more examples than there are, missing checkpoints.
    """
    jobs = [(run, run.checkpoint_names(settings.checkpoints)) for run in runs]
    for run, which in jobs:
        settings.images(run)
        settings.attack(run)
        kept = {f"epoch-{epoch}" for epoch in run.kept_epochs()}
        for missing in [w for w in which if w.startswith("epoch-") and w not in kept]:
            run.restore(missing)  # says what is there
    total = sum(len(which) for _, which in jobs) * settings.weight
    clock = Progress(round(total), unit="pass", show=progress)
    for run, which in jobs:
        partial = run.workdir / f"{settings.name}.partial"
        result, arrays = _compute(run, which, settings, partial, clock)
        if parallel.is_main():
            write_arrays(run.workdir / f"{settings.name}.npz", arrays)
            write_json(run.workdir / f"{settings.name}.json", {"name": run.workdir.name, **result})
    clock.close()
    if parallel.main_says(True) and parallel.is_main():  # what it has written, all may read now
        for run, _ in jobs:  # only now: until then the whole call may be made again
            shutil.rmtree(run.workdir / f"{settings.name}.partial", ignore_errors=True)
    name = str(settings.name)
    return [RunLandscape(run.name, read_landscape(run.workdir, name)) for run, _ in jobs]


def _compute(
    run: RunDirectory,
    which: Sequence[str],
    settings: LandscapeSettings,
    directory: pathlib.Path,
    clock: Progress,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plain values for NAME.json; and for NAME.npz ``axis``, and ``CHECKPOINT/HOW/loss`` and
    ``.../accuracy``, ``[draws, points]`` or ``[draws, points, points]``."""
    config, part, attack = run.experiment.config, settings.images(run), settings.attack(run)
    plain = dataclasses.asdict(settings)
    del plain["checkpoints"], plain["name"]
    described = {
        **plain,
        "examples": len(part),
        "norm": attack.ball.norm,
        "epsilon": str(settings.epsilon or config.attack.epsilon),
        "steps": attack.steps,
        "step_size": str(settings.step_size or config.attack.step_size),
    }
    result: dict[str, Any] = {
        "method": method_name(config),
        "settings": described,
        "training_seed": config.seed,
        "selection": config.evaluation.selection,
        "device": jax.devices()[0].device_kind,
        "data": config.data.name,
        "model": config.model.name,
        "dtype": config.model.dtype,
        "checkpoints": {},
    }
    arrays: dict[str, np.ndarray] = {"axis": settings.axis}
    steps: dict[int, str] = {}
    for name in which:
        state, info = run.restore(name)  # one at a time: there may be hundreds
        if "imported" in info:
            result["method"] = "imported"
        twin = steps.setdefault(info["step"], name)
        if twin != name:  # best and last are often the same state
            result["checkpoints"][name] = result["checkpoints"][twin]
            for key in [k for k in arrays if k.startswith(f"{twin}/")]:
                arrays[name + key.removeprefix(twin)] = arrays[key]
            clock.advance(settings.weight, f"{run.name} {name}", kept=True)
            continue
        part_of = {"draws", "adversarial"}  # more of them keep what is there
        identity = {
            **{key: value for key, value in described.items() if key not in part_of},
            "state": info.get("digest"),
            "model": config.model.to_json(),
            "images": [zlib.crc32(a.tobytes()) for a in (part.images, part.labels)],
        }
        partial = PartialResults(directory, identity)
        began = time.perf_counter()
        found = {
            how: [
                _one(run, state, part, settings, how, draw, attack, partial, clock, name)
                for draw in range(settings.draws or 1)
            ]
            for how in _HOWS[settings.adversarial]
        }
        measured = {
            "step": info["step"],
            "epoch": info["step"] / run.experiment.steps_per_epoch,
            "seconds": round(time.perf_counter() - began, 3),
        }
        result["checkpoints"][name] = measured
        for how, surfaces in found.items():
            loss = arrays[f"{name}/{how}/loss"] = np.stack([s.loss for s in surfaces])
            accuracy = np.stack([s.accuracy for s in surfaces])
            arrays[f"{name}/{how}/accuracy"] = accuracy
            measured[how] = _summary(loss, accuracy)
    return result, arrays


def _one(run, state, part, settings, how, draw, attack, partial, clock, name) -> Surface:
    """One draw; its points are kept while it goes on."""
    key = jax.random.key(settings.seed)
    axes = (settings.axis,) * settings.dims
    stored = partial.load({"how": how, "draw": draw})
    start = None if stored is None else Surface(axes, **stored)
    work = settings.passes(how)
    known = 0 if start is None else int(start.done.sum())
    what = f"{run.name} {name} {how} draw {draw + 1}"
    clock.advance(known * work, what, kept=True)
    if start is not None and known == start.loss.size:
        return start
    apply_fn, params = run.apply_fn(state), state.params
    way_key = jax.random.fold_in(jax.random.fold_in(key, streams.DRAWN_DIRECTIONS), draw)
    count = settings.dims
    ways: list[Any] = []
    options = {"normalisation": settings.normalisation}
    if settings.directions == "adversarial":
        # Two ascent directions are nearly parallel: the second of a plane is random.
        ascent_attack = None if how == "none" else attack
        batch = run.experiment.config.batch_size
        images, labels = part.images, part.labels
        ways.append(
            adversarial_directions(
                apply_fn,
                params,
                way_key,
                images,
                labels,
                ascent_attack,
                batch_size=batch,
                **options,
            )
        )
        count -= 1
    if count:
        ways.append(directions(way_key, params, count, **options))
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *ways)
    saved = time.monotonic()
    before = axes[0].size ** settings.dims - known

    def keep(now: Surface, left: int) -> None:
        nonlocal saved, before
        clock.advance((before - left) * work, what)
        before = left
        if left == 0 or time.monotonic() - saved > _SAVE_EVERY:
            points = {name: getattr(now, name) for name in ("loss", "accuracy", "computed")}
            partial.save({"how": how, "draw": draw}, points)
            saved = time.monotonic()

    # A point may take minutes: the same share, said again, tells that it goes on.
    with watched(Watch(lambda steps: clock.advance(0, what))):
        return surface(
            apply_fn,
            params,
            together,
            part.images,
            part.labels,
            axes=axes,
            attack=None if how == "none" else attack,
            key=jax.random.fold_in(key, streams.DRAWN_IMAGES),
            adversarial="centre" if how == "centre" else "anew",
            batch_size=run.experiment.config.evaluation.batch_size,
            start=start,
            on_points=keep,
        )


def _summary(loss: np.ndarray, accuracy: np.ndarray) -> dict[str, float]:
    """The numbers of a table: at the centre, and how far the loss changes."""
    middle = tuple(size // 2 for size in loss.shape[1:])
    change = np.abs(loss - loss[(slice(None), *middle)].reshape(-1, *[1] * len(middle)))
    inner = np.zeros(loss.shape[1:], bool)
    inner[(slice(1, -1),) * len(middle)] = True
    means = change.reshape(len(change), -1).mean(axis=1)
    edges = change[:, ~inner].mean(axis=1)
    return {
        "centre_loss": float(loss[(0, *middle)]),
        "centre_accuracy": float(accuracy[(0, *middle)]),
        "mean_change": float(means.mean()),
        "mean_change_spread": float(means.std()),
        "edge_change": float(edges.mean()),
        "edge_change_spread": float(edges.std()),
    }
