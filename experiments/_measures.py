"""What is measured on a trained run: accuracy under attacks, landscapes, flatness, weights.

A measure is a plain value. Its result goes into the run directory as JSON, so that tables and
figures are made from files alone, and cells of other experiments that ask the same share it.
"""

import dataclasses
import math
import operator
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from awp_jax import landscape, runs, streams
from awp_jax.balls import WeightBall
from awp_jax.training import evaluation_attack, read_metrics
from experiments._scales import Scale

# Thousands of passes per image.
_COSTLY = ("spsa", "autoattack", "feature")


class NotAvailable(ValueError):
    """What a run cannot give, such as a Hessian that has not converged; one sentence."""


class Bench(NamedTuple):
    """What a measure works on.

    Attributes:
        run: Trained to its end.
        scale: Of the experiment.
        folder: Where parts of an unfinished evaluation lie.
        trained: From another cell's name to its run directory, trained to its end.
    """

    run: runs.Run
    scale: Scale
    folder: pathlib.Path
    trained: Callable[[str], pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Measure:
    """Something measured on a run.

    In all of them ``checkpoint`` is ``"best"``, ``"last"``, or ``"40%"`` of the epochs; ``part`` is
    ``"train"`` or ``"test"``; ``factor`` is of a network of the same function with weights so many
    times as large, ``None`` for the network itself.
    """

    def parts(self) -> tuple["Measure", ...]:
        """The measures whose results this one reads."""
        return (self,)

    def slug(self) -> str:
        """A file name, unique among measures."""
        fields = [getattr(self, f.name) for f in dataclasses.fields(self) if f.compare]
        values = [str(v) for v in fields if v not in (None, "", 0)]
        text = "-".join([type(self).__name__.lower(), *values])
        return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")

    def settings(self, scale: Scale) -> dict[str, Any]:
        """What the scale decides; a result of other settings is not taken."""
        return {}

    def compute(self, bench: Bench) -> Any:
        """Measures; plain values for JSON.

        Raises:
            NotAvailable: For what this run cannot give.
        """
        raise NotImplementedError

    def read(self, get: Callable[["Measure"], Any]) -> Any:
        """The value, given a function from a measure to its result."""
        return get(self)


@dataclasses.dataclass(frozen=True)
class Attacked(Measure):
    """Accuracy, error or loss of one checkpoint under one attack.

    Attributes:
        attack: Of ``awp_jax.evaluation.attacks_by_name``, at the paper's settings.
        examples: So many of the set; ``None`` for all (of the scale).
        restarts: Of PGD and CW; 0 for the config's.
        surrogate: Name of the cell on whose model the attack is made; empty: on the model itself.
        kind: ``"accuracy"`` and ``"error"`` in percent, ``"loss"``, ``"loss_correct"`` and
            ``"loss_wrong"`` (of what is right and wrong on clean images) in nats.
    """

    attack: str
    checkpoint: str = "best"
    part: str = "test"
    examples: int | None = None
    restarts: int = 0
    surrogate: str = ""
    kind: str = dataclasses.field(default="accuracy", compare=False)

    def settings(self, scale: Scale) -> dict[str, Any]:
        most = scale.train_examples if self.part == "train" else scale.examples
        costly = scale.examples_costly if self.attack.split("-")[0] in _COSTLY else None
        counts = [n for n in (self.examples, most, costly) if n is not None]
        restarts = min(self.restarts, scale.restarts)
        attack = scale.attack(self.attack)
        return {"attack": attack, "examples": min(counts, default=None), "restarts": restarts}

    def compute(self, bench: Bench) -> dict[str, Any]:
        run, wanted = bench.run, self.settings(bench.scale)
        which = _checkpoint(run.config, self.checkpoint)
        values = run.evaluate(
            attacks=[wanted["attack"]],
            checkpoints=[which],
            sets=[self.part],
            examples=len(run.data(self.part, most=wanted["examples"])),
            restarts=wanted["restarts"] or None,
            surrogate=str(bench.trained(self.surrogate)) if self.surrogate else None,
            folder=bench.folder,
            progress=None,
        ).values
        # On a surrogate the name goes on with the surrogate's.
        measured = values["checkpoints"][which][self.part].items()
        found = next(row for name, row in measured if name.split(" ")[0] == wanted["attack"])
        kept = ("accuracy", "loss", "loss_correct", "loss_wrong", "examples")
        return {key: found.get(key) for key in kept} | {"epsilon": values["epsilon"]}

    def read(self, get: Callable[[Measure], Any]) -> Any:
        found = get(self)
        if self.kind in ("accuracy", "error"):
            percent = 100 * found["accuracy"]
            return percent if self.kind == "accuracy" else 100 - percent
        return found[self.kind]


@dataclasses.dataclass(frozen=True)
class Made(Measure):
    """A function of other measures; ``None``: all their values."""

    function: Callable[..., Any] | None
    of: tuple[Measure, ...]

    def parts(self) -> tuple[Measure, ...]:
        return tuple(part for measure in self.of for part in measure.parts())

    def read(self, get: Callable[[Measure], Any]) -> Any:
        values = tuple(measure.read(get) for measure in self.of)
        return values if self.function is None else self.function(*values)


def pair(x: Measure, y: Measure) -> Made:
    """Both, as a place in a plane."""
    return Made(None, (x, y))


def highest(measure: Attacked, checkpoints: tuple[str, ...]) -> Made:
    """The highest over checkpoints: what the papers call best, attack by attack."""
    return Made(max, tuple(dataclasses.replace(measure, checkpoint=c) for c in checkpoints))


def gap(attack: str, checkpoint: str = "last") -> Made:
    """Training minus test accuracy under an attack, in points."""
    parts = (Attacked(attack, checkpoint, part) for part in ("train", "test"))
    return Made(operator.sub, tuple(parts))


@dataclasses.dataclass(frozen=True)
class Learning(Measure):
    """The evaluations during training, as ``metrics.jsonl`` has them."""

    def compute(self, bench: Bench) -> list[dict[str, Any]]:
        return [r for r in read_metrics(bench.run.workdir) if r["kind"] == "evaluation"]


def best_epoch(records: list[dict[str, Any]]) -> int:
    """The epoch of the checkpoint ``best``, from 1, as ``Learning`` says."""
    selection = "validation" if "validation" in records[0] else "test"
    best = max(records, key=lambda r: (r[selection]["robust_accuracy"], -r["epoch"]))
    return best["epoch"]


BEST_EPOCH = Made(best_epoch, (Learning(),))


@dataclasses.dataclass(frozen=True)
class Landscape(Measure):
    """Adversarial loss along directions in weight space (AWP, Algorithm 1).

    Attributes:
        directions: How many 1-D curves; the scale may have fewer.
        dims: 1, or 2 for one surface over two directions.
        kind: ``"random"`` or ``"adversarial"``.
        normalisation: ``"filter"`` (AWP) or ``"layer"`` (Stutz et al.).
        extent: Largest coordinate, relative to the weights.
    """

    checkpoint: str = "last"
    directions: int = 1
    dims: int = 1
    kind: str = "random"
    normalisation: str = "filter"
    extent: float = 1.0
    part: str = "train"
    factor: float | None = None

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {
            "points": scale.points if self.dims == 1 else scale.points_2d,
            "directions": min(self.directions, scale.directions) if self.dims == 1 else 2,
            "examples": scale.examples_landscape,
        }

    def compute(self, bench: Bench) -> dict[str, Any]:
        wanted, config = self.settings(bench.scale), bench.run.config
        apply_fn, params, *images, key = _network(self, bench, wanted["examples"])
        attack = evaluation_attack(config, steps=bench.scale.steps(10))
        scaled: dict[str, Any] = {"normalisation": self.normalisation}
        if self.normalisation == "layer":  # eq. 2 moves biases as well
            scaled["ball"] = WeightBall(1.0, mask=landscape.kernels_and_biases)
        count = wanted["directions"]
        if self.kind == "adversarial":
            ascent = (apply_fn, params, key, *images, attack, count)
            ways = landscape.adversarial_directions(*ascent, **scaled)
        else:
            ways = landscape.directions(key, params, count, **scaled)
        axis = landscape.axis(wanted["points"], self.extent)
        judged = {"attack": attack, "key": key, "batch_size": config.evaluation.batch_size}

        def surface(chosen: Any) -> Any:
            axes = [axis] * self.dims
            found = landscape.surface(apply_fn, params, chosen, *images, axes=axes, **judged)
            return np.asarray(found.loss).tolist()

        each = [jax.tree.map(lambda d, i=i: d[i : i + 1], ways) for i in range(count)]
        loss = surface(ways) if self.dims == 2 else [surface(way) for way in each]
        return {"axis": axis.tolist(), "loss": loss}


def rise(found: dict[str, Any]) -> float:
    """How much a 1-D ``Landscape`` rises above its centre, mean over the axis, in nats."""
    loss = np.mean(found["loss"], axis=0)
    return float(loss.mean() - loss[len(loss) // 2])


@dataclasses.dataclass(frozen=True)
class Flatness(Measure):
    """Flatness in robust loss (Stutz et al. 2021, eqs. 3 and 5), in nats.

    Of the case ``"average"`` (xi 0.5) or ``"worst"`` (xi 0.00075).
    """

    case: str = "average"
    checkpoint: str = "last"
    part: str = "test"
    factor: float | None = None

    def settings(self, scale: Scale) -> dict[str, Any]:
        most = min(1000, scale.examples or 1000)
        count = scale.draws if self.case == "average" else scale.restarts
        return {"examples": most, "count": count, "reference_restarts": scale.restarts}

    def compute(self, bench: Bench) -> float:
        wanted, steps = self.settings(bench.scale), bench.scale.steps(20)
        options = _judged(bench, steps, restarts=1)
        options["reference_restarts"] = wanted["reference_restarts"]
        function: Callable[..., Any] = landscape.average_flatness
        if self.case == "worst":
            function = landscape.worst_case_flatness
            options |= {"restarts": wanted["count"], "steps": steps}
        else:
            options["draws"] = wanted["count"]
        return float(function(*_network(self, bench, wanted["examples"]), **options).flatness)


@dataclasses.dataclass(frozen=True)
class Curvature(Measure):
    """The largest eigenvalue of the Hessian of the robust loss in all weights (test images)."""

    checkpoint: str = "last"
    factor: float | None = None

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"examples": min(1000, scale.examples or 1000)}

    def compute(self, bench: Bench) -> float:
        network = _network(self, bench, self.settings(bench.scale)["examples"])
        options = _judged(bench, bench.scale.steps(20), restarts=1)
        eigenvalue = float(landscape.hessian_spectrum(*network, **options).eigenvalues[0])
        if math.isnan(eigenvalue):
            raise NotAvailable(f"The Hessian at {self.checkpoint} has not converged.")
        return eigenvalue


@dataclasses.dataclass(frozen=True)
class PerturbedLoss(Measure):
    """Adversarial loss under AWP and under random weight perturbation, training images.

    Attributes:
        gammas: Relative sizes; all are measured together.
        kind: ``"random"`` or ``"adversarial"``: which is read.
        gamma: At which size.
    """

    gammas: tuple[float, ...]
    checkpoint: str = "last"
    kind: str = dataclasses.field(default="random", compare=False)
    gamma: float = dataclasses.field(default=0.0, compare=False)

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"examples": scale.examples_landscape, "draws": min(3, scale.draws)}

    def compute(self, bench: Bench) -> dict[str, Any]:
        wanted = self.settings(bench.scale)
        found = landscape.perturbed_loss(
            *_network(self, bench, wanted["examples"], "train"),
            gammas=self.gammas,
            draws=wanted["draws"],
            **_judged(bench, bench.scale.steps(10)),
        )
        return {
            "gammas": list(self.gammas),
            "adversarial": np.asarray(found.adversarial).tolist(),
            "random": np.asarray(found.random).mean(axis=1).tolist(),
        }

    def read(self, get: Callable[[Measure], Any]) -> float:
        found = get(self)
        return found[self.kind][found["gammas"].index(self.gamma)]


@dataclasses.dataclass(frozen=True)
class Weights(Measure):
    """How the weights of the last convolution (or layer before the last) are spread."""

    checkpoint: str = "last"

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"bins": 61}

    def compute(self, bench: Bench) -> dict[str, Any]:
        # The tree is sorted by name, as the stages of these networks are.
        params = bench.run.restore(_checkpoint(bench.run.config, self.checkpoint))[0].params
        kernels = jax.tree_util.tree_leaves_with_path(params)
        shapes = {jax.tree_util.keystr(p, simple=True, separator="/"): w.shape for p, w in kernels}
        convolutions = [name for name, shape in shapes.items() if len(shape) == 4 and shape[0] > 1]
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        name = (convolutions or matrices)[-1]
        found = landscape.weight_histograms(params, **self.settings(bench.scale))[name]
        counts, edges = np.asarray(found.counts).tolist(), np.asarray(found.edges).tolist()
        return {"layer": name, "counts": counts, "edges": edges}


