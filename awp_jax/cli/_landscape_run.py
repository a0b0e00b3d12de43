"""What ``awp-jax landscape`` computes, run by run."""

import dataclasses
import pathlib
import time
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks, data, streams
from awp_jax.attacks import PGD
from awp_jax.cli._evaluate import method_name
from awp_jax.cli._flags import UsageError
from awp_jax.evaluation import PartialResults
from awp_jax.landscape import Surface, adversarial_directions, axis, directions, surface
from awp_jax.training import Run

# How many examples of a set, when not told.
_EXAMPLES = 1000
# Seconds between two savings of the points that are done.
_SAVE_EVERY = 1.0
_HOWS = {"anew": ("anew",), "centre": ("centre",), "both": ("anew", "centre"), "none": ("none",)}


class Clock(Protocol):
    """Who is told about progress."""

    def begin(self, what: str, known: float) -> None:
        """A surface begins, of which the work ``known`` was done before."""

    def advance(self, work: float) -> None:
        """So much more is done."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of the command; ``None`` is replaced by ``completed`` or by a run's config."""

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

    def completed(self) -> "Settings":
        """With defaults, after all checks that need no run.

        Raises:
            ValueError: For an unknown name, an even number of points, a range of 0.
        """
        if self.dims not in (1, 2):
            raise UsageError(f"--dims is {self.dims}, but 1 or 2 was expected.")
        checks.choice(self.directions, ("random", "adversarial"), "directions")
        checks.choice(self.set, ("train", "validation", "test"), "set")
        checks.choice(self.adversarial, _HOWS, "adversarial")
        random, flat = self.directions == "random", self.dims == 1
        full = dataclasses.replace(
            self,
            normalisation=self.normalisation or ("filter" if random else "layer"),
            points=self.points or (41 if flat else 21),
            extent=(1.0 if random else 0.02) if self.extent is None else self.extent,
            draws=self.draws or (3 if flat else 1),
        )
        checks.choice(full.normalisation, ("filter", "layer"), "normalisation")
        full.axis  # noqa: B018
        return full

    @property
    def axis(self) -> np.ndarray:
        """Coordinates of every direction."""
        assert self.points is not None and self.extent is not None
        return axis(self.points, self.extent)

    @property
    def name(self) -> str:
        """Of the files."""
        parts = ["landscape"]
        parts += ["2d"] if self.dims == 2 else []
        return "-".join(parts + (["adversarial"] if self.directions == "adversarial" else []))

    def attack(self, run: Run) -> PGD:
        """PGD with these settings, or those of the run's training attack."""
        a = run.experiment.config.attack
        steps = a.steps if self.steps is None else self.steps
        if steps < 1:
            raise UsageError(f"{run.workdir} was trained with {steps} attack steps: give --steps.")
        epsilon, size = self.epsilon or a.epsilon, self.step_size or a.step_size
        return PGD(epsilon, steps=steps, step_size=size, norm=a.norm, restarts=self.restarts)

    def images(self, run: Run) -> data.Dataset:
        """The examples that the loss is averaged over."""
        part = getattr(run.experiment.splits, self.set)
        if part is None:
            raise UsageError(f"{run.workdir} kept no validation images back.")
        if self.examples is not None and self.examples > len(part):
            raise UsageError(f"--examples is {self.examples}, but {self.set} has {len(part)}.")
        return data.subset(part, self.examples or _EXAMPLES)

    def passes(self, how: str) -> float:
        """Work of one point, in forward passes; a gradient is about two."""
        return 1.0 if how in ("centre", "none") else 1.0 + 2.0 * (self.steps or 10)

    @property
    def weight(self) -> float:
        """Work of one checkpoint."""
        assert self.draws is not None
        each = sum(self.passes(how) for how in _HOWS[self.adversarial])
        return each * self.draws * len(self.axis) ** self.dims


def compute(
    run: Run, which: Sequence[str], settings: Settings, directory: pathlib.Path, clock: Clock
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Landscapes of checkpoints of one run.

    Args:
        run: From ``awp_jax.training.open_run``.
        which: Names of checkpoints.
        settings: From ``Settings.completed``.
        directory: Where points that are done are kept.
        clock: Told about progress.

    Returns:
        ``(result, arrays)``: plain values for NAME.json, and the arrays of NAME.npz: ``axis``, and
        per checkpoint and way of making examples ``CHECKPOINT/HOW/loss`` and ``.../accuracy``, of
        shape ``[draws, points]`` or ``[draws, points, points]``.

    Raises:
        ValueError: For unknown names, more examples than there are, missing checkpoints.
    """
    config, part, attack = run.experiment.config, settings.images(run), settings.attack(run)
    described = {
        **dataclasses.asdict(settings),
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
            clock.begin(f"{run.workdir.name} {name}", settings.weight)
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
    clock.begin(f"{run.workdir.name} {name} {how} draw {draw + 1}", known * work)
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
        clock.advance((before - left) * work)
        before = left
        if left == 0 or time.monotonic() - saved > _SAVE_EVERY:
            points = {name: getattr(now, name) for name in ("loss", "accuracy", "computed")}
            partial.save({"how": how, "draw": draw}, points)
            saved = time.monotonic()

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
