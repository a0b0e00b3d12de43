"""Losses that an adversary ascends: ``(logits, labels) -> [batch]``, higher is worse."""

import dataclasses

import jax
import jax.numpy as jnp

from awp_jax.pytrees import pytree_dataclass
from awp_jax.typing import Labels, Logits


def cross_entropy(logits: Logits, labels: Labels) -> jax.Array:
    """Cross-entropy of each example.

    Args:
        logits: float ``[batch, classes]``.
        labels: integer ``[batch]``, or float ``[batch, classes]``: a distribution over the classes
            for each example (label smoothing, mixup).

    Returns:
        ``[batch]``, in nats, >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import cross_entropy
        >>> found = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
        >>> found.shape, bool(jnp.allclose(found, jnp.log(4)))
        ((2,), True)
    """
    log_probabilities = jax.nn.log_softmax(logits)
    if labels.ndim == 2:
        return -jnp.sum(labels * log_probabilities, axis=1)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]


def kl_divergence(clean_logits: jax.Array, adversarial_logits: jax.Array) -> jax.Array:
    """KL(clean || adversarial) of each example, summed over classes (TRADES; AWP eq. 2).

    Both sides are computed from log-probabilities, so extreme logits give finite values and
    finite gradients.

    Args:
        clean_logits: float ``[batch, classes]``; gradients flow through them.
        adversarial_logits: float ``[batch, classes]``.

    Returns:
        ``[batch]``, in nats, >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import kl_divergence
        >>> logits = jnp.array([[3.0, 1.0, 2.0]])
        >>> kl_divergence(logits, logits).tolist(), bool(kl_divergence(logits, -logits)[0] > 0)
        ([0.0], True)
    """
    log_clean = jax.nn.log_softmax(clean_logits)
    log_adversarial = jax.nn.log_softmax(adversarial_logits)
    return jnp.sum(jnp.exp(log_clean) * (log_clean - log_adversarial), axis=1)


def largest_wrong(values: jax.Array, labels: Labels) -> jax.Array:
    """The largest entry of each row ``[batch, classes]`` other than the label's, ``[batch]``."""
    is_label = jax.nn.one_hot(labels, values.shape[1], dtype=bool)
    # -inf, where the released RWP code has 0: that is the largest where all others are negative.
    return jnp.max(jnp.where(is_label, -jnp.inf, values), axis=1)


def _label_logits(logits: Logits, labels: Labels) -> jax.Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def margin(logits: Logits, labels: Labels) -> jax.Array:
    """The CW loss ``max_{j != y} z_j - z_y`` of each example: positive when misclassified.

    Args:
        logits: float ``[batch, classes]``, at least 2 classes.
        labels: integer ``[batch]``.

    Returns:
        ``[batch]``, in units of logits.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import margin
        >>> margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()  # 2 - 3
        [-1.0]
    """
    return largest_wrong(logits, labels) - _label_logits(logits, labels)


# Added to the denominators of DLR (fra31/auto-attack, autopgd_base.py).
_DLR_FLOOR = 1e-12


def dlr(logits: Logits, labels: Labels) -> jax.Array:
    """Difference of logits ratio: ``-(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12)``.

    Croce and Hein, ICML 2020, eq. 6. It does not change when logits are shifted or scaled.

    Args:
        logits: float ``[batch, classes]``, at least 3 classes.
        labels: integer ``[batch]``.

    Returns:
        ``[batch]``, in [-1, 1]: positive when misclassified.

    Raises:
        ValueError: For fewer than 3 classes.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import dlr
        >>> logits = jnp.array([[3.0, 1.0, 2.0]])
        >>> bool(jnp.allclose(dlr(10 * logits, jnp.array([0])), dlr(logits, jnp.array([0]))))
        True
    """
    if logits.shape[1] < 3:
        raise ValueError(f"The DLR loss needs at least 3 classes, not {logits.shape[1]}.")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _DLR_FLOOR)


def targeted_dlr(logits: Logits, labels: Labels, targets: jax.Array) -> jax.Array:
    """Targeted DLR: ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``.

    Croce and Hein, ICML 2020, eq. 7.

    Args:
        logits: float ``[batch, classes]``, at least 4 classes.
        labels: integer ``[batch]``.
        targets: integer ``[batch]``, the classes to move to.

    Returns:
        ``[batch]``, without unit: positive when the target is above the label.

    Raises:
        ValueError: For fewer than 4 classes.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"The targeted DLR loss needs at least 4 classes, not {logits.shape[1]}.")
    top = jax.lax.top_k(logits, 4)[0]
    scale = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _DLR_FLOOR
    return targeted_margin(logits, labels, targets) / scale


def targeted_margin(logits: Logits, labels: Labels, targets: jax.Array) -> jax.Array:
    """``z_t - z_y`` of each example, ``[batch]``, in units of logits: for any number of classes."""
    return _label_logits(logits, targets) - _label_logits(logits, labels)


@pytree_dataclass("kappa")
@dataclasses.dataclass(frozen=True)
class HingedMargin:
    """The CW loss cut off at a confidence: ``min(max_{j != y} z_j - z_y, kappa)``.

    Carlini and Wagner 2017, as an L-infinity loss for PGD (AWP, Table 2). Above kappa the gradient
    is zero and the point rests.

    Attributes:
        kappa: In units of logits, >= 0.
    """

    kappa: float = 10.0  # the released RWP code

    def __call__(self, logits: Logits, labels: Labels) -> jax.Array:
        """``(logits [batch, classes], labels [batch]) -> [batch]``."""
        return jnp.minimum(margin(logits, labels), self.kappa)


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
