"""Histograms of the weights, layer by layer."""

from typing import Any, NamedTuple

import jax
import numpy as np

from awp_jax import checks, results
from awp_jax.landscape._layers import layer_names, layers_of
from awp_jax.panels import histogram
from awp_jax.typing import Params


class WeightHistogram(NamedTuple):
    """How the weights of one layer are spread, as NumPy arrays.

    Attributes:
        counts: Weights in each bin; they sum to the size of the layer.  # shape=(bins,)
        edges: Symmetric about zero, up to the largest magnitude.  # shape=(bins + 1,)
        mean: Of the weights.  # shape=()
        std: Standard deviation.  # shape=()
        norm: L2 norm.  # shape=()
    """

    counts: np.ndarray
    edges: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    norm: np.ndarray

    def __repr__(self) -> str:
        numbers = ", ".join(f"{n} {results.short(getattr(self, n))}" for n in self._fields[2:])
        return f"WeightHistogram(counts {results.short(self.counts)}, {numbers})"

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the density of the weights.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        histogram(axes, self.counts, self.edges)
        return axes


def weight_histograms(
    params: Params, *, bins: int = 99, layers: Any = None
) -> dict[str, WeightHistogram]:
    """Histograms of weight values per layer (AWP, NeurIPS 2020, Figure 4).

    Args:
        params: Weights, a pytree of arrays.
        bins: Number of bins; an odd number has one around zero.
        layers: ``None`` for ``kernels_and_biases``, a pytree of bools, or a function from the
            parameters to one.

    Returns:
        By name of the layer (``"layer1/0/conv1/kernel"``), in the tree's order. A layer of zeros
        has edges from -1 to 1.

    Raises:
        ValueError: For bins below 1, or a mask without layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.landscape import weight_histograms
        >>> params = {"dense": {"kernel": jnp.array([[-2.0, 0.0, 0.1, 2.0]])}}
        >>> found = weight_histograms(params, bins=3)["dense/kernel"]
        >>> print(found.counts, found.edges[[0, 3]])
        [1 2 1] [-2.  2.]
    """
    checks.positive_integer(bins, "bins")
    keep = layers_of(params, layers).keep
    names, leaves = layer_names(params), jax.tree.leaves(params)
    return {
        name: _histogram(np.ravel(np.asarray(leaf)), bins)
        for name, leaf, kept in zip(names, leaves, keep, strict=True)
        if kept
    }


def _histogram(weights: np.ndarray, bins: int) -> WeightHistogram:
    reach = np.abs(weights).max()
    reach = reach if reach > 0 else 1.0
    counts, edges = np.histogram(weights, bins, range=(-reach, reach))
    wide = weights.astype(np.float64)
    norm = np.asarray(np.linalg.norm(wide))
    return WeightHistogram(counts, edges, np.asarray(wide.mean()), np.asarray(wide.std()), norm)
