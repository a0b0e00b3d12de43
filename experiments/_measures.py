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

from awp_jax import streams
from awp_jax.attacks import transfer
from awp_jax.evaluation import PartialResults, attacks_by_name, evaluate
from experiments._scales import Scale

# As `awp-jax evaluate`: the same key, so the same numbers.
# Thousands of passes per image.
_COSTLY = ("spsa", "autoattack", "feature")
# Passes that gradients and verdicts of a randomised model average over; as AutoAttack's rand.
PASSES = 20


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
            random = {"eot": PASSES}
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
            jax.random.fold_in(opened.experiment.key, streams.RUN_EVALUATE),
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
class BestEpoch(Measure):
    """The epoch of the checkpoint ``best``, from 1.

    Attributes:
        percent: Whether it is given in percent of the epochs.
    """

    percent: bool = False

    def parts(self) -> tuple[Measure, ...]:
        return (Learning(),)

    def read(self, get: Callable[[Measure], Any]) -> Any:
        records = get(Learning())
        selection = "validation" if "validation" in records[0] else "test"
        best = max(records, key=lambda r: (r[selection]["robust_accuracy"], -r["epoch"]))["epoch"]
        return 100 * best / records[-1]["epoch"] if self.percent else best


@dataclasses.dataclass(frozen=True)
class Learning(Measure):
    """The evaluations during training, as ``metrics.jsonl`` has them."""

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {}

    def compute(self, opened: Any, scale: Scale) -> list[dict[str, Any]]:
        return [r for r in opened.metrics() if r["kind"] == "evaluation"]