def _checkpoint(config: ConfigDict, name: str) -> str:
    """What ``Run.restore`` calls a checkpoint."""
    if name == "last" and config.averaging.name != "none":
        return "average"  # the model that a run with SWA ends with
    if not name.endswith("%"):
        return name
    return f"epoch-{max(config.epochs * int(name[:-1]) // 100, 1)}"


def _network(measure: Any, bench: Bench, examples: int, part: str = "test") -> tuple[Any, ...]:
    """What every function of ``awp_jax.landscape`` begins with: network, images, labels, key."""
    run, factor = bench.run, getattr(measure, "factor", None)
    state, _ = run.restore(_checkpoint(run.config, measure.checkpoint))
    params, statistics = state.params, state.batch_stats
    classifier = run.experiment.classifier
    if factor is not None:
        try:
            params, statistics = landscape.rescaled(classifier, params, statistics, factor)
        except ValueError as error:  # an architecture without a network of the same function
            raise NotAvailable(str(error)) from None
    chosen = run.data(getattr(measure, "part", part), most=examples)
    key = jax.random.fold_in(run.experiment.key, streams.RUN_LANDSCAPE)
    return classifier.apply_fn(statistics), params, chosen.images, chosen.labels, key


def _judged(bench: Bench, steps: int, **changes: Any) -> dict[str, Any]:
    """The attack and the batches by which a loss around the weights is measured."""
    config = bench.run.config
    attack = evaluation_attack(config, steps=steps, **changes)
    return {"attack": attack, "batch_size": min(128, config.evaluation.batch_size)}
