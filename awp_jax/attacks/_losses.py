"""Per-example losses that an adversary ascends: ``(logits, labels) -> [batch]``, higher is worse."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of each example.

    Args:
        logits: float ``[batch, classes]``.
        labels: integer ``[batch]``.

    Returns:
        ``[batch]``, in nats, >= 0.
    """
    log_probabilities = jax.nn.log_softmax(logits)
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
    """
    log_clean = jax.nn.log_softmax(clean_logits)
    log_adversarial = jax.nn.log_softmax(adversarial_logits)
    return jnp.sum(jnp.exp(log_clean) * (log_clean - log_adversarial), axis=1)


def largest_wrong(values: jax.Array, labels: jax.Array) -> jax.Array:
    """The largest entry of each row ``[batch, classes]`` other than the label's, ``[batch]``."""
    is_label = jax.nn.one_hot(labels, values.shape[1], dtype=bool)
    return jnp.max(jnp.where(is_label, -jnp.inf, values), axis=1)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The CW loss ``max_{j != y} z_j - z_y`` of each example: positive when misclassified.

    Args:
        logits: float ``[batch, classes]``, at least 2 classes.
        labels: integer ``[batch]``.

    Returns:
        ``[batch]``, in units of logits.
    """
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return largest_wrong(logits, labels) - label_logits


LOSSES = {"cross_entropy": cross_entropy, "margin": margin}
