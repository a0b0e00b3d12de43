"""The ball of ASAM: every weight counts in units of its own size."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.balls._masks import as_mask, everything, path_name
from awp_jax.balls._norms import at_least_float32, is_float
from awp_jax.balls._weights import WeightBall
from awp_jax.pytrees import pytree_dataclass
from awp_jax.typing import Displacement, Gradients, Key, Params, PyTree, Radius


@pytree_dataclass("radius", "eta")
@dataclasses.dataclass(frozen=True)
class AdaptiveWeightBall:
    """Displacements with ``||v / T_w|| <= radius``, ``T_w = |w| + eta`` (ASAM, Kwon et al. 2021).

    The norm is the Euclidean one over all weights together. For leaves called ``bias`` or ``b``,
    ``T_w`` is 1, as the authors' code has it for what is not called a weight.

    Attributes:
        radius: Rho, without unit.
        eta: Keeps small weights moving, in the units of the weights (0.01, the authors' code).
        mask: What is perturbed, ``None`` for ``everything``; see ``WeightBall``.
        axis_name: Under ``shard_map`` or ``pmap`` with split weights; see ``WeightBall``.

    Raises:
        ValueError: For a radius or eta that is negative or no number.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import AdaptiveWeightBall
        >>> w, g = {"kernel": jnp.array([[3.0, 4.0]])}, {"kernel": jnp.array([[1.0, 0.0]])}
        >>> ball = AdaptiveWeightBall(radius=0.5, eta=0.0)
        >>> print(ball.step(w, ball.start(None, w), g, 0.5)["kernel"])
        [[1.5 0. ]]
    """

    moves: ClassVar[str] = "weights"

    radius: Radius = 0.5
    eta: Any = 0.01
    mask: Any = None
    axis_name: Any = None

    def __post_init__(self) -> None:
        for name in ("radius", "eta"):
            object.__setattr__(self, name, checks.radius(getattr(self, name), name, None))
        mask = everything if self.mask is None else as_mask(self.mask)
        object.__setattr__(self, "mask", mask)

    @property
    def _plain(self) -> WeightBall:
        # What v / T_w moves in.
        settings = {"mask": self.mask, "axis_name": self.axis_name}
        return WeightBall(radius=self.radius, scope="global", **settings)

    def _scales(self, centre: Params) -> Any:
        def scale(path: tuple[Any, ...], w: Any) -> jax.Array:
            if not jnp.issubdtype(jnp.result_type(w), jnp.floating):
                return jnp.ones((), jnp.float32)
            wide = at_least_float32(jnp.asarray(w))
            if path_name(path).rsplit("/", 1)[-1] in ("bias", "b"):
                return jnp.ones((), wide.dtype)
            return jnp.abs(wide) + jnp.asarray(self.eta, wide.dtype)

        return jax.tree_util.tree_map_with_path(scale, centre)

    def mask_of(self, centre: Params) -> Any:
        """What moves; see ``WeightBall.mask_of``."""
        return self._plain.mask_of(centre)

    def start(self, key: Key | None, centre: Params) -> Any:
        """Zero. ``key`` is not used."""
        return self._plain.start(key, centre)

    def step(self, centre: Params, point: Displacement, gradient: Gradients, size: Any) -> Any:
        """``project(v + size * T_w^2 g / ||T_w g||)``, ``size`` in the units of the radius."""
        scales = self._scales(centre)
        # In units of T_w a step is plain steepest ascent: T_w takes the gradient there, and the
        # step back to weights.
        scaled = _times(gradient, scales)
        way = _times(self._plain.direction(scaled, centre), scales)
        moved = jax.tree.map(lambda v, d: v + jnp.asarray(size, d.dtype) * d, point, way)
        return self.project(centre, moved)

    def project(self, centre: Params, point: Displacement) -> Any:
        """Rescales radially what lies outside."""
        scales = self._scales(centre)
        return _times(self._plain.project(centre, _divided(point, scales)), scales)

    def sample(self, key: Key, centre: Params) -> Any:
        """``T_w`` times a Gaussian direction of length radius."""
        return _times(self._plain.sample(key, centre), self._scales(centre))

    def distance(self, centre: Params, point: Displacement) -> Any:
        """``||v / T_w||``, one number."""
        return self._plain.distance(centre, _divided(point, self._scales(centre)))


def _times(tree: PyTree, scales: Any) -> Any:
    return jax.tree.map(
        lambda x, t: (at_least_float32(x) * t).astype(x.dtype) if is_float(x) else x, tree, scales
    )


def _divided(tree: PyTree, scales: Any) -> Any:
    # Where T_w is zero (a zero weight, eta 0) nothing may move.
    return jax.tree.map(
        lambda x, t: (
            jnp.where(t > 0, at_least_float32(x) / jnp.where(t > 0, t, 1), 0).astype(x.dtype)
            if is_float(x)
            else x
        ),
        tree,
        scales,
    )
