"""The terms of the PAC-Bayes bound that motivates flatness."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, results, streams
from awp_jax.attacks._model import as_pytree_function
from awp_jax.balls import WeightBall
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._layers import layers_of
from awp_jax.landscape._perturbed import WEIGHT_DRAWS
from awp_jax.landscape._robust_loss import (
    PGD_20,
    Examples,
    Keep,
    check_one_key,
    compute_only,
    mean,
)
from awp_jax.panels import clean
from awp_jax.random import fold_keys, leaf_keys
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params

# Typical size of the perturbation relative to ||w||, over all layers together.
RELATIVE_SIZES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class PACBayes(NamedTuple):
    """Terms of a PAC-Bayes bound on the robust error, as NumPy arrays.

    Attributes:
        alphas: Standard deviation of every coordinate of u relative to ||w||.  # shape=(alphas,)
        empirical: Robust 0-1 loss at w, in [0, 1].  # shape=()
        expected: Robust 0-1 loss at w + u, mean over draws, in [0, 1].  # shape=(alphas,)
        sharpness: ``expected - empirical``, the flatness term.  # shape=(alphas,)
        divergence: ``KL(w + u || P) = 1 / (2 * alpha ** 2)``, in nats.  # shape=(alphas,)
        complexity: ``4 * sqrt((divergence + ln(2 n / delta)) / n)``.  # shape=(alphas,)
        bound: ``empirical + sharpness + complexity``: vacuous above 1.  # shape=(alphas,)
        draws: Robust 0-1 loss of each draw.  # shape=(alphas, draws)
    """

    alphas: np.ndarray
    empirical: np.ndarray
    expected: np.ndarray
    sharpness: np.ndarray
    divergence: np.ndarray
    complexity: np.ndarray
    bound: np.ndarray
    draws: np.ndarray

    def __repr__(self) -> str:
        head = f"robust error at w {results.short(self.empirical)}"
        return results.described("PACBayes", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the terms of the bound over ``alphas``.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        for name, style in (("sharpness", "o-"), ("complexity", "s--"), ("bound", "^:")):
            axes.plot(self.alphas, getattr(self, name), style, markersize=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_xlabel("alpha: deviation of each coordinate relative to ||w||")
        axes.legend()
        clean(axes)
        return axes


@on_any_mesh(apply_fn="params images")
def pac_bayes(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    alphas: Sequence[float] | None = None,
    draws: int = WEIGHT_DRAWS,
    delta: float = 0.05,
    training_examples: int | None = None,
    attack: Attack | None = PGD_20,
    layers: Any = None,
    batch_size: int = 128,
    keep: Keep | None = None,
) -> PACBayes:
    """The three terms of AWP (NeurIPS 2020), eq. 12, in the form of Neyshabur et al. (2017).

    With probability at least 1 - delta over n training examples::

        E_u[rho(w + u)] over the distribution
            <= rho(w) + {E_u[rho(w + u)] - rho(w)} + 4 sqrt((KL(w + u || P) + ln(2 n / delta)) / n)

    where rho is the robust 0-1 loss, the prior P is N(0, sigma^2 I) and u ~ N(0, sigma^2 I), so
    that ``KL = ||w||^2 / (2 sigma^2)``; with ``sigma = alpha * ||w||`` this is
    ``1 / (2 alpha^2)``. The AWP paper prints ``1 / (2 alpha)``, and in eq. 12 the root ends before
    the logarithm: both are slips of typesetting (Neyshabur et al., Exploring Generalization in Deep
    Learning, eq. 6, has the logarithm under the root, divided by n).

    Every one of the N coordinates of u has standard deviation alpha * ||w||, so that ||u|| is about
    ``alpha * sqrt(N) * ||w||``. The complexity of networks of usual size is far above 1: what is
    compared between models is the sharpness.

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``, see ``robust_loss``.
        params: Weights w, a pytree of arrays.
        images: Of the training set, ``[examples, height, width, channels]``, uint8 or float.
        labels: int ``[examples]``.
        key: One typed key.
        alphas: sigma relative to ||w||, above 0; ``None`` for those at which ||u|| is about 0.003,
            0.01, 0.03, 0.1, 0.3 and 1 times ||w||.
        draws: Number of u for each alpha.
        delta: Probability with which the bound may fail, in (0, 1).
        training_examples: n; ``None`` for the number of images, of which rho is measured.
        attack: ``(logits_fn, key, images, labels) -> AttackResult``; ``None`` for clean loss.
        layers: What w is: as in ``average_flatness``; ||w|| is taken over all of it together.
        batch_size: Examples per pass; does not change the result.
        keep: As in ``robust_loss``, called for w and for every alpha and draw.

    Returns:
        A ``PACBayes``.

    Raises:
        ValueError: For an alpha that is not above 0, a delta outside (0, 1), draws below 1, weights
            that are all zero, a mask without layers, and bad images, labels or key.
    """
    checks.positive_integer(draws, "draws")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta!r}, but a probability between 0 and 1 was expected.")
    examples = Examples(images, labels, batch_size, params, attack)
    mask = layers_of(params, layers)
    check_one_key(key)
    # rho may be measured on a part of the training set, but the bound is about all of it.
    n = examples.count if training_examples is None else training_examples
    checks.positive_integer(n, "training_examples")
    norm = jax.tree.leaves(WeightBall(0.0, mask=mask).norms(params, params))
    if not float(sum(jnp.square(value) for value in norm)):
        raise ValueError("All weights are zero: sigma = alpha * ||w|| would be zero.")
    leaves = jax.tree.leaves(params)
    size = sum(leaf.size for leaf, kept in zip(leaves, mask.keep, strict=True) if kept)
    sizes = [r / size**0.5 for r in RELATIVE_SIZES] if alphas is None else list(alphas)
    for alpha in sizes:
        if not float(checks.radius(alpha, "alpha")) > 0:
            raise ValueError(f"alpha is {alpha!r}, but a number above 0 was expected.")
    if not sizes:
        raise ValueError("alphas is empty: at least one was expected.")
    function, keep = as_pytree_function(apply_fn), keep or compute_only
    # The keys of robust_loss's first restart.
    keys = fold_keys(examples.keys(jax.random.fold_in(key, streams.LANDSCAPE_IMAGES)), 0)
    weight_key = jax.random.fold_in(key, streams.LANDSCAPE_PAC_BAYES)

    def at_weights() -> Any:
        return examples.losses(function, params, keys, attack)

    def one(alpha: Any, draw: int) -> Any:
        # By draw, not by alpha: along a curve a draw keeps its direction, and attacks their starts.
        moved = _moved(mask, params, jax.random.fold_in(weight_key, draw), alpha)
        return examples.losses(function, moved, keys, attack)

    def error(part: Any) -> Any:
        return mean(part["success"])

    empirical = error(keep("bound", at_weights))
    found = np.stack(
        [
            np.stack([error(keep(f"bound {a:.6g} {d}", Partial(one, a, d))) for d in range(draws)])
            for a in map(float, sizes)
        ]
    )
    alpha, expected = np.asarray(sizes, float), found.mean(axis=1)
    divergence = 1 / (2 * alpha**2)
    complexity = 4 * np.sqrt((divergence + np.log(2 * n / delta)) / n)
    sharpness = expected - empirical
    bound = expected + complexity
    return PACBayes(alpha, empirical, expected, sharpness, divergence, complexity, bound, found)


@jax.jit
def _moved(mask: Any, params: Params, key: Key, alpha: Any) -> Any:
    """``w + u`` with ``u ~ N(0, (alpha * ||w||)^2 I)`` on the layers that count."""
    norms = WeightBall(0.0, mask=mask).norms(params, params)
    squares = [jnp.square(norm) for norm in jax.tree.leaves(norms)]
    # One sigma for all layers, from the norm of all weights together, as in the text below eq. 12.
    sigma = alpha * jnp.sqrt(sum(squares))

    def add(kept: bool, leaf: Any, leaf_key: Key) -> Any:
        noise = jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        return leaf + sigma.astype(leaf.dtype) * noise if kept else leaf

    return jax.tree.map(add, mask(params), params, leaf_keys(key, params))
