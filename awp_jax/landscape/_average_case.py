"""Average-case flatness: robust loss at random weights nearby."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, results, streams
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._prepared import prepared
from awp_jax.landscape._robust_loss import PGD_20, Keep, RobustLoss, mean, stacked
from awp_jax.panels import losses_against
from awp_jax.pytrees import from_argument
from awp_jax.random import fold_keys
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params, Radius
from awp_jax.weights._displacement import moved

XI = 0.5  # section 3.3 of the paper


class AverageFlatness(NamedTuple):
    """Average-case flatness, as NumPy arrays; lower is flatter.

    Attributes:
        flatness: Mean over draws of the loss, minus the reference, in nats.  # shape=()
        reference: The loss at the weights themselves.  # shape=()
        draws: Mean loss over examples at each draw (not minus the reference).  # shape=(draws,)
        losses: Cross-entropy.  # shape=(draws, examples)
        success: Whether the example is misclassified.  # shape=(draws, examples)
    """

    flatness: np.ndarray
    reference: np.ndarray
    draws: np.ndarray
    losses: np.ndarray
    success: np.ndarray

    def __repr__(self) -> str:
        head = f"{results.short(self.flatness)} nats"
        return results.described("AverageFlatness", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the mean loss of each draw, and the reference.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        losses_against(axes, self.draws, "draw", float(self.reference))
        return axes


@on_any_mesh(apply_fn="params images")
def average_flatness(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    attack: Attack | None = PGD_20,
    xi: Radius = None,
    ball: Any = None,
    draws: int = 10,
    reference: RobustLoss | None = None,
    reference_restarts: int = 10,
    batch_size: int = 128,
    keep: Keep | None = None,
) -> AverageFlatness:
    """Average-case flatness of Stutz et al. (ICCV 2021, eq. 3).

    ``E_nu[max_delta L(x + delta; w + nu)] - max_delta L(x + delta; w)``: each draw takes a Gaussian
    direction, scaled layer by layer onto the sphere ``||nu_l|| = xi * ||w_l||``, and runs the
    attack anew on w + nu. The measure does not change when layers are scaled without changing the
    function. A layer of zeros is never displaced.

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``, see ``robust_loss``.
        params: Weights w, a pytree of arrays.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        key: One typed key.
        attack: ``(logits_fn, key, images, labels) -> AttackResult``; ``None`` for clean loss.
        xi: Short for ``ball=WeightBall(xi, mask=kernels_and_biases)``: relative radius, without
            unit (0.5, the paper and the default).
        ball: What nu is drawn from, with other layers or another norm.
        draws: Number of nu (10 in the paper).
        reference: From ``robust_loss``, when it is known already; its ``loss`` counts.
        reference_restarts: Restarts of the attack for the reference (10 in the paper); the draws
            run it once, so with 1 both sides of the difference are found in the same way.
        batch_size: Examples per pass; does not change the result.
        keep: As in ``robust_loss``, called for every draw.

    Returns:
        An ``AverageFlatness``.

    Raises:
        ValueError: For a negative xi, draws below 1, a mask without layers, and bad images, labels
            or key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.landscape import average_flatness
        >>> def apply_fn(params, images):
        ...     return images.mean((1, 2)) @ params["kernel"]
        >>> params = {"kernel": jnp.array([[1.0, -1.0]])}
        >>> images, labels = jnp.full((4, 2, 2, 1), 0.5), jnp.zeros(4, jnp.int32)
        >>> found = average_flatness(
        ...     apply_fn, params, images, labels, jax.random.key(0), attack=None, draws=3
        ... )
        >>> found.draws.shape, bool(found.flatness == found.draws.mean() - found.reference)
        ((3,), True)
    """
    checks.positive_integer(draws, "draws")
    if xi is None and ball is None:
        xi = XI
    xi = xi if xi is None else checks.radius(xi, "xi")
    problem = prepared(
        apply_fn,
        params,
        images,
        labels,
        key,
        attack=attack,
        xi=xi,
        ball=ball,
        reference=reference,
        reference_restarts=reference_restarts,
        batch_size=batch_size,
        keep=keep,
    )
    function, examples, ball, reference, keep = problem
    weight_key = jax.random.fold_in(key, streams.LANDSCAPE_AVERAGE_WEIGHTS)
    image_keys = examples.keys(jax.random.fold_in(key, streams.LANDSCAPE_AVERAGE_IMAGES))

    def one(draw: int) -> Any:
        # Weights and attacks both by the number of the draw, so that each can be computed on its
        # own. The attack runs anew: examples made at w would understate the loss at w + nu.
        there = moved_at_random(ball, params, jax.random.fold_in(weight_key, draw))
        return examples.losses(function, there, fold_keys(image_keys, draw), attack)

    parts = [keep(f"average {draw}", Partial(one, draw)) for draw in range(draws)]
    losses, success = stacked(parts)
    means = mean(losses, axis=1)
    flatness = mean(means) - reference.loss
    return AverageFlatness(flatness, reference.loss, means, losses, success)


@jax.jit
def moved_at_random(ball: Any, params: Params, key: Key) -> Any:
    """``w + nu`` with a random nu of the ball."""
    return moved(params, from_argument(ball).sample(key, params))
