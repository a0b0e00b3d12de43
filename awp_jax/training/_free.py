"""Free adversarial training: what perturbs the images is carried from step to step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.balls import InputBall
from awp_jax.balls._protocol import scaled, shrunk
from awp_jax.typing import Gradients, Images, Radius


@dataclasses.dataclass(frozen=True)
class Free:
    """The perturbation of Shafahi et al. (NeurIPS 2019), algorithm 1, as in its main_free.py.

    Attributes:
        ball: An ``InputBall``: delta keeps to its norm, and images with delta to its bounds.
        step_size: Of delta, after each step of the weights.
        scale: Of radius and step size, see ``TrainingAttack.scale``.
    """

    ball: InputBall
    step_size: Radius
    scale: Callable[..., Any] | None

    def attacked(self, images: Images, delta: jax.Array) -> Images:
        """The images with the perturbation as it was left, which may be that of other images."""
        return self.ball.clip(images, images + delta)

    def after(
        self, step: jax.Array, images: Images, delta: jax.Array, gradient: Gradients
    ) -> jax.Array:
        """The perturbation for the next step.

        Args:
            step: Of the optimiser.
            images: ``[batch, ...]``.
            delta: Like them, of this step.
            gradient: Of the loss in ``attacked(images, delta)``.
        """
        # Through the bounds: what they cut off stays as it is. Not bounded itself, as released: the
        # next images have other room.
        moves = images + delta == self.attacked(images, delta)
        ball, size = dataclasses.replace(self.ball, low=None, high=None), self.step_size
        if self.scale is not None:
            factor = jnp.asarray(self.scale(step), images.dtype)
            ball, size = shrunk(ball, factor), scaled(size, factor)
        return ball.step(jnp.zeros_like(delta), delta, jnp.where(moves, gradient, 0), size)


def check_free(attack: Any) -> None:
    """Raises ``ValueError`` where a ``TrainingAttack`` that is free has what others have."""
    if not isinstance(attack.ball, InputBall):
        raise ValueError(
            f"free needs an InputBall, whose norm the perturbation keeps to, not a "
            f"{type(attack.ball).__name__}."
        )
    for name in ("own", "early_stop", "start"):
        if getattr(attack, name) is not None:
            raise ValueError(f"{name} is {getattr(attack, name)!r}, but free attacks nothing.")
    if attack.batch_norm is not None:
        raise ValueError(
            f"attack_batch_norm is {attack.batch_norm!r}, but free makes no pass of its own."
        )


def check_carried(delta: Any, images: Images) -> None:
    """Raises ``ValueError`` where the perturbation of a state does not fit the images."""
    shape = getattr(delta, "shape", None)
    if shape is None or shape[1:] != images.shape[1:] or shape[0] < images.shape[0]:
        raise ValueError(
            f"The attack is free, but delta of the state has the shape {shape}, and the images "
            f"{images.shape}: make the state with init_state(..., delta=images.shape)."
        )
