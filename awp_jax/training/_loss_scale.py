"""A factor of losses while they are differentiated, so that float16 gradients do not underflow."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

# As torch.amp.GradScaler: init_scale, growth_factor, backoff_factor, growth_interval.
INITIAL, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
DYNAMIC = "dynamic"


@dataclasses.dataclass(frozen=True)
class LossScale:
    """Loss scaling (Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2).

    Losses of input attack, weight ascent and descent are multiplied by it, and their gradients
    divided by it, in the dtype of images and parameters. By a power of two that changes no bit of
    what neither underflows nor overflows.

    Attributes:
        value: A positive number, ``"dynamic"`` or ``None`` for none. A dynamic one begins at 2^16,
            doubles after 2000 finite steps in a row and halves after a step whose gradient is not
            finite, which is skipped (``torch.amp.GradScaler``, with its defaults).

    Raises:
        ValueError: For anything else.
    """

    value: Any = None

    def __post_init__(self) -> None:
        value = self.value
        if value is None or value == DYNAMIC:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value < math.inf):
            raise ValueError(
                f"loss_scale is {value!r}, but a positive number such as 1024, 'dynamic' or None "
                "was expected."
            )

    @property
    def is_dynamic(self) -> bool:
        """Whether it changes from step to step."""
        return self.value == DYNAMIC

    def fresh(self) -> dict[str, jax.Array]:
        """What a run carries: the scale, and finite steps in a row; ``{}`` for a fixed one."""
        if not self.is_dynamic:
            return {}
        return {"scale": jnp.float32(INITIAL), "finite_steps": jnp.int32(0)}

    def of(self, state: Any) -> Any:
        """The scale of a step; ``None`` for none."""
        return state["scale"] if self.is_dynamic else self.value

    def after(self, state: Any, finite: jax.Array) -> Any:
        """What is carried after a step whose gradient was finite, or was not."""
        if not self.is_dynamic:
            return state
        scale, steps = state["scale"], jnp.where(finite, state["finite_steps"] + 1, 0)
        grows, larger = steps == INTERVAL, scale * GROWTH
        grown = jnp.where(grows & jnp.isfinite(larger), larger, scale)
        return {
            "scale": jnp.where(finite, grown, scale * BACKOFF),
            "finite_steps": jnp.where(grows, 0, steps),
        }


def of_sum(scale: Any, batch: int) -> Any:
    """The scale of a sum over examples that a mean over ``batch`` has, but for a power of two.

    So that a sum overflows no sooner than the mean, and the factor stays a power of two.
    """
    return None if scale is None else scale / 2.0 ** math.ceil(math.log2(batch))
