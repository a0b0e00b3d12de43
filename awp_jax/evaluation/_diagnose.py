"""Robust, or only hard to attack by gradients? Checks that tell the two apart."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks
from awp_jax.attacks import PGD, Square, cross_entropy, dlr, transfer
from awp_jax.attacks._pgd import as_pytree_function
from awp_jax.attacks._stepped import number_of_classes
from awp_jax.data import as_float
from awp_jax.evaluation._measure import measure

# Sampling noise that no check calls a finding, as a share of the examples.
_SLACK = 0.02
_FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
_STEPS = (1, 5, 20, 50)


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was looked at.
        passed: Whether it found nothing wrong.
        reason: One sentence with the numbers.
    """

    name: str
    passed: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Whether robust accuracy by gradients can be trusted, and why.

    Attributes:
        checks: All that were made.
        epsilons: Radii of the curve, pixel units.
        by_epsilon: Robust accuracy at each of them, in [0, 1].
        steps: Numbers of steps of the other curve.
        by_steps: Robust accuracy (PGD) after each of them.
        others: Robust accuracy by name of the black-box attacks: "square", "transfer".
        norm: Of the ball.
        epsilon: Radius, pixel units.
        examples: Number of images.
    """

    checks: tuple[Check, ...]
    epsilons: tuple[float, ...]
    by_epsilon: tuple[float, ...]
    steps: tuple[int, ...]
    by_steps: tuple[float, ...]
    others: dict[str, float]
    norm: str
    epsilon: float
    examples: int

    @property
    def suspicious(self) -> bool:
        """Whether any check failed."""
        return not all(check.passed for check in self.checks)

    def verdict(self) -> str:
        """The verdict and its reasons, as text for a person."""
        failed = [check for check in self.checks if not check.passed]
        head = "No sign of gradient masking: the robust accuracy can be trusted as far as seen."
        if failed:
            head = f"Do not trust the robust accuracy: {len(failed)} of {len(self.checks)} failed."
        lines = [f"{'ok  ' if c.passed else 'FAIL'}  {c.name}: {c.reason}" for c in self.checks]
        where = f"{self.norm} epsilon {self.epsilon:.6g}, {self.examples} examples"
        return "\n".join([f"{head} ({where})", *lines])

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**dataclasses.asdict(self), "suspicious": self.suspicious}


def diagnose(
    logits_fn: Callable,
    key: jax.Array,
    images: Any,
    labels: Any,
    *,
    norm: str = "linf",
    epsilon: Any = 8 / 255,
    surrogate_fn: Callable | None = None,
    queries: int = 1000,
    batch_size: int = 256,
) -> Diagnosis:
    """Tells gradient masking from robustness (Athalye et al. 2018; Carlini et al. 2019).

    Args:
        logits_fn: ``images -> logits [batch, classes]``, called eagerly now and then.
        key: One typed key.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1]; a few hundred.
        labels: int ``[examples]``.
        norm: ``"linf"`` or ``"l2"``.
        epsilon: Radius in pixel units, above 0.
        surrogate_fn: Another model to transfer from; ``None`` leaves that check out.
        queries: Of the Square attack.
        batch_size: Examples per pass.

    Returns:
        A ``Diagnosis``.

    Raises:
        ValueError: For bad images, labels, norm or radius.
    """
    checks.choice(norm, ("linf", "l2"), "norm")
    radius = float(checks.radius(epsilon, "epsilon", norm))
    if not radius > 0:
        raise ValueError("epsilon is 0: there is nothing to diagnose.")
    images, labels = np.asarray(as_float(np.asarray(images))), np.asarray(labels)
    checks.images_and_labels(images, labels)
    function = as_pytree_function(logits_fn)
    classes = number_of_classes(function, images[:1])

    def accuracy(attack: Any) -> float:
        found = measure(function, images, labels, attack, key=key, batch_size=batch_size)
        return found.accuracy

    def pgd(size: float, steps: int) -> PGD:
        return PGD(size, steps, norm=norm)

    clean = accuracy(None)
    # Pixels span [0, 1]: an Linf radius above 1 adds nothing.
    largest = 1.0 if norm == "linf" else float(np.sqrt(images[0].size))
    epsilons = sorted({min(f * radius, largest) for f in _FACTORS} | {largest})
    by_epsilon = [clean if e == 0 else accuracy(pgd(e, 20)) for e in epsilons]
    by_steps = [accuracy(pgd(radius, steps)) for steps in _STEPS]
    white = min(by_steps[-1], by_epsilon[epsilons.index(radius)])
    others = {"square": accuracy(Square(radius, queries, norm))}
    if surrogate_fn is not None:
        attack = pgd(radius, 20)
        others["transfer"] = accuracy(lambda f, k, x, y: transfer(attack, surrogate_fn, f, k, x, y))
    few, few_labels = jnp.asarray(images[:batch_size]), jnp.asarray(labels[:batch_size])
    found = [
        _falls_to_zero(epsilons, by_epsilon),
        _never_rises("larger balls", epsilons, by_epsilon, ".4g"),
        _never_rises("more steps", _STEPS, by_steps, "d"),
        *(_white_box_wins(name, value, white) for name, value in others.items()),
        *_model_checks(function, few),
        _gradients("cross-entropy", function, cross_entropy, few, few_labels),
    ]
    if classes >= 3:
        found.append(_gradients("DLR", function, dlr, few, few_labels))
    return Diagnosis(
        tuple(found),
        tuple(epsilons),
        tuple(by_epsilon),
        _STEPS,
        tuple(by_steps),
        others,
        norm,
        radius,
        len(labels),
    )


def _falls_to_zero(epsilons, accuracies) -> Check:
    reason = f"{accuracies[-1]:.1%} left at epsilon {epsilons[-1]:.4g}, where any image can be made"
    return Check("accuracy falls to zero", accuracies[-1] <= _SLACK, reason)


def _never_rises(name, places, accuracies, form) -> Check:
    rises = np.diff(accuracies)
    worst = int(rises.argmax())
    passed = bool(rises[worst] <= _SLACK)
    reason = "accuracy never rises along " + ", ".join(format(p, form) for p in places)
    if not passed:
        reason = (
            f"accuracy rises from {accuracies[worst]:.1%} at {places[worst]:{form}} to "
            f"{accuracies[worst + 1]:.1%} at {places[worst + 1]:{form}}"
        )
    return Check(f"{name} never help the model", passed, reason)


def _white_box_wins(name, black, white) -> Check:
    reason = f"PGD leaves {white:.1%}, {name} leaves {black:.1%}"
    return Check(f"gradients beat {name}", black >= white - _SLACK, reason)


def _model_checks(function, images) -> list[Check]:
    first, second = (np.asarray(function(images), np.float64) for _ in range(2))
    spread = max(float(np.abs(first).max()), 1e-30)
    difference = float(np.abs(first - second).max())
    alone = np.asarray(function(images[:1]), np.float64)[0]
    batch = float(np.abs(alone - first[0]).max())
    ones = np.allclose(first.sum(1), 1, atol=1e-3) and first.min() >= 0
    top = np.sort(first, axis=1)
    gaps = top[:, -1] - top[:, -2]
    # Above a gap of 16.6 nats float32 rounds the probability of the label to 1, and the gradient
    # of the cross-entropy loses its bits.
    lost = float(np.mean(gaps > 16.6))
    ulp = float(np.median(np.spacing(np.abs(top[:, -1]).astype(np.float32))))
    dtype = function(images[:1]).dtype
    precise = lost <= _SLACK and ulp < 1e-4 and jnp.finfo(dtype).bits >= 32
    return [
        Check(
            "the model is deterministic",
            difference <= 1e-5 * spread,
            f"the same images twice: logits differ by {difference:.3g}",
        ),
        Check(
            "an example does not depend on its batch",
            batch <= 1e-3 * spread,
            f"alone and in a batch (BatchNorm in train mode?): logits differ by {batch:.3g}",
        ),
        Check(
            "outputs are logits",
            not ones,
            "rows add up to 1: these are probabilities"
            if ones
            else f"they lie in [{first.min():.3g}, {first.max():.3g}]",
        ),
        Check(
            "float precision suffices",
            bool(precise),
            f"{dtype}; the loss underflows (label probability rounds to 1) on {lost:.0%} of images",
        ),
    ]


def _gradients(name, function, loss, images, labels) -> Check:
    def total(x):
        return loss(function(x), labels).sum()

    gradient = np.asarray(jax.grad(total)(images)).reshape(len(labels), -1)
    right = np.asarray(function(images).argmax(1) == labels)
    gradient = gradient[right] if right.any() else gradient
    bad = float(np.mean(~np.isfinite(gradient).all(1) | (np.abs(gradient).max(1) == 0)))
    reason = f"zero or not finite on {bad:.0%} of the images that are classified correctly"
    return Check(f"gradients of the {name} loss", bad <= _SLACK, reason)
