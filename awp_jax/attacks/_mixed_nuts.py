"""An accurate and a robust network as one: MixedNUTS."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.attacks._model import as_pytree_function
from awp_jax.typing import Inputs, Logits

# Of the normalised logits: the largest gets a probability of 1, in value and not in gradient.
_SHARPNESS = 1e6
# Of the logits, the largest so many give mean and deviation (all, where there are fewer classes).
_LARGEST = 250


@dataclasses.dataclass(frozen=True)
class MixedNUTS:
    """How an accurate and a robust network are mixed without training (Bai et al., MixedNUTS).

    With z the robust network's logits, less their mean and divided by their deviation, and e the
    one-hot prediction of the accurate one, the logits of both together are

        log((1 - alpha) e + alpha softmax(scale abs(g)^power sign(g))),    g = GELU(z + bias)

    as in ``NonLinMixedClassifier`` and ``LNClampPowerScaleMap`` of RobustBench. The one-hot
    prediction is a softmax at a sharpness of 1e6, as there where gradients are taken: they are 0
    almost everywhere, so that a gradient attack sees the robust network alone, and Square sees
    both. The authors' own attack takes its gradient from a smoother mixture, which RobustBench does
    not use either; ``attacks.transfer`` from ``mean_of_models([accurate, robust])`` comes close.

    Attributes:
        alpha: The robust network's share, in (0, 1).
        scale: s of the paper, positive.
        bias: c, added before the GELU.
        power: p, at least 1.

    Raises:
        ValueError: For a share outside (0, 1), a scale that is not positive or a power below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import MixedNUTS
        >>> accurate = lambda images: jnp.array([[0.0, 0.0, 9.0]])
        >>> robust = lambda images: jnp.array([[3.0, 0.0, 0.0]])
        >>> mixed = MixedNUTS(alpha=0.75, scale=1.0, bias=0.0, power=1.0)(accurate, robust)
        >>> [round(p, 2) for p in jnp.exp(mixed(jnp.zeros((1, 2, 2, 1))))[0].tolist()]
        [0.46, 0.14, 0.39]
    """

    alpha: float
    scale: float
    bias: float
    power: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(
                f"alpha is {self.alpha!r}, but a share between 0 and 1 was expected: at either end "
                "one of the networks is left, and needs no mixture."
            )
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale!r}, but a positive number was expected.")
        if not self.power >= 1:
            raise ValueError(
                f"power is {self.power!r}, but at least 1 was expected: below, the gradient at 0 "
                "is infinite."
            )

    @classmethod
    def published(cls, data: str) -> "MixedNUTS":
        """The numbers of the entry Bai2024MixedNUTS at RobustBench.

        Args:
            data: "cifar10" (robust: Peng2023Robust), "cifar100" (Wang2023Better_WRN-70-16) or
                "imagenet" (Liu2023Comprehensive_Swin-L).

        Raises:
            ValueError: For other data.
        """
        return cls(*_PUBLISHED[checks.choice(data, _PUBLISHED, "data of MixedNUTS")])

    def __call__(self, accurate: Callable[..., Any], robust: Callable[..., Any]) -> Partial:
        """The mixture as one ``logits_fn``, for any attack.

        Args:
            accurate: ``images -> logits [batch, classes]``, such as ``Model.logits_fn`` of an
                imported run.
            robust: As ``accurate``, of the same classes.

        Returns:
            ``images -> [batch, classes]``, logarithms of probabilities.
        """
        numbers = (self.alpha, self.scale, self.bias, self.power)
        return Partial(_mixed, as_pytree_function(accurate), as_pytree_function(robust), numbers)


# robustbench 1.1.1, architectures/optimal_spca.yaml: alpha, s, c, p of "gelu" at the default beta.
_PUBLISHED = {
    "cifar10": (0.9987500602493457, 5.0, -1.1, 4.0),
    "cifar100": (0.9860300534207915, 0.6115753843212784, -2.142857142857143, 3.571428571428571),
    "imagenet": (0.9971266414518896, 0.023535468936502525, -0.2857142857142858, 2.7142857142857144),
}


def _mixed(
    accurate: Partial, robust: Partial, numbers: tuple[Any, ...], images: Inputs
) -> jax.Array:
    alpha, scale, bias, power = numbers
    sharp = _SHARPNESS * _normalised(accurate(images))
    g = jax.nn.gelu(_normalised(robust(images)) + bias, approximate=False)
    shaped = scale * jnp.sign(g) * jnp.abs(g) ** power
    # In logs throughout: a probability that underflows to 0 would have no finite logarithm.
    return jnp.logaddexp(
        jnp.log1p(-alpha) + jax.nn.log_softmax(sharp), jnp.log(alpha) + jax.nn.log_softmax(shaped)
    )


def _normalised(logits: Logits) -> jax.Array:
    """Less the mean, divided by the deviation, both of the largest logits."""
    largest = jax.lax.top_k(logits, min(_LARGEST, logits.shape[-1]))[0]
    mean = largest.mean(axis=-1, keepdims=True)
    variance = largest.var(axis=-1, keepdims=True, ddof=1)
    return (logits - mean) / jnp.sqrt(variance + 1e-8)
