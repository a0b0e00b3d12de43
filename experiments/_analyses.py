"""Measures of the loss around the weights, and of the weights themselves."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from awp_jax import streams
from awp_jax.balls import WeightBall
from awp_jax.training import evaluation_attack
from experiments._measures import Measure, Unavailable, library
from experiments._scales import Scale


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
        factor: Of a network of the same function with larger weights, see ``rescaled``.
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

    def check(self) -> None:
        library("landscape", "directions", "adversarial_directions", "surface", "axis")

    def compute(self, opened: Any, scale: Scale) -> dict[str, Any]:
        module = library("landscape", "directions", "adversarial_directions", "surface", "axis")
        wanted = self.settings(scale)
        part = opened.part(self.part, wanted["examples"])
        apply_fn, params = opened.network(self.checkpoint, self.factor)
        key = jax.random.fold_in(opened.experiment.key, streams.RUN_LANDSCAPE)
        attack = evaluation_attack(opened.config, steps=scale_steps(scale, 10))
        count = wanted["directions"]
        scaled: dict[str, Any] = {"normalisation": self.normalisation}
        if self.normalisation == "layer":  # eq. 2 moves biases as well
            scaled["ball"] = WeightBall(1.0, mask=module.kernels_and_biases)
        if self.kind == "adversarial":
            ways = module.adversarial_directions(
                apply_fn, params, key, part.images, part.labels, attack, count, **scaled
            )
        else:
            ways = module.directions(key, params, count, **scaled)
        axis = module.axis(wanted["points"], self.extent)

        def surface(chosen, axes):
            found = module.surface(
                apply_fn,
                params,
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
class Rise(Measure):
    """How much a 1-D landscape rises above its centre, mean over the axis, in nats.

    Attributes:
        landscape: Of one dimension.
    """

    landscape: Landscape

    def parts(self) -> tuple[Measure, ...]:
        return (self.landscape,)

    def read(self, get: Callable[[Measure], Any]) -> float:
        loss = np.mean(get(self.landscape)["loss"], axis=0)
        return float(loss.mean() - loss[len(loss) // 2])


@dataclasses.dataclass(frozen=True)
class Flatness(Measure):
    """Average- or worst-case flatness in robust loss (Stutz et al. 2021, eqs. 3 and 5), in nats.

    Attributes:
        case: ``"average"`` (xi 0.5) or ``"worst"`` (xi 0.00075).
        checkpoint: As in ``Attacked``.
        part: ``"train"`` or ``"test"``.
        factor: As in ``Landscape``.
    """

    case: str = "average"
    checkpoint: str = "last"
    part: str = "test"
    factor: float | None = None

    def settings(self, scale: Scale) -> dict[str, Any]:
        most = min(1000, scale.examples or 1000)
        count = scale.draws if self.case == "average" else scale.restarts
        return {"examples": most, "count": count, "reference_restarts": scale.restarts}

    def check(self) -> None:
        library("landscape", "average_flatness", "worst_case_flatness")

    def compute(self, opened: Any, scale: Scale) -> float:
        module = library("landscape", "average_flatness", "worst_case_flatness")
        wanted = self.settings(scale)
        part = opened.part(self.part, wanted["examples"])
        apply_fn, params = opened.network(self.checkpoint, self.factor)
        measure, count = (
            (module.average_flatness, "draws")
            if self.case == "average"
            else (module.worst_case_flatness, "restarts")
        )
        steps = scale_steps(scale, 20)
        options = {} if self.case == "average" else {"steps": steps}
        found = measure(
            apply_fn,
            params,
            part.images,
            part.labels,
            jax.random.fold_in(opened.experiment.key, streams.RUN_LANDSCAPE),
            attack=evaluation_attack(opened.config, steps=steps, restarts=1),
            reference_restarts=wanted["reference_restarts"],
            batch_size=min(128, opened.config.evaluation.batch_size),
            **{count: wanted["count"]},
            **options,
        )
        return float(found.flatness)


@dataclasses.dataclass(frozen=True)
class Curvature(Measure):
    """The largest eigenvalue of the Hessian of the robust loss in all weights (test images).

    Attributes:
        checkpoint: As in ``Attacked``.
        factor: As in ``Landscape``.
    """

    checkpoint: str = "last"
    factor: float | None = None

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"examples": min(1000, scale.examples or 1000)}

    def check(self) -> None:
        library("landscape", "hessian_spectrum", "rescaled")

    def compute(self, opened: Any, scale: Scale) -> float:
        part = opened.part("test", self.settings(scale)["examples"])
        steps = scale_steps(scale, 20)
        found = library("landscape", "hessian_spectrum").hessian_spectrum(
            *opened.network(self.checkpoint, self.factor),
            part.images,
            part.labels,
            jax.random.fold_in(opened.experiment.key, streams.RUN_LANDSCAPE),
            attack=evaluation_attack(opened.config, steps=steps, restarts=1),
            batch_size=min(128, opened.config.evaluation.batch_size),
        )
        eigenvalue = float(found.eigenvalues[0])
        if math.isnan(eigenvalue):
            raise Unavailable(f"The Hessian at {self.checkpoint} has not converged.")
        return eigenvalue


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
            jax.random.fold_in(opened.experiment.key, streams.RUN_LANDSCAPE),
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
    """Attack steps of an analysis: fewer at ``smoke`` and ``trial``."""
    return 2 if scale.name in ("smoke", "trial") else steps
