"""What is ascended and what is descended: natural training, AT, TRADES and MART."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.attacks import cross_entropy, kl_divergence, largest_wrong

CLEAN, ADVERSARIAL = "clean", "adversarial"


@dataclasses.dataclass(frozen=True)
class Objective:
    """One method of adversarial training.

    Attributes:
        name: As in configs.
        inputs: Which images the loss needs a forward pass of: of ``"clean"``, ``"adversarial"``, in
            this order.
        loss: ``(logits by input, labels) -> [batch]``: what the weights descend, and what the
            weight perturbation ascends.
        attack_loss: ``(logits, labels, clean logits or None) -> [batch]``: what the input adversary
            ascends; ``None`` for no attack.
        attack_uses_clean_logits: Whether ``attack_loss`` needs the logits of the clean images.
        attack_batch_norm: The BatchNorm mode of the released attack: ``"batch"`` or ``"running"``.
        start: The released start of the attack, see ``awp_jax.attacks.PGD``.
        attacks_its_loss: Whether ``attack_loss`` is what the weights ascend, on the same images.
        rotation_weight: Of the self-supervised loss that is added, see ``self_supervised``.
    """

    name: str
    inputs: tuple[str, ...]
    loss: Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]
    attack_loss: Callable[..., jax.Array] | None
    attack_uses_clean_logits: bool = False
    attack_batch_norm: str = "batch"
    start: str = "uniform"
    attacks_its_loss: bool = False
    rotation_weight: float = 0.0

    def __post_init__(self) -> None:
        if tuple(self.inputs) not in ((CLEAN,), (ADVERSARIAL,), (CLEAN, ADVERSARIAL)):
            raise ValueError(
                f"inputs of objective {self.name!r} are {self.inputs!r}, but ('clean',), "
                "('adversarial',) or both, in this order, were expected."
            )


def check_losses(losses: Any, batch: int, what: str) -> jax.Array:
    """``losses`` when they are one float for each example: sums and means would broadcast.

    Raises:
        ValueError: Otherwise; shapes are known before anything is compiled.
    """
    shape, dtype = jnp.shape(losses), jnp.result_type(losses)
    if shape != (batch,) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{what} is {dtype}{list(shape)}, but one float for each of {batch} examples was "
            "expected: neither their sum nor their mean."
        )
    return losses


def natural() -> Objective:
    """Ordinary training on clean images: cross-entropy, no adversary."""
    return Objective(
        name="natural",
        inputs=(CLEAN,),
        loss=lambda logits, labels: cross_entropy(logits[CLEAN], labels),
        attack_loss=None,
    )


# One function for AT and MART, which takes the clean logits that only TRADES asks for.
def _attack_cross_entropy(logits, labels, clean_logits):
    del clean_logits
    return cross_entropy(logits, labels)


def at() -> Objective:
    """Adversarial training (Madry et al. 2018; AWP eq. 1): cross-entropy on adversarial images.

    The attack uses batch statistics and starts uniformly in the ball (Rice et al. 2020,
    ``train_cifar.py``, which AT-AWP builds on).
    """
    return Objective(
        name="at",
        inputs=(ADVERSARIAL,),
        loss=lambda logits, labels: cross_entropy(logits[ADVERSARIAL], labels),
        attack_loss=_attack_cross_entropy,
        attacks_its_loss=True,
    )


def trades(beta: float = 6.0) -> Objective:
    """TRADES (Zhang et al. 2019; AWP eq. 2): CE(clean) + beta * KL(clean || adversarial).

    The attack ascends the KL in evaluation mode from x + 0.001 * N(0, 1) (released ``trades.py``).
    Gradients of the weights flow through both arguments of the KL.

    Args:
        beta: Weight of the KL, >= 0; 6 for CIFAR-10 and 1 for MNIST in the released code.

    Example:
        >>> from awp_jax import objectives
        >>> objectives.trades(beta=6.0).name
        'trades'
    """
    beta = _weight(beta, "beta")

    def loss(logits, labels):
        # No stop_gradient on either side, as released: the KL moves the clean logits as well.
        robust = kl_divergence(logits[CLEAN], logits[ADVERSARIAL])
        return cross_entropy(logits[CLEAN], labels) + beta * robust

    return Objective(
        name="trades",
        inputs=(CLEAN, ADVERSARIAL),
        loss=loss,
        attack_loss=lambda logits, labels, clean: kl_divergence(clean, logits),
        attack_uses_clean_logits=True,
        attack_batch_norm="running",
        start="gaussian",
    )


def boosted_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The BCE of MART (AWP eq. 3), with the constants of the released ``mart.py``.

    ``CE - log(1.0001 - max_{k != y} p_k + 1e-12)``, so it stays finite at probability 1.

    Args:
        logits: float ``[batch, classes]``.
        labels: int ``[batch]``.

    Returns:
        ``[batch]``, in nats.
    """
    # 1.0001 keeps the logarithm finite at probability 1; the released code adds 1e-12 as well.
    wrong = largest_wrong(jax.nn.softmax(logits), labels)
    return cross_entropy(logits, labels) - jnp.log(1.0001 - wrong + 1e-12)


