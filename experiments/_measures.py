"""What is measured on a trained run: accuracy under attacks, landscapes, flatness, weights.

A measure is a plain value. Its result goes into the run directory as JSON, so that tables and
figures are made from files alone, and cells of other experiments that ask the same share it.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from awp_jax.attacks import transfer
from awp_jax.evaluation import PartialResults, attacks_by_name, evaluate
from awp_jax.training import evaluation_attack
from experiments._scales import Scale

# As `awp-jax evaluate`: the same key, so the same numbers.
_EVALUATION_KEY, _LANDSCAPE_KEY = 4, 5
# Thousands of passes per image.
_COSTLY = ("spsa", "autoattack", "feature")
# Passes that gradients and verdicts of a randomised model average over; as AutoAttack's rand.
_PASSES = 20


class Unavailable(ValueError):
    """The library has no such function, attack or checkpoint; the message is one sentence."""


def library(module: str, *names: str) -> Any:
    """A module of awp_jax that must have these names.

    Raises:
        Unavailable: When this version has it not.
    """
    try:
        found = importlib.import_module(f"awp_jax.{module}")
    except ModuleNotFoundError:
        raise Unavailable(f"awp_jax.{module} is not available in this version.") from None
    for name in names:
        if not hasattr(found, name):
            raise Unavailable(f"awp_jax.{module}.{name} is not available in this version.")
    return found


@dataclasses.dataclass(frozen=True)
class Measure:
    """Something measured on one checkpoint of a run."""

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
        """What the result depends on beside the run; another version has other settings."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ``Unavailable`` where this version of awp_jax cannot measure it."""

    def compute(self, opened: Any, scale: Scale) -> Any:
        """Measures; plain values for JSON.

        Args:
            opened: An ``experiments._runs.Opened``.
            scale: Of the experiment.
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
        checkpoint: ``"best"``, ``"last"``, or ``"40%"`` of the epochs.
        part: ``"train"`` or ``"test"``.
        examples: The first so many of the set; ``None`` for all (of the scale).
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

    def check(self) -> None:
        try:
            attacks_by_name([self.attack])
        except ValueError as error:
            raise Unavailable(str(error)) from None

    def compute(self, opened: Any, scale: Scale) -> dict[str, Any]:
        wanted, config = self.settings(scale), opened.config
        name = wanted["attack"]
        part = opened.part(self.part, wanted["examples"])
        norm = config.attack.norm
        epsilon = config.evaluation.epsilon or config.attack.epsilon
        options: dict[str, Any] = {
            "norm": norm,
            "epsilon": epsilon,
            "step_size": config.evaluation.step_size or config.attack.step_size,
            "restarts": wanted["restarts"] or config.evaluation.restarts,
        }
        random: dict[str, Any] = {}
        if getattr(opened.classifier, "is_random", False):
            random = {"eot": _PASSES}
        attacks = attacks_by_name([name], **options, **random)
        if self.surrogate:
            other = opened.sibling(self.surrogate)
            craft_on, attack = other.logits_fn("best"), attacks[name]

            def crafted(logits_fn, key, images, labels):
                return transfer(attack, craft_on, logits_fn, key, images, labels)

            attacks = {"clean": None, name: crafted}
        identity = {"measure": self.slug(), **wanted, "state": opened.identity(self.checkpoint)}
        found = evaluate(
            opened.logits_fn(self.checkpoint),
            jax.random.fold_in(opened.experiment.key, _EVALUATION_KEY),
            part.images,
            part.labels,
            attacks,
            norm=norm,
            epsilon=epsilon,
            batch_size=config.evaluation.batch_size,
            partial=PartialResults(opened.partial, identity),
            **random,
        ).attacks[name]
        stages = [{k: s[k] for k in ("name", "accuracy")} for s in found.get("stages", ())]
        kept = ("accuracy", "loss", "loss_correct", "loss_wrong", "examples", "seconds")
        return {k: found.get(k) for k in kept} | {"stages": stages, "epsilon": epsilon}

    def read(self, get: Callable[[Measure], Any]) -> Any:
        found = get(self)
        if self.kind in ("accuracy", "error"):
            percent = 100 * found["accuracy"]
            return percent if self.kind == "accuracy" else 100 - percent
        return found[self.kind]


@dataclasses.dataclass(frozen=True)
class Highest(Measure):
    """The highest of one measure over checkpoints: what the papers call best, attack by attack.

    Attributes:
        measure: Of any checkpoint.
        checkpoints: Those that are compared.
    """

    measure: Attacked
    checkpoints: tuple[str, ...]

    def parts(self) -> tuple[Measure, ...]:
        return tuple(dataclasses.replace(self.measure, checkpoint=c) for c in self.checkpoints)

    def read(self, get: Callable[[Measure], Any]) -> Any:
        return max(part.read(get) for part in self.parts())


@dataclasses.dataclass(frozen=True)
class Difference(Measure):
    """One measure minus another, as in the robust generalisation gap.

    Attributes:
        first: The minuend.
        second: What is taken away.
    """

    first: Measure
    second: Measure

    def parts(self) -> tuple[Measure, ...]:
        return (*self.first.parts(), *self.second.parts())

    def read(self, get: Callable[[Measure], Any]) -> Any:
        return self.first.read(get) - self.second.read(get)


@dataclasses.dataclass(frozen=True)
class Learning(Measure):
    """The evaluations during training, as ``metrics.jsonl`` has them."""

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {}

    def compute(self, opened: Any, scale: Scale) -> list[dict[str, Any]]:
        return [r for r in opened.metrics() if r["kind"] == "evaluation"]


@dataclasses.dataclass(frozen=True)
class Landscape(Measure):
    """Adversarial loss along directions in weight space (AWP, Algorithm 1), training images.

    Attributes:
        checkpoint: As in ``Attacked``.
        directions: How many 1-D curves; the scale may have fewer.
        dims: 1, or 2 for one surface over two directions.
        kind: ``"random"`` or ``"adversarial"``.
        normalisation: ``"filter"`` (AWP) or ``"layer"`` (Stutz et al.).
        extent: Largest coordinate, relative to the weights.
        part: ``"train"`` or ``"test"``.
    """

    checkpoint: str = "last"
    directions: int = 1
    dims: int = 1
    kind: str = "random"
    normalisation: str = "filter"
    extent: float = 1.0
    part: str = "train"

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {
            "points": scale.points if self.dims == 1 else scale.points_2d,
            "directions": min(self.directions, scale.directions) if self.dims == 1 else 2,
            "examples": scale.examples_landscape,
        }

    def check(self) -> None:
        library("landscape", "directions", "adversarial_directions", "surface", "axis")

    def compute(self, opened: Any, scale: Scale) -> dict[str, Any]:
        module = library("landscape", "directions", "adversarial_directions", "surface", "axis")
        wanted = self.settings(scale)
        part, state = opened.part(self.part, wanted["examples"]), opened.state(self.checkpoint)
        key = jax.random.fold_in(opened.experiment.key, _LANDSCAPE_KEY)
        apply_fn = opened.apply_fn(self.checkpoint)
        attack = evaluation_attack(opened.config, steps=scale_steps(scale, 10))
        count = wanted["directions"]
        scaled = {"normalisation": self.normalisation}
        if self.kind == "adversarial":
            ways = module.adversarial_directions(
                apply_fn, state.params, key, part.images, part.labels, attack, count, **scaled
            )
        else:
            ways = module.directions(key, state.params, count, **scaled)
        axis = module.axis(wanted["points"], self.extent)

        def surface(chosen, axes):
            found = module.surface(
                apply_fn,
                state.params,
                chosen,
                part.images,
                part.labels,
                axes=axes,
                attack=attack,
                key=key,
                batch_size=opened.config.evaluation.batch_size,
            )
            return np.asarray(found.loss).tolist()

        if self.dims == 2:
            return {"axis": axis.tolist(), "loss": surface(ways, [axis, axis])}
        curves = [
            surface(jax.tree.map(lambda d, i=i: d[i : i + 1], ways), [axis]) for i in range(count)
        ]
        return {"axis": axis.tolist(), "loss": curves}


@dataclasses.dataclass(frozen=True)
class Flatness(Measure):
    """Average- or worst-case flatness in robust loss (Stutz et al. 2021, eqs. 3 and 5), in nats.

    Attributes:
        case: ``"average"`` (xi 0.5) or ``"worst"`` (xi 0.00075).
        checkpoint: As in ``Attacked``.
        part: ``"train"`` or ``"test"``.
    """

    case: str = "average"
    checkpoint: str = "last"
    part: str = "test"

    def settings(self, scale: Scale) -> dict[str, Any]:
        most = min(1000, scale.examples or 1000)
        count = scale.draws if self.case == "average" else scale.restarts
        return {"examples": most, "count": count, "reference_restarts": scale.restarts}

    def check(self) -> None:
        library("landscape", "average_flatness", "worst_case_flatness")

    def compute(self, opened: Any, scale: Scale) -> float:
        module = library("landscape", "average_flatness", "worst_case_flatness")
        wanted = self.settings(scale)
        part, state = opened.part(self.part, wanted["examples"]), opened.state(self.checkpoint)
        measure, count = (
            (module.average_flatness, "draws")
            if self.case == "average"
            else (module.worst_case_flatness, "restarts")
        )
        steps = scale_steps(scale, 20)
        options = {} if self.case == "average" else {"steps": steps}
        found = measure(
            opened.apply_fn(self.checkpoint),
            state.params,
            part.images,
            part.labels,
            jax.random.fold_in(opened.experiment.key, _LANDSCAPE_KEY),
            attack=evaluation_attack(opened.config, steps=steps, restarts=1),
            reference_restarts=wanted["reference_restarts"],
            batch_size=min(128, opened.config.evaluation.batch_size),
            **{count: wanted["count"]},
            **options,
        )
        return float(found.flatness)


@dataclasses.dataclass(frozen=True)
class PerturbedLoss(Measure):
    """Adversarial loss under AWP and under random weight perturbation of growing size.

    Attributes:
        gammas: Relative sizes.
        checkpoint: As in ``Attacked``.
    """

    gammas: tuple[float, ...]
    checkpoint: str = "last"

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"examples": scale.examples_landscape, "draws": min(3, scale.draws)}

    def check(self) -> None:
        library("landscape", "perturbed_loss")

    def compute(self, opened: Any, scale: Scale) -> dict[str, Any]:
        wanted = self.settings(scale)
        part, state = opened.part("train", wanted["examples"]), opened.state(self.checkpoint)
        found = library("landscape", "perturbed_loss").perturbed_loss(
            opened.apply_fn(self.checkpoint),
            state.params,
            part.images,
            part.labels,
            jax.random.fold_in(opened.experiment.key, _LANDSCAPE_KEY),
            gammas=self.gammas,
            draws=wanted["draws"],
            attack=evaluation_attack(opened.config, steps=scale_steps(scale, 10)),
            batch_size=min(128, opened.config.evaluation.batch_size),
        )
        random = np.asarray(found.random)
        return {
            "gammas": list(self.gammas),
            "adversarial": np.asarray(found.adversarial).tolist(),
            "random": random.mean(axis=1).tolist(),
        }


@dataclasses.dataclass(frozen=True)
class Weights(Measure):
    """How the weights of the last convolution (or layer before the last) are spread.

    Attributes:
        checkpoint: As in ``Attacked``.
    """

    checkpoint: str = "last"

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"bins": 61}

    def check(self) -> None:
        library("landscape", "weight_histograms")

    def compute(self, opened: Any, scale: Scale) -> dict[str, Any]:
        # The tree is sorted by name, as the stages of these networks are.
        params = opened.state(self.checkpoint).params
        kernels = jax.tree_util.tree_leaves_with_path(params)
        shapes = {jax.tree_util.keystr(p, simple=True, separator="/"): w.shape for p, w in kernels}
        convolutions = [name for name, shape in shapes.items() if len(shape) == 4 and shape[0] > 1]
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        name = (convolutions or matrices)[-1]
        module = library("landscape", "weight_histograms")
        found = module.weight_histograms(params, bins=self.settings(scale)["bins"])[name]
        counts, edges = np.asarray(found.counts).tolist(), np.asarray(found.edges).tolist()
        return {"layer": name, "counts": counts, "edges": edges}


def scale_steps(scale: Scale, steps: int) -> int:
    """Attack steps of an analysis: fewer at ``smoke``."""
    return 2 if scale.name == "smoke" else steps
