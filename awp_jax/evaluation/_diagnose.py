"""Robust, or only hard to attack by gradients? Checks that tell the two apart."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import checks, results
from awp_jax.ascent import Watch, watched
from awp_jax.attacks import PGD, Square, cross_entropy, dlr, transfer
from awp_jax.attacks._gradient import model_key, with_key
from awp_jax.attacks._model import as_pytree_function, number_of_classes
from awp_jax.attacks._work import passes_per_step, work
from awp_jax.data import as_float
from awp_jax.evaluation._measure import measure
from awp_jax.evaluation._suspicions import (
    ENOUGH,
    Check,
    above_chance,
    averaging_wins,
    enough_examples,
    falls_to_zero,
    gradients,
    model_checks,
    never_rises,
    white_box_wins,
)
from awp_jax.panels import diagnosis_panels
from awp_jax.progress import Progress, Show, check_show
from awp_jax.random import example_keys

_FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
_STEPS = (1, 5, 20, 50)


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    """Whether robust accuracy by gradients can be trusted, and why.

    A model at chance level, or too few examples, fails as well: nothing can be trusted there.

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
        clean: Accuracy on clean images, in [0, 1].
        eot: Random passes that gradients and verdicts were averaged over; 0: deterministic.
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
    clean: float
    eot: int = 0

    @property
    def suspicious(self) -> bool:
        """Whether any check failed."""
        return not all(check.passed for check in self.checks)

    def verdict(self) -> str:
        """The verdict and its reasons, as text for a person."""
        failed = [check for check in self.checks if not check.passed]
        head = "No sign of gradient masking: the robust accuracy can be trusted as far as seen."
        few = [check for check in failed if check.name == ENOUGH]
        if failed and failed == few:
            head = "No verdict, there are too few examples; nothing else was found."
        elif failed:
            head = f"Do not trust the robust accuracy: {len(failed)} of {len(self.checks)} failed."
        lines = [f"{'ok  ' if c.passed else 'FAIL'}  {c.name}: {c.reason}" for c in self.checks]
        where = f"{self.norm} epsilon {self.epsilon:.6g}, {self.examples} examples"
        where += f", {self.eot} random passes averaged" if self.eot else ""
        left = self.by_epsilon[self.epsilons.index(self.epsilon)]
        lines.insert(0, f"accuracy: {self.clean:.1%} clean, {left:.1%} after PGD-20")
        return "\n".join([f"{head} ({where})", *lines])

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**dataclasses.asdict(self), "suspicious": self.suspicious}

    def save(self, path: Any) -> None:
        """Writes ``as_dict`` as JSON.

        Raises:
            ValueError: For a path that does not end in ``.json``.
        """
        results.save_plain(path, self.as_dict())

    def plot(self, axes: Any = None) -> Any:
        """Draws robust accuracy against the radius, and against the number of steps.

        Args:
            axes: Two matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The two axes, an array.
        """
        both = results.axes_or_new(axes, 2)
        diagnosis_panels(both[0], both[1], self.as_dict())
        return both

    def __repr__(self) -> str:
        return results.cut(self.verdict(), "print(found.verdict())")


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
    eot: int = 0,
    batch_size: int = 256,
    progress: Show = None,
) -> Diagnosis:
    """Tells gradient masking from robustness (Athalye et al. 2018; Carlini et al. 2019).

    Args:
        logits_fn: ``images -> logits [batch, classes]``, called eagerly now and then.
        key: One typed key.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1]; a few hundred.
        labels: int ``[examples]``.
        norm: ``"linf"`` or ``"l2"``.
        epsilon: Radius in pixel units, above 0.
        surrogate_fn: Another, deterministic model to transfer from; ``None`` leaves that check out.
        queries: Of the Square attack.
        eot: Above 0 for a randomised model, ``logits_fn(images, key)``: gradients and verdicts are
            averaged over so many passes, one-pass gradients take the place of Square, which cannot
            average, and the checks of logits look at one draw.
        batch_size: Examples per pass.
        progress: As in ``awp_jax.progress.Progress``; ``None`` for silence.

    Returns:
        A ``Diagnosis``.

    Raises:
        ValueError: For bad images, labels, norm, radius or ``progress``.
    """
    checks.choice(norm, ("linf", "l2"), "norm")
    check_show(progress)
    images, labels = np.asarray(as_float(np.asarray(images))), np.asarray(labels)
    checks.images_and_labels(images, labels)
    # Pixels span [0, 1]: a larger radius adds nothing.
    largest = 1.0 if norm == "linf" else float(np.sqrt(images[0].size))
    radius = float(checks.radius(epsilon, "epsilon", None))
    if not 0 < radius <= largest:
        raise ValueError(
            f"epsilon is {epsilon!r}, but a number above 0 and at most {largest:g}, which covers "
            f"all images in [0, 1], was expected for norm {norm!r}, such as "
            f"{'8/255' if norm == 'linf' else '0.5'}."
        )
    function = as_pytree_function(logits_fn)
    keys = example_keys(key, len(labels))
    classes = number_of_classes(function, images[:1], keys[0] if eot else None)
    checks.labels_below(labels, classes)

    # And the ball of all images, in which accuracy has to fall to zero.
    epsilons = sorted({min(f * radius, largest) for f in _FACTORS} | {largest})

    def pgd(size: float, steps: int) -> PGD:
        return PGD(size, steps=steps, norm=norm, eot=eot)

    square = Square(radius, queries, norm=norm)
    planned: list[Any] = [
        None,
        *(pgd(e, 20) for e in epsilons if e),
        *(pgd(radius, n) for n in _STEPS),
    ]
    planned += [PGD(radius, steps=_STEPS[-1], norm=norm, eot=1)] if eot else [square]
    planned += [pgd(radius, 20)] if surrogate_fn is not None else []
    total = len(labels) * sum(map(work, planned))
    shown = Progress(total, unit="pass", show=progress)

    def accuracy(attack: Any, what: str = "clean", like: Any = None) -> float:
        options: dict[str, Any] = {"key": keys, "batch_size": batch_size, "eot": eot}
        like = attack if like is None else like
        whole, told = len(labels) * work(like), 0.0
        share = min(batch_size, len(labels)) * passes_per_step(like)

        def stepped(steps: int) -> None:
            nonlocal told
            more = min(steps * share, whole - told)
            told += more
            shown.advance(more, what)

        with watched(Watch(stepped)):
            found = measure(function, images, labels, attack, **options).accuracy
        shown.advance(whole - told, what)
        return found

    clean = accuracy(None)
    # A ball of radius 0 holds the clean image alone.
    by_epsilon = [
        clean if e == 0 else accuracy(pgd(e, 20), f"PGD-20 at epsilon {e:.3g}") for e in epsilons
    ]
    by_steps = [accuracy(pgd(radius, steps), f"PGD-{steps}") for steps in _STEPS]
    # The better of PGD-20 and PGD-50: a masked gradient may fare worse with more steps.
    white = min(by_steps[-1], by_epsilon[epsilons.index(radius)])
    others = {} if eot else {"square": accuracy(square, "Square")}
    if surrogate_fn is not None:
        attack = PGD(radius, steps=20, norm=norm)
        others["transfer"] = accuracy(
            lambda f, k, x, y: transfer(attack, surrogate_fn, f, k, x, y, eot=eot),
            "transfer",
            attack,
        )
    # One batch: whether logits and gradients are sound shows on a few images.
    few, few_labels = jnp.asarray(images[:batch_size]), jnp.asarray(labels[:batch_size])
    found = [
        enough_examples(len(labels)),
        above_chance(clean, labels),
        falls_to_zero(epsilons, by_epsilon),
        never_rises("larger balls", epsilons, by_epsilon, ".4g"),
        never_rises("more steps", _STEPS, by_steps, "d"),
        *(white_box_wins(name, value, white) for name, value in others.items()),
    ]
    if eot:
        one = PGD(radius, steps=_STEPS[-1], norm=norm, eot=1)
        single = accuracy(one, "PGD of single passes")
        found.append(averaging_wins(single, by_steps[-1], eot))
        # One draw for all of these: they compare passes, which fresh draws would set apart.
        function = with_key(function, model_key(keys, 0))
    found += model_checks(function, few)
    found.append(gradients("cross-entropy", function, cross_entropy, few, few_labels))
    if classes >= 3:
        found.append(gradients("DLR", function, dlr, few, few_labels))
    shown.close()
    return Diagnosis(
        checks=tuple(found),
        epsilons=tuple(epsilons),
        by_epsilon=tuple(by_epsilon),
        steps=_STEPS,
        by_steps=tuple(by_steps),
        others=others,
        norm=norm,
        epsilon=radius,
        examples=len(labels),
        clean=clean,
        eot=eot,
    )