def mart(lambda_: float = 5.0) -> Objective:
    """MART (Wang et al. 2020; AWP eq. 3).

    ``BCE(adversarial) + lambda * KL(clean || adversarial) * (1.0000001 - p_clean[y])``; nothing is
    detached. The attack ascends cross-entropy in evaluation mode from x + 0.001 * N(0, 1).

    Args:
        lambda_: Weight of the KL, >= 0; 6 for WideResNet, 5 for ResNet-18 in the released code.
    """
    lambda_ = _weight(lambda_, "lambda")

    def loss(logits, labels):
        # By way of the log-softmax; 1.0000001, as released, leaves the KL a weight above 0 where
        # the model is sure, in float32 too.
        label_probability = jnp.exp(-cross_entropy(logits[CLEAN], labels))
        divergence = kl_divergence(logits[CLEAN], logits[ADVERSARIAL])
        misclassified = lambda_ * divergence * (1.0000001 - label_probability)
        return boosted_cross_entropy(logits[ADVERSARIAL], labels) + misclassified

    return Objective(
        name="mart",
        inputs=(CLEAN, ADVERSARIAL),
        loss=loss,
        attack_loss=_attack_cross_entropy,
        attack_batch_norm="running",
        start="gaussian",
    )


def _weight(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name} is {value!r}, but a number of at least 0 was expected.")
    return float(value)


def smoothed(objective: Objective, amount: float) -> Objective:
    """An objective on smoothed labels (Szegedy et al. 2016, section 7).

    The loss gets ``(1 - amount) * one_hot(y) + amount / classes``; the attack keeps the labels
    (Pang et al., "Bag of tricks for adversarial training", ICLR 2021). In expectation this is the
    distribution of ``awp_jax.data.with_label_noise`` of the same amount.

    Args:
        objective: One whose loss is linear in the distribution of labels: natural, AT, TRADES.
        amount: In [0, 1); 0 for no smoothing.

    Raises:
        ValueError: For an amount out of range, or MART.
    """
    if not 0 <= amount < 1:
        raise ValueError(f"label_smoothing is {amount!r}, but a number in [0, 1) was expected.")
    if not amount:
        return objective
    check_soft_labels(objective.name, "label_smoothing")

    def loss(logits, labels):
        classes = logits[objective.inputs[0]].shape[1]
        dtype = logits[objective.inputs[0]].dtype
        sharp = labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes, dtype=dtype)
        return objective.loss(logits, (1 - amount) * sharp + amount / classes)

    # The attack keeps the sharp labels, so its gradient is not that of what weights ascend.
    return dataclasses.replace(objective, loss=loss, attacks_its_loss=False)


def check_soft_labels(name: str, option: str) -> None:
    """Raises ``ValueError`` for an objective that needs one class per example."""
    if name == "mart":
        raise ValueError(
            f"{option} gives an example several classes, but MART compares its probability of one "
            "class: use natural, at or trades."
        )


ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


def self_supervised(
    classifier: Any,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    mode: str,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """How well an auxiliary head tells rotations apart (Hendrycks et al., NeurIPS 2019, section 3).

    The cross-entropy of each image's four rotations, averaged. The paper adds it, weighted by 0.5,
    to the loss of the images that the attack on the class made.

    Args:
        classifier: Made with ``auxiliary=ROTATIONS``.
        params: Its parameters.
        batch_stats: Its statistics.
        images: float ``[batch, size, size, channels]``, square.
        mode: As in ``Classifier.apply``.
        key: For dropout, one typed key.

    Returns:
        ``(losses [batch] in nats, new statistics)``.

    Raises:
        ValueError: For images that are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"Rotations need square images, not of shape {images.shape[1:]}.")
    batch = images.shape[0]
    # By turn, then by image: the reshape at the end takes it apart in this order.
    rotated = jnp.concatenate([jnp.rot90(images, turns, (1, 2)) for turns in range(ROTATIONS)])
    turns = jnp.repeat(jnp.arange(ROTATIONS), batch)
    logits, batch_stats = classifier.auxiliary(params, batch_stats, rotated, mode=mode, key=key)
    return cross_entropy(logits, turns).reshape(ROTATIONS, batch).mean(0), batch_stats


NAMES = ("natural", "at", "trades", "mart")


def create(
    name: Any,
    *,
    beta: float = 6.0,
    lambda_: float = 5.0,
    label_smoothing: float = 0.0,
    rotation_weight: float = 0.0,
) -> Objective:
    """An objective by name.

    Args:
        name: ``"natural"``, ``"at"``, ``"trades"`` or ``"mart"``; or an ``Objective`` of your own,
            which ``beta`` and ``lambda_`` do not change.
        beta: For TRADES.
        lambda_: For MART.
        label_smoothing: See ``smoothed``.
        rotation_weight: Of the self-supervised loss (Hendrycks et al.: 0.5); 0 for none.

    Returns:
        The objective.

    Raises:
        ValueError: For an unknown name (says which are known) or a negative weight.
    """
    if not isinstance(name, Objective):
        checks.choice(name, NAMES, "objective")
    # Called only by name: a bad beta does not matter to MART.
    known = {
        "natural": natural,
        "at": at,
        "trades": lambda: trades(beta),
        "mart": lambda: mart(lambda_),
    }
    plain = name if isinstance(name, Objective) else known[name]()
    objective = smoothed(plain, label_smoothing)
    if not rotation_weight:
        return objective
    rotation_weight = _weight(rotation_weight, "rotation_weight")
    # Weights ascend the rotations as well, which the attack knows nothing of.
    return dataclasses.replace(objective, rotation_weight=rotation_weight, attacks_its_loss=False)
