"""What an objective is: what is ascended and descended, and on which images."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.attacks import cross_entropy

CLEAN, ADVERSARIAL, HELPER = "clean", "adversarial", "helper"
# Not images, but what else a loss finds beside the logits: those of another model, and what was
# predicted for the classes of the examples.
TEACHER, CLASS_MEANS = "teacher", "class_means"


@dataclasses.dataclass(frozen=True)
class Objective:
    """One method of adversarial training.

    Attributes:
        name: As in configs.
        inputs: Which images the loss needs a forward pass of: of ``"clean"``, ``"adversarial"`` and
            ``"helper"``, in this order; helpers need adversarial ones.
        loss: ``(logits by input, labels) -> [batch]``: what the weights descend, and what the
            weight perturbation ascends.
        attack_loss: ``(logits, labels, clean logits or None) -> [batch]``: what the input adversary
            ascends; ``None`` for no attack.
        attack_uses_clean_logits: Whether ``attack_loss`` needs the logits of the clean images.
        attack_batch_norm: The BatchNorm mode of the released attack: ``"batch"`` or ``"running"``.
        start: The released start of the attack, see ``awp_jax.attacks.PGD``.
        attacks_its_loss: Whether ``attack_loss`` is what the weights ascend, on the same images.
        rotation_weight: Of the self-supervised loss that is added, see ``self_supervised``.
        gradient_alignment: lambda of GradAlign, which the descent adds for the cross-entropy of the
            clean images (Andriushchenko and Flammarion, NeurIPS 2020); weights do not ascend it.
        teacher: The images that a fixed teacher is asked about, ``"clean"`` or ``"adversarial"``;
            the loss finds its logits under ``"teacher"``. ``None`` for no teacher.
        class_temperature: T of softmax(clean logits / T), whose mean over the example's class in
            the last epoch the loss finds under ``"class_means"``; ``None`` for no such means.
        helper_scale: h of the images ``"helper"``, x + h (x' - x), which may leave [0, 1].
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
    gradient_alignment: float = 0.0
    teacher: str | None = None
    helper_scale: float = 2.0
    class_temperature: float | None = None

    def __post_init__(self) -> None:
        helped = tuple(self.inputs[-2:]) == (ADVERSARIAL, HELPER)
        seen = tuple(self.inputs[:-1] if helped else self.inputs)
        if seen not in ((CLEAN,), (ADVERSARIAL,), (CLEAN, ADVERSARIAL)):
            raise ValueError(
                f"inputs of objective {self.name!r} are {self.inputs!r}, but ('clean',), "
                "('adversarial',) or both, in this order, were expected, and 'helper' behind "
                "'adversarial' only."
            )
        if self.class_temperature is not None and CLEAN not in self.inputs:
            raise ValueError(
                f"Objective {self.name!r} has a class_temperature, but its inputs {self.inputs!r} "
                "have no 'clean'."
            )
        if self.teacher is not None:
            checks.choice(self.teacher, (CLEAN, ADVERSARIAL), f"teacher of {self.name}")

    @property
    def attacked(self) -> str:
        """The input that the adversary made, or where there is none the clean one."""
        return ADVERSARIAL if ADVERSARIAL in self.inputs else CLEAN


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


# One function for AT, MART and ARD, which takes the clean logits that only TRADES asks for.
def attack_cross_entropy(logits, labels, clean_logits):
    """Cross-entropy, as an ``attack_loss``."""
    del clean_logits
    return cross_entropy(logits, labels)


def weight(value: Any, name: str) -> float:
    """``value`` as a float.

    Raises:
        ValueError: When it is no number of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name} is {value!r}, but a number of at least 0 was expected.")
    return float(value)
