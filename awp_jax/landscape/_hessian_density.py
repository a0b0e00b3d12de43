"""Trace and spectral density of the Hessian, by products with random vectors."""

from typing import Any, NamedTuple

import jax
import numpy as np

from awp_jax import checks, results, streams
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._hessian_product import HessianProduct
from awp_jax.landscape._robust_loss import PGD_20, check_one_key
from awp_jax.panels import clean
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params


class HessianTrace(NamedTuple):
    """An estimate of the trace of a Hessian.

    Attributes:
        trace: The sum of all eigenvalues: the mean of ``draws``.
        error: Standard error of that mean; NaN with one draw.
        draws: ``z^T H z`` of each random vector.  # shape=(draws,)
        size: How many weights count; ``trace / size`` is the mean eigenvalue.
    """

    trace: float
    error: float
    draws: np.ndarray
    size: int

    def __repr__(self) -> str:
        head = f"{self.trace:.4g} +- {self.error:.2g}, {self.size:,} weights"
        return results.described("HessianTrace", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)


class HessianDensity(NamedTuple):
    """An estimate of how the eigenvalues of a Hessian are spread.

    Attributes:
        nodes: Ritz values of each random vector, ascending.  # shape=(draws, steps)
        weights: The share of eigenvalues that each stands for; those of a vector sum to 1.
            # shape=(draws, steps)
        size: How many weights count, and so how many eigenvalues there are.
    """

    nodes: np.ndarray
    weights: np.ndarray
    size: int

    def density(self, points: Any, width: float) -> np.ndarray:
        """The density at ``points``, each Ritz value as a normal distribution.

        Args:
            points: Where, ``[points]``.
            width: Deviation of each normal distribution, in units of eigenvalues.

        Returns:
            float64 ``[points]``, whose integral over all numbers is 1.
        """
        if not width > 0:
            raise ValueError(f"width is {width!r}, but a positive number was expected.")
        offsets = (np.asarray(points, np.float64)[:, None, None] - self.nodes) / width
        bells = np.exp(-(offsets**2) / 2) / (width * np.sqrt(2 * np.pi))
        return (bells * self.weights).sum(-1).mean(-1)

    def __repr__(self) -> str:
        head = f"eigenvalues from {self.nodes.min():.4g} to {self.nodes.max():.4g}"
        return results.described("HessianDensity", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the density on a logarithmic axis, with a width of a hundredth of its range.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        low, high = float(self.nodes.min()), float(self.nodes.max())
        width = max((high - low) / 100, 1e-12)
        points = np.linspace(low - 5 * width, high + 5 * width, 500)
        axes.semilogy(points, np.maximum(self.density(points, width), 1e-12))
        axes.set_xlabel("eigenvalue of the Hessian")
        axes.set_ylabel("density")
        clean(axes)
        return axes


@on_any_mesh(apply_fn="params images")
def hessian_trace(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    draws: int = 20,
    attack: Attack | None = PGD_20,
    layers: Any = True,
    batch_size: int = 128,
) -> HessianTrace:
    """The trace of the Hessian of the mean loss, by Hutchinson's estimator.

    The mean of ``z^T H z`` over vectors of random signs (Hutchinson 1989), whose expectation is the
    trace; it costs one Hessian-vector product for each. What is differentiated, and that it is not
    scale-invariant, see ``hessian_spectrum``.

    Args:
        apply_fn: See ``hessian_spectrum``, as all that is not here.
        draws: How many vectors.

    Returns:
        A ``HessianTrace``.

    Raises:
        ValueError: For draws below 1, and bad images, labels or key.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from awp_jax.landscape import hessian_trace
        >>> params = {"kernel": jnp.zeros((16, 2))}
        >>> def apply_fn(params, images):
        ...     return images.reshape(len(images), -1) @ params["kernel"]
        >>> images, labels = jnp.ones((3, 4, 4, 1)), jnp.array([0, 1, 0])
        >>> found = hessian_trace(apply_fn, params, images, labels, jax.random.key(0), draws=2000,
        ...     attack=None)
        >>> round(found.trace)  # of kron(diag(p) - p p^T, x x^T): 1/2 * 16
        8
    """
    checks.positive_integer(draws, "draws")
    check_one_key(key)
    hessian = HessianProduct(
        apply_fn, params, images, labels, key, attack=attack, layers=layers, batch_size=batch_size
    )
    found = np.empty(draws)
    for draw in range(draws):
        signs = _signs(key, streams.LANDSCAPE_TRACE, draw, hessian)
        found[draw] = np.vdot(signs.astype(np.float64), hessian(signs))
    error = found.std(ddof=1) / draws**0.5 if draws > 1 else float("nan")
    return HessianTrace(float(found.mean()), float(error), found, hessian.size)


@on_any_mesh(apply_fn="params images")
def hessian_density(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    draws: int = 2,
    steps: int = 64,
    attack: Attack | None = PGD_20,
    layers: Any = True,
    batch_size: int = 128,
) -> HessianDensity:
    """The spectral density of the Hessian of the mean loss, by stochastic Lanczos quadrature.

    From each of ``draws`` vectors of random signs Lanczos' iteration makes a tridiagonal matrix,
    whose eigenvalues, weighted by the squared first entries of its eigenvectors, are a Gaussian
    quadrature of the density (Ubaru et al. 2017; for networks Ghorbani et al., ICML 2019, algorithm
    1, and Yao et al. 2020). Vectors are kept and made orthogonal anew at each step: ``steps``
    vectors of the size of the weights lie in the memory of the host (64 of a ResNet-18: 2.9 GB).

    Args:
        apply_fn: See ``hessian_spectrum``, as all that is not here.
        draws: How many vectors; more smooth out chance.
        steps: Of Lanczos' iteration, each a Hessian-vector product; at most as many as there are
            weights. More tell eigenvalues apart.

    Returns:
        A ``HessianDensity``. Where an iteration ends early, having found all that its vector holds,
        the nodes left over have weight 0.

    Raises:
        ValueError: For draws or steps below 1, and bad images, labels or key.
    """
    checks.positive_integer(draws, "draws")
    checks.positive_integer(steps, "steps")
    check_one_key(key)
    hessian = HessianProduct(
        apply_fn, params, images, labels, key, attack=attack, layers=layers, batch_size=batch_size
    )
    steps = min(steps, hessian.size)
    nodes, weights = np.zeros((draws, steps)), np.zeros((draws, steps))
    for draw in range(draws):
        start = _signs(key, streams.LANDSCAPE_DENSITY, draw, hessian)
        nodes[draw], weights[draw] = _quadrature(hessian, start, steps)
    return HessianDensity(nodes, weights, hessian.size)


def _signs(key: Key, stream: int, draw: int, hessian: HessianProduct) -> np.ndarray:
    drawn = jax.random.fold_in(jax.random.fold_in(key, stream), draw)
    return np.asarray(jax.random.rademacher(drawn, (hessian.size,), hessian.dtype))


def _quadrature(product: Any, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes, ascending, and weights of Lanczos' iteration from ``start``."""
    basis = np.empty((steps, start.size), start.dtype)
    basis[0] = start / np.linalg.norm(start)
    diagonal, beside = np.zeros(steps), np.zeros(steps - 1)
    made = 0
    for step in range(steps):
        vector = product(basis[step])
        diagonal[step] = np.vdot(basis[step], vector)
        made = step + 1
        if made == steps:
            break
        known = basis[:made]
        for _ in range(2):  # once leaves rounding errors that grow into copies of eigenvalues
            vector = vector - known.T @ (known @ vector)
        norm = np.linalg.norm(vector)
        # All that the start holds is found: what is left is rounding.
        if norm <= 10 * np.finfo(start.dtype).eps * np.abs(diagonal[:made]).max(initial=0.0):
            break
        beside[step] = norm
        basis[made] = vector / norm
    tridiagonal = np.diag(diagonal[:made])
    tridiagonal += np.diag(beside[: made - 1], 1) + np.diag(beside[: made - 1], -1)
    nodes, vectors = np.linalg.eigh(tridiagonal)
    left = steps - made
    return np.pad(nodes, (0, left), mode="edge"), np.pad(vectors[0] ** 2, (0, left))
