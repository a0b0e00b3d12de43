"""The single checks of a diagnosis: each looks at one way in which robustness misleads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# Sampling noise that no check calls a finding, as a share of the examples.
SLACK = 0.02
# Models that fit their data well are that sure of some images; of most, only scaled logits are.
CONFIDENT = 0.25
# With fewer examples a single one is more than that.
FEWEST = 50
ENOUGH = "there are enough examples"


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


def enough_examples(examples: int) -> Check:
    """Whether one example weighs less than what is called noise."""
    reason = f"{examples} of them; below {FEWEST} one example is more than the noise allowed for"
    return Check(ENOUGH, examples >= FEWEST, reason)


def above_chance(clean: float, labels: np.ndarray) -> Check:
    """Whether there is anything to be robust about: the model beats naming one class."""
    chance = float(np.bincount(labels).max()) / len(labels)
    # Three standard deviations of a share of this many examples.
    least = chance + 3 * float(np.sqrt(chance * (1 - chance) / len(labels)))
    reason = f"{clean:.1%} of clean images are right; always naming one class gives {chance:.1%}"
    return Check("clean accuracy is above chance", clean > min(least, 0.999), reason)


def falls_to_zero(epsilons, accuracies) -> Check:
    """In a ball that holds every image nothing can be robust."""
    reason = f"{accuracies[-1]:.1%} left at epsilon {epsilons[-1]:.4g}, where any image can be made"
    return Check("accuracy falls to zero", accuracies[-1] <= SLACK, reason)


def never_rises(name, places, accuracies, form) -> Check:
    """A larger ball, or more steps, never help the model."""
    rises = np.diff(accuracies)
    worst = int(rises.argmax())
    passed = bool(rises[worst] <= SLACK)
    reason = "accuracy never rises along " + ", ".join(format(p, form) for p in places)
    if not passed:
        reason = (
            f"accuracy rises from {accuracies[worst]:.1%} at {places[worst]:{form}} to "
            f"{accuracies[worst + 1]:.1%} at {places[worst + 1]:{form}}"
        )
    return Check(f"{name} never help the model", passed, reason)


def white_box_wins(name, black, white) -> Check:
    """Gradients do at least as well as an attack that has none."""
    reason = f"PGD leaves {white:.1%}, {name} leaves {black:.1%}"
    return Check(f"gradients beat {name}", black >= white - SLACK, reason)


def averaging_wins(single, averaged, passes) -> Check:
    """Of a randomised model: the average gradient is the stronger attack."""
    reason = f"{passes} passes per gradient leave {averaged:.1%}, one leaves {single:.1%}"
    return Check("averaged gradients beat single ones", averaged <= single + SLACK, reason)


def model_checks(function, images) -> list[Check]:
    """Determinism, examples on their own, logits, precision, by looking at logits.

    Args:
        function: ``images -> logits``; of a randomised model, with one key bound to it.
        images: float ``[batch, height, width, channels]`` in [0, 1].
    """
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
    precise = lost <= CONFIDENT and ulp < 1e-4 and jnp.finfo(dtype).bits >= 32
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


def gradients(name, function, loss, images, labels) -> Check:
    """Whether the gradient of ``loss`` says anything, over images that are classified right."""

    def total(x):
        return loss(function(x), labels).sum()

    gradient = np.asarray(jax.grad(total)(images)).reshape(len(labels), -1)
    right = np.asarray(function(images).argmax(1) == labels)
    gradient = gradient[right] if right.any() else gradient
    bad = float(np.mean(~np.isfinite(gradient).all(1) | (np.abs(gradient).max(1) == 0)))
    reason = f"zero or not finite on {bad:.0%} of the images that are classified correctly"
    return Check(f"gradients of the {name} loss", bad <= SLACK, reason)
