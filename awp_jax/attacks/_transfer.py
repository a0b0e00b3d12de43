"""Transfer attacks: crafted on one model, judged on another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.attacks._pgd import as_pytree_function
from awp_jax.attacks._result import AttackResult
from awp_jax.attacks._stepped import SteppedAttack, check_logits, judged, number_of_classes
from awp_jax.random import example_keys


def transfer(
    attack: Callable,
    surrogate_fn: Callable,
    target_fn: Callable,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> AttackResult:
    """A black-box attack: the target only sees the images that break the surrogate best.

    Papernot et al. 2017; table 3 of the first version of AWP. Deterministic models only.

    Args:
        attack: ``(logits_fn, key, images, labels) -> AttackResult``, such as ``PGD()``.
        surrogate_fn: ``images -> logits`` of the model that the attacker has.
        target_fn: ``images -> logits`` of the model under test.
        key: One typed key, or one per example.
        images: float ``[batch, height, width, channels]`` in [0, 1].
        labels: int ``[batch]``.

    Returns:
        The images crafted on the surrogate, with success and loss on the target. Where the target
        already misclassifies the clean image, that image is returned.

    Raises:
        ValueError: For bad images or labels, or a target that returns NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import PGD, transfer
        >>> surrogate = lambda images: images.mean((1, 2)) * jnp.array([[1.0, -1.0]])
        >>> target = lambda images: 2 * surrogate(images) - jnp.array([[0.02, 0.0]])
        >>> images, labels = jnp.full((1, 4, 4, 1), 0.02), jnp.array([0])
        >>> transfer(PGD("8/255"), surrogate, target, jax.random.key(0), images, labels).success
        Array([ True], dtype=bool)
    """
    checks.images_and_labels(images, labels)
    target = as_pytree_function(target_fn)
    checks.images_and_labels(images, labels, number_of_classes(target, images))
    keys = example_keys(key, images.shape[0])
    crafted = attack(surrogate_fn, keys, images, labels).images
    plain = SteppedAttack()
    clean = judged(plain, target, keys, images, labels)
    found = judged(plain, target, keys, crafted, labels)
    check_logits((clean.loss, found.loss))
    shape = (-1,) + (1,) * (images.ndim - 1)
    return AttackResult(
        jnp.where(clean.success.reshape(shape), images, crafted),
        clean.success | found.success,
        jnp.maximum(clean.loss, found.loss),
    )
