"""Extreme eigenvalues of the Hessian of the clean or robust loss."""

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from awp_jax import checks, results, streams
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._hessian_product import HessianProduct
from awp_jax.landscape._robust_loss import PGD_20, check_one_key
from awp_jax.panels import bars
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params

# By the names of ARPACK: largest, smallest, and of largest magnitude.
_ENDS = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}


class HessianSpectrum(NamedTuple):
    """Extreme eigenvalues of a Hessian.

    Attributes:
        eigenvalues: The most extreme first.  # shape=(count,)
        residuals: ``||H u - eigenvalue * u||`` of each unit eigenvector found: how far off an
            eigenvalue can be.  # shape=(count,)
        products: How many Hessian-vector products it took.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    products: int

    def __repr__(self) -> str:
        head = f"eigenvalues {results.short(self.eigenvalues)}"
        return results.described("HessianSpectrum", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the eigenvalues as bars.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        values = [float(value) for value in self.eigenvalues]
        names = [str(place + 1) for place in range(len(values))]
        bars(axes, {"": values}, names, "eigenvalue of the Hessian")
        return axes


@on_any_mesh(apply_fn="params images")
def hessian_spectrum(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    count: int = 1,
    which: str = "largest",
    attack: Attack | None = PGD_20,
    layers: Any = True,
    tolerance: float = 1e-3,
    most_products: int = 1000,
    batch_size: int = 128,
) -> HessianSpectrum:
    """The largest or smallest eigenvalues of the Hessian of the mean loss in the weights.

    Of the robust loss, the examples are attacked once, at the weights, and then stay (the
    Hessian of ``w -> L(x + delta(w); w)`` with delta held, as in Yao et al., NeurIPS 2018).
    Implicitly restarted Lanczos iteration (ARPACK) on Hessian-vector products; it keeps
    ``max(2 * count + 1, 20)`` vectors of the size of the parameters in the memory of the host.

    Unlike the flatness measures this is *not* scale-invariant: a network that computes the same
    function with scaled layers has other eigenvalues (Stutz et al., ICCV 2021, section 3.4).

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``, see ``robust_loss``; twice
            differentiable almost everywhere.
        params: Weights, a pytree of arrays.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        key: One typed key: of the attack and of the first vector.
        count: How many eigenvalues; fewer than there are parameters.
        which: ``"largest"``: the highest, highest first. ``"smallest"``: the lowest, lowest first;
            a negative one is a direction in which the loss falls. ``"magnitude"``: those of the
            highest absolute value, highest first.
        attack: ``(logits_fn, key, images, labels) -> AttackResult``; ``None`` for clean loss.
        layers: Which parameters count: ``True`` for all, ``None`` for ``kernels_and_biases``, a
            pytree of bools, or a function from the parameters to one.
        tolerance: Relative accuracy that ARPACK aims at.
        most_products: Bound on Hessian-vector products; what has not converged then is NaN.
        batch_size: Examples per pass; does not change the result.

    Returns:
        A ``HessianSpectrum`` in the dtype of the parameters.

    Raises:
        ValueError: For a count below 1 or not below the number of parameters, an unknown
            ``which``, and bad images, labels or key.
    """
    checks.positive_integer(count, "count")
    checks.choice(which, tuple(_ENDS), "which")
    checks.positive_integer(most_products, "most_products")
    check_one_key(key)
    hessian = HessianProduct(
        apply_fn, params, images, labels, key, attack=attack, layers=layers, batch_size=batch_size
    )
    size = hessian.size
    if count >= size:
        raise ValueError(
            f"count is {count}, but fewer than the {size} parameters that count were expected."
        )
    vector_key = jax.random.fold_in(key, streams.LANDSCAPE_HESSIAN)
    operator = LinearOperator((size, size), matvec=hessian, dtype=hessian.dtype)
    first = np.asarray(jax.random.normal(vector_key, (size,), hessian.dtype))
    values, vectors = _extreme(operator, first, count, which, tolerance, most_products)
    residuals = [
        np.linalg.norm(hessian(vector) - value * vector)
        for value, vector in zip(values, vectors.T, strict=True)
    ]
    # NaN for what has not converged: the shape is that asked for.
    missing = count - len(values)
    padded = [np.pad(a, (0, missing), constant_values=np.nan) for a in (values, residuals)]
    return HessianSpectrum(padded[0], padded[1].astype(hessian.dtype), hessian.products)


def _extreme(
    operator: Any, first: Any, count: int, which: str, tolerance: float, most_products: int
) -> tuple[np.ndarray, np.ndarray]:
    """Converged eigenvalues, most extreme first, and their unit eigenvectors as columns."""
    size = operator.shape[0]
    if not operator.matvec(first).any():  # ARPACK cannot start from a vector that maps to zero
        return np.zeros(count, first.dtype), np.eye(size, count, dtype=first.dtype)
    kept = min(size, max(2 * count + 1, 20))
    # ARPACK counts restarts, each of about as many products as vectors it keeps.
    restarts = max(1, most_products // kept)
    try:
        values, vectors = eigsh(
            operator, count, which=_ENDS[which], v0=first, tol=tolerance, ncv=kept, maxiter=restarts
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    ranked = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
    order = np.argsort(ranked[which])
    return values[order], vectors[:, order]
