"""What an attack wants of a model: a loss to ascend, and what counts as success."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.attacks._losses import LOSSES, cross_entropy
from awp_jax.pytrees import pytree_dataclass
from awp_jax.typing import Outputs

Loss = str | Callable[[Any, Any], jax.Array]
Success = Callable[[Any, Any], jax.Array]


def loss_function(loss: Loss) -> Callable[[Any, Any], jax.Array]:
    """A per-example loss ``(outputs, targets) -> [batch]`` by name, or the callable itself."""
    return loss if callable(loss) else LOSSES[checks.choice(loss, LOSSES, "loss")]


@pytree_dataclass("loss", "success")
@dataclasses.dataclass(frozen=True)
class Goal:
    """A loss to ascend, and the verdict.

    Attributes:
        loss: A name, or ``(outputs, targets) -> [batch]``; outputs and targets are any pytrees.
        success: ``(outputs, targets) -> bool [batch]``; ``None`` for classification: whether the
            largest of the logits ``[batch, classes]`` is not that of the label.
        targeted: The targets are what the attack wants: it descends the loss, and has succeeded
            when the target is reached.
    """

    loss: Any = "cross_entropy"
    success: Success | None = None
    targeted: bool = False

    def __post_init__(self) -> None:
        # A name and the function that it stands for become the same, and share what is compiled.
        object.__setattr__(self, "loss", loss_function(self.loss))
        if self.success is not None and not callable(self.success):
            raise ValueError(
                f"success is {self.success!r}, but a function (outputs, targets) -> bool [batch] "
                "was expected."
            )
        if not isinstance(self.targeted, bool):
            raise ValueError(f"targeted is {self.targeted!r}, but True or False was expected.")

    @property
    def classifies(self) -> bool:
        """Whether targets are labels and outputs logits."""
        return self.success is None

    def ascended(self, outputs: Outputs, targets: Any) -> jax.Array:
        """The loss as it is ascended, ``[batch]``."""
        losses = self.loss(outputs, targets)
        return -losses if self.targeted else losses

    def succeeded(self, outputs: Outputs, targets: Any) -> jax.Array:
        """The verdict, bool ``[batch]``."""
        if self.success is not None:
            return self.success(outputs, targets)
        predicted = outputs.argmax(axis=1)
        return predicted == targets if self.targeted else predicted != targets

    def judged(self, outputs: Outputs, targets: Any) -> jax.Array:
        """What the result reports: the cross-entropy of labels, else the loss, ``[batch]``."""
        if not self.classifies:
            return self.ascended(outputs, targets)
        losses = cross_entropy(outputs, targets)
        return -losses if self.targeted else losses

    def check(self, outputs: Outputs, targets: Any, batch: int) -> None:
        """Raises ``ValueError`` unless loss and verdict are one for each example.

        Args:
            outputs: Of the model, or their shapes.
            targets: Of the attack.
            batch: Number of examples.
        """
        for name, function in (("loss", self.loss), ("success", self.success)):
            if function is None:
                continue
            shape = getattr(jax.eval_shape(function, outputs, targets), "shape", None)
            if shape != (batch,):
                raise ValueError(
                    f"{name}(outputs, targets) gives {shape}, but one value for each example, "
                    f"{(batch,)}, was expected."
                )


def inequality(first: Any, second: Any) -> jax.Array:
    """Where two batches of targets (any pytree) differ, bool ``[batch]``."""
    differs = [
        (a != b).reshape(a.shape[0], -1).any(axis=1)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]
    return jnp.stack(differs).any(axis=0)
