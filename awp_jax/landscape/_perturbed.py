"""Loss at weights perturbed by AWP and at random, of growing size."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, results, streams
from awp_jax.attacks._losses import cross_entropy
from awp_jax.attacks._model import as_pytree_function
from awp_jax.balls import WeightBall, kernels_only
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._average_case import moved_at_random
from awp_jax.landscape._layers import layers_of
from awp_jax.landscape._model import full_precision, logits_at
from awp_jax.landscape._robust_loss import (
    PGD_20,
    Examples,
    Keep,
    check_one_key,
    compute_only,
    mean,
)
from awp_jax.panels import COLOURS, clean, finish_gammas, gamma_curves
from awp_jax.random import fold_keys
from awp_jax.typing import ApplyFn, Attack, Gradients, Images, Key, Labels, Params, Radius

# Figure 3 of AWP: random perturbations show from 0.3 on, AWP at 0.005.
GAMMAS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 0.6, 1.0)
WEIGHT_DRAWS = 3


class PerturbedLoss(NamedTuple):
    """Mean loss over examples by the size of the perturbation of the weights, as NumPy arrays.

    Attributes:
        gammas: Relative sizes, without unit.  # shape=(gammas,)
        adversarial: Under AWP, in nats.  # shape=(gammas,)
        random: Under random perturbations, in nats.  # shape=(gammas, draws)
    """

    gammas: np.ndarray
    adversarial: np.ndarray
    random: np.ndarray

    def __repr__(self) -> str:
        head = f"gammas {results.short(self.gammas)}"
        return results.described("PerturbedLoss", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the loss over gamma, under AWP and at random.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        found = (self.gammas, self.adversarial, np.asarray(self.random))
        gamma_curves(axes, *found, "", COLOURS[0], "o")
        finish_gammas(axes)
        axes.set_ylabel("loss (nats)")
        axes.legend()
        clean(axes)
        return axes


@on_any_mesh(apply_fn="params images")
def perturbed_loss(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    gammas: Sequence[Any] = GAMMAS,
    draws: int = WEIGHT_DRAWS,
    attack: Attack | None = PGD_20,
    layers: Any = kernels_only,
    batch_size: int = 128,
    keep: Keep | None = None,
) -> PerturbedLoss:
    """Robust loss under AWP and under random perturbations (AWP, NeurIPS 2020, Figure 3a).

    AWP takes one step from w (K2 = 1): ``v_l = gamma * ||w_l|| * g_l / ||g_l||``, where g is the
    gradient of the mean loss over all images, attacked at w. Random perturbations are Gaussian
    directions of the same size per layer; one draw keeps its direction for all gammas. The images
    are attacked anew at every w + v, with the same random starts everywhere: at gamma 0 all
    columns agree.

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``, see ``robust_loss``.
        params: Weights w, a pytree of arrays.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        key: One typed key.
        gammas: Relative sizes, at least 0.
        draws: Random directions.
        attack: ``(logits_fn, key, images, labels) -> AttackResult``; ``None`` for clean loss.
        layers: What is perturbed; by default kernels, as AWP does. Otherwise as in
            ``average_flatness``.
        batch_size: Examples per pass; does not change the result.
        keep: As in ``robust_loss``, called for every gamma and draw.

    Returns:
        A ``PerturbedLoss``.

    Raises:
        ValueError: For no gammas, a negative one, draws below 1, a mask without layers, and bad
            images, labels or key.
    """
    checks.positive_integer(draws, "draws")
    sizes = [float(checks.radius(gamma, "gamma")) for gamma in gammas]
    if not sizes:
        raise ValueError("gammas is empty: at least one was expected.")
    examples = Examples(images, labels, batch_size, params, attack)
    mask = layers_of(params, layers)
    check_one_key(key)
    function, keep = as_pytree_function(apply_fn), keep or compute_only
    # The keys of robust_loss's first restart, so that gamma 0 is its `single`.
    keys = fold_keys(examples.keys(jax.random.fold_in(key, streams.LANDSCAPE_IMAGES)), 0)
    weight_key = jax.random.fold_in(key, streams.LANDSCAPE_PERTURBED)
    gradient = None

    def adversarial(gamma: Radius) -> Any:
        nonlocal gradient
        # On demand: where all parts are stored it is never needed.
        if gradient is None:
            gradient = _mean_gradient(function, params, examples, keys, attack)
        moved = _moved_along(mask, params, gradient, gamma)
        return examples.losses(function, moved, keys, attack)

    def random(gamma: Radius, draw: int) -> Any:
        moved = moved_at_random(
            WeightBall(gamma, mask=mask), params, jax.random.fold_in(weight_key, draw)
        )
        return examples.losses(function, moved, keys, attack)

    by_awp, by_chance = [], []
    for gamma in sizes:
        part = keep(f"awp {gamma}", Partial(adversarial, gamma))
        by_awp.append(mean(part["losses"]))
        parts = [
            keep(f"random {gamma} {draw}", Partial(random, gamma, draw)) for draw in range(draws)
        ]
        by_chance.append(np.stack([mean(part["losses"]) for part in parts]))
    return PerturbedLoss(np.asarray(sizes), np.stack(by_awp), np.stack(by_chance))


def _mean_gradient(
    function: Partial,
    params: Params,
    examples: Examples,
    keys: Key,
    attack: Attack | None,
) -> Any:
    total = None
    with full_precision():
        for index in range(len(examples.batches)):
            point = examples.attacked(function, params, keys, attack, index)
            _, labels, valid = examples.batch(index)
            # Sums over batches are enough, because the ball normalises what it is given.
            found = _gradient(function, params, point, labels, valid)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total


@jax.jit
def _gradient(
    function: Partial, params: Params, images: Images, labels: Labels, valid: jax.Array
) -> Any:
    def total(params: Params) -> Any:
        losses = cross_entropy(logits_at(function, params)(images), labels)
        return jnp.where(valid, losses, 0.0).sum()

    return jax.grad(total)(params)


@jax.jit
def _moved_along(mask: Any, params: Params, gradient: Gradients, gamma: Radius) -> Any:
    ball = WeightBall(gamma, mask=mask)
    return jax.tree.map(
        jnp.add, params, ball.step(params, ball.start(None, params), gradient, gamma)
    )
