"""The Kullback-Leibler divergence taken apart (DKL), and what is made of its parts (IKL)."""

import jax
import jax.numpy as jnp

from awp_jax.attacks import cross_entropy
from awp_jax.objectives._objective import ADVERSARIAL, CLASS_MEANS, CLEAN, Objective, weight
from awp_jax.objectives._objectives import trades


def logit_differences(
    clean_logits: jax.Array, adversarial_logits: jax.Array, weights: jax.Array
) -> jax.Array:
    """The weighted mean square error of DKL, ``1/4 sum_ij w_i w_j (dn_ij - da_ij)^2``.

    ``dn_ij = n_i - n_j`` are the differences between the clean logits, ``da_ij`` those between the
    adversarial ones (Cui et al., NeurIPS 2024, arXiv:2305.13948). Computed as half the variance of
    ``n - a`` under w, which is the same and needs no table of classes by classes.

    Args:
        clean_logits: float ``[batch, classes]``.
        adversarial_logits: float ``[batch, classes]``.
        weights: float ``[batch, classes]``, a distribution w for each example.

    Returns:
        ``[batch]``, >= 0; gradients flow through both logits.
    """
    between = clean_logits - adversarial_logits
    middle = jnp.sum(weights * between, axis=1, keepdims=True)
    return 0.5 * jnp.sum(weights * jnp.square(between - middle), axis=1)


def decoupled_kl(clean_logits: jax.Array, adversarial_logits: jax.Array) -> jax.Array:
    """DKL, whose gradients are those of KL(clean || adversarial) (Cui et al., NeurIPS 2024).

    The clean logits are moved by ``logit_differences`` under the clean probabilities, the
    adversarial ones by a cross-entropy with the clean probabilities for labels. Its value is not
    that of the KL.

    Args:
        clean_logits: float ``[batch, classes]``.
        adversarial_logits: float ``[batch, classes]``.

    Returns:
        ``[batch]``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax import attacks, objectives
        >>> clean, adversarial = jnp.array([[3.0, 1.0, 2.0]]), jnp.array([[1.0, 2.0, 0.0]])
        >>> def gradient(loss):
        ...     return jax.grad(lambda logits: loss(logits, adversarial).sum())(clean)
        >>> kl = gradient(attacks.kl_divergence)
        >>> bool(jnp.allclose(gradient(objectives.decoupled_kl), kl, atol=1e-6))
        True
    """
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(clean_logits))
    still = jax.lax.stop_gradient(adversarial_logits)
    differences = logit_differences(clean_logits, still, probabilities)
    return differences + cross_entropy(adversarial_logits, probabilities)


def ikl(
    difference_weight: float = 20.0, soft_weight: float = 4.0, class_temperature: float = 4.0
) -> Objective:
    """Adversarial training with the improved KL (Cui et al., NeurIPS 2024, arXiv:2305.13948).

    ``CE(n, y) + beta * differences(n, a) + alpha * CE(a, softmax(n))`` of clean logits n and
    adversarial ones a. Two things differ from TRADES, whose KL has the gradients of
    ``decoupled_kl``: the differences move both logits, not the clean ones alone; and they are
    weighted by the mean prediction of the example's class in the last epoch, not by its own. The
    soft labels are held still.

    As in the released ``DKLv1/Adv-training-dkl/train_dkl_cifar10.py`` (jiequancui/DKL): the means
    are of softmax(n / T) on the training images, and equal shares in the first epoch; the attack is
    that of TRADES. ``DKLv2`` adds a power gamma of the means; this is its default of 1. Its
    epsilon grows over all epochs (``attack.warmup_epochs``), and its attack has 2 to 5 steps. A
    class that an epoch has not keeps its mean, where the released code divides by 0.

    Args:
        difference_weight: beta, >= 0; 20 in the released command for CIFAR-10.
        soft_weight: alpha, >= 0; 4 there.
        class_temperature: T, above 0; 4 there.

    Raises:
        ValueError: For other values.
    """
    beta = weight(difference_weight, "difference_weight")
    alpha = weight(soft_weight, "soft_weight")
    if not weight(class_temperature, "class_temperature") > 0:
        raise ValueError(
            f"class_temperature is {class_temperature!r}, but a positive number was expected."
        )
    pair = trades()

    def loss(logits, labels):
        clean, adversarial = logits[CLEAN], logits[ADVERSARIAL]
        differences = logit_differences(clean, adversarial, logits[CLASS_MEANS])
        soft = cross_entropy(adversarial, jax.lax.stop_gradient(jax.nn.softmax(clean)))
        return cross_entropy(clean, labels) + beta * differences + alpha * soft

    return Objective(
        name="ikl",
        inputs=(CLEAN, ADVERSARIAL),
        loss=loss,
        attack_loss=pair.attack_loss,
        attack_uses_clean_logits=True,
        attack_batch_norm="running",
        start="gaussian",
        class_temperature=float(class_temperature),
    )
