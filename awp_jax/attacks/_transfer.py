"""Transfer attacks: crafted on one model, judged on another."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from awp_jax import checks
from awp_jax.attacks._apgd import APGD
from awp_jax.attacks._model import (
    as_pytree_function,
    check_examples,
    check_logits,
    number_of_classes,
)
from awp_jax.attacks._result import AttackResult, choose, outcome
from awp_jax.attacks._stepped import judged
from awp_jax.balls import InputBall
from awp_jax.explicit import on_any_mesh
from awp_jax.random import example_keys
from awp_jax.typing import Inputs, Key, Labels


@on_any_mesh(surrogate_fn="images", target_fn="images")
def transfer(
    attack: Callable[..., Any],
    surrogate_fn: Callable[..., Any],
    target_fn: Callable[..., Any],
    key: Key,
    images: Inputs,
    labels: Labels,
    *,
    eot: int = 0,
) -> AttackResult:
    """A black-box attack: the target only sees the images that break the surrogate best.

    Papernot et al. 2017; table 3 of the first version of AWP.

    Args:
        attack: ``(logits_fn, key, images, labels) -> AttackResult``, such as ``PGD()``.
        surrogate_fn: ``images -> logits`` of the model that the attacker has.
        target_fn: ``images -> logits`` of the model under test.
        key: One typed key, or one per example.
        images: float ``[batch, height, width, channels]`` in [0, 1], or within the bounds of the
            attack's ball.
        labels: int ``[batch]``.
        eot: Above 0: the target is randomised, ``target_fn(images, key)``, and each verdict is one
            pass. For a randomised surrogate give the attack an ``eot``.

    Returns:
        The images crafted on the surrogate, with success and loss on the target. Where the target
        already misclassifies the clean image, that image is returned.

    Raises:
        ValueError: For bad images or labels, a target that returns NaN, or a surrogate of other
            images or classes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import PGD, transfer
        >>> surrogate = lambda images: images.mean((1, 2)) * jnp.array([[1.0, -1.0]])
        >>> target = lambda images: 2 * surrogate(images) - jnp.array([[0.02, 0.0]])
        >>> images, labels = jnp.full((1, 4, 4, 1), 0.02), jnp.array([0])
        >>> transfer(PGD("8/255"), surrogate, target, jax.random.key(0), images, labels).success
        Array([ True], dtype=bool)
    """
    ball = getattr(attack, "ball", None) or InputBall()
    check_examples(images, labels, ball)
    target = as_pytree_function(target_fn)
    keys = example_keys(key, images.shape[0])
    classes = number_of_classes(target, images, keys[0] if eot else None)
    checks.labels_below(labels, classes)
    surrogate_key = keys[0] if getattr(attack, "eot", 0) else None
    theirs = number_of_classes(as_pytree_function(surrogate_fn), images, surrogate_key)
    if theirs != classes:
        raise ValueError(f"The surrogate has {theirs} classes, but the target has {classes}.")
    crafted = outcome(attack(surrogate_fn, keys, images, labels), attack).images
    plain = APGD(eot=eot)  # only whether the model is random matters
    clean = judged(plain, target, keys, images, labels).result
    found = judged(plain, target, keys, crafted, labels).result
    check_logits((clean.loss, found.loss))
    return AttackResult(
        choose(clean.success, images, crafted),
        clean.success | found.success,
        jnp.maximum(clean.loss, found.loss),
    )
