"""What average- and worst-case flatness begin with."""

from typing import Any, NamedTuple

from awp_jax.attacks._model import as_pytree_function
from awp_jax.landscape._layers import flatness_ball
from awp_jax.landscape._robust_loss import (
    Examples,
    Keep,
    RobustLoss,
    check_one_key,
    compute_only,
    robust_loss,
)
from awp_jax.pytrees import as_argument
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params, Radius


class Prepared(NamedTuple):
    """A checked problem.

    Attributes:
        function: The model, as a pytree.
        examples: In batches.
        ball: What the weights move in; a ``Constant`` where it is no pytree.
        reference: The robust loss at the weights themselves.
        keep: Called for every part of the result.
    """

    function: Any
    examples: Examples
    ball: Any
    reference: RobustLoss
    keep: Keep


def prepared(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    attack: Attack | None,
    xi: Radius,
    ball: Any,
    reference: RobustLoss | None,
    reference_restarts: int,
    batch_size: int,
    keep: Keep | None,
) -> Prepared:
    """Checks the arguments that flatness measures share, and computes the reference loss.

    Args:
        apply_fn: As all others in ``average_flatness``.
        params: See there.
        images: See there.
        labels: See there.
        key: See there.
        attack: See there.
        xi: See there.
        ball: See there.
        reference: See there.
        reference_restarts: See there.
        batch_size: See there.
        keep: See there.

    Raises:
        ValueError: As ``average_flatness``.
    """
    examples = Examples(images, labels, batch_size, params, attack)
    ball = flatness_ball(params, xi, ball)
    # All checks come before the reference, the first thing here that takes time.
    check_one_key(key)
    if reference is None:
        reference = robust_loss(
            apply_fn,
            params,
            images,
            labels,
            key,
            attack=attack,
            restarts=reference_restarts,
            batch_size=batch_size,
            keep=keep,
        )
    function, keep = as_pytree_function(apply_fn), keep or compute_only
    return Prepared(function, examples, as_argument(ball), reference, keep)
