"""The sets an adversary may move in: balls of images and balls of weights.

Attacks on inputs and attacks on weights are the same operation, projected ascent on a ball around
a centre. A ball knows four things: how to ``start``, how to ``step`` along a gradient, how to
``project`` back, and how to ``sample``. No projection is written anywhere else.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.random import example_keys, leaf_keys

NORMS = ("linf", "l2", "l1")
SIZES = ("l2", "l1")
SCOPES = ("leaf", "global", "filter")

# Added to gradient norms. numerics.md: Rice et al. use 1e-10 for images, AWP 1e-20 for weights.
_IMAGE_NORM_FLOOR = 1e-10
_WEIGHT_NORM_FLOOR = 1e-20


def _flat(images: jax.Array) -> jax.Array:
    return images.reshape(images.shape[0], -1)


def _per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def _at_least_float32(array: jax.Array) -> jax.Array:
    # Half precision is summed and divided in float32; float64 stays float64.
    wide = jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits >= 32
    return array if wide else array.astype(jnp.float32)


def image_norms(images: jax.Array, norm: str) -> jax.Array:
    """The norm of each example.

    Args:
        images: ``[batch, ...]``.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
        ``[batch]``, in the units of ``images``; float32 for half precision.
    """
    flat = _at_least_float32(_flat(images))
    if norm == "linf":
        return jnp.abs(flat).max(axis=1)
    if norm == "l1":
        return jnp.abs(flat).sum(axis=1)
    return jnp.sqrt(jnp.square(flat).sum(axis=1))


def _project_l1(displacement: jax.Array, radius: jax.Array) -> jax.Array:
    """Euclidean projection on the L1 ball, by sorting (Duchi et al., ICML 2008, figure 1)."""
    flat = _at_least_float32(_flat(displacement))
    radius = jnp.asarray(radius, flat.dtype)
    magnitude = jnp.sort(jnp.abs(flat), axis=1)[:, ::-1]
    excess = jnp.cumsum(magnitude, axis=1) - radius
    counts = jnp.arange(1, flat.shape[1] + 1, dtype=flat.dtype)[None, :]
    active = jnp.sum(magnitude * counts > excess, axis=1, keepdims=True)
    threshold = jnp.take_along_axis(excess, jnp.maximum(active, 1) - 1, axis=1) / jnp.maximum(
        active, 1
    ).astype(flat.dtype)
    shrunk = jnp.sign(flat) * jnp.maximum(jnp.abs(flat) - jnp.maximum(threshold, 0.0), 0.0)
    inside = jnp.abs(flat).sum(axis=1, keepdims=True) <= radius
    nearest = jnp.where(inside, flat, shrunk)
    return nearest.astype(displacement.dtype).reshape(displacement.shape)


@dataclasses.dataclass(frozen=True)
class ImageBall:
    """Images within ``radius`` of a centre image, and within the pixel range.

    Attributes:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        radius: Epsilon, in units of pixels scaled to [0, 1] (``8/255``, or ``"8/255"``).
        low: Least pixel value.
        high: Largest pixel value.

    Points are images ``[batch, ...]`` in the dtype of the centre; ``key`` is one typed key or one
    per example.

    Raises:
        ValueError: For an unknown norm, or a radius that is negative or no number.
    """

    norm: str = "linf"
    radius: Any = 8 / 255
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        checks.choice(self.norm, NORMS, "norm")
        object.__setattr__(self, "radius", checks.radius(self.radius, "epsilon", self.norm))
        if not self.low < self.high:
            raise ValueError(f"The pixel range [{self.low}, {self.high}] is empty.")

    def start(self, key: jax.Array, centre: jax.Array, how: str = "uniform") -> jax.Array:
        """Where an attack begins.

        Args:
            key: One typed key, or one per example.
            centre: The clean images ``[batch, ...]``.
            how: ``"uniform"``: U(-epsilon, epsilon) for Linf; for L2 and L1 a random direction of
                length U(0, 1) * epsilon (Rice et al. 2020, train_cifar.py). ``"gaussian"``: centre
                + 0.001 * N(0, 1), not clipped (TRADES, MART). ``"none"``: the centre.

        Returns:
            Images of the shape of ``centre``.
        """
        checks.choice(how, ("uniform", "gaussian", "none"), "start")
        centre = jnp.asarray(centre)
        if how == "none":
            return centre
        if how == "gaussian":
            keys = example_keys(key, centre.shape[0])
            noise = jax.vmap(lambda k: jax.random.normal(k, centre.shape[1:], centre.dtype))(keys)
            return centre + 0.001 * noise
        return self.sample(key, centre)

    def sample(self, key: jax.Array, centre: jax.Array) -> jax.Array:
        """Draws a random point of the ball (see ``start``) and projects it on the pixel range."""
        centre = jnp.asarray(centre)
        keys = example_keys(key, centre.shape[0])
        shape, dtype = centre.shape[1:], centre.dtype
        radius = jnp.asarray(self.radius, dtype)
        if self.norm == "linf":
            unit = jax.vmap(lambda k: jax.random.uniform(k, shape, dtype, -1.0, 1.0))(keys)
            return self.project(centre, centre + radius * unit)
        draw = jax.random.normal if self.norm == "l2" else jax.random.laplace

        def one(k):
            direction_key, length_key = jax.random.split(k)
            return draw(direction_key, shape, dtype), jax.random.uniform(length_key, (), dtype)

        direction, length = jax.vmap(one)(keys)
        norms = (image_norms(direction, self.norm) + _IMAGE_NORM_FLOOR).astype(dtype)
        return self.project(
            centre, centre + direction * _per_example(length / norms, centre) * radius
        )

    def direction(self, gradient: jax.Array, room: jax.Array | None = None) -> jax.Array:
        """The unit step of steepest ascent: sign for Linf, g/||g|| for L2, one pixel for L1.

        Args:
            gradient: ``[batch, ...]``.
            room: For L1 only, where the pixel can still move that way (bool, same shape).

        Returns:
            ``[batch, ...]``; zero where the gradient of an example is zero.
        """
        if self.norm == "linf":
            return jnp.sign(gradient)
        if self.norm == "l2":
            norms = image_norms(gradient, "l2") + _IMAGE_NORM_FLOOR
            unit = _at_least_float32(gradient) / _per_example(norms, gradient)
            return unit.astype(gradient.dtype)
        magnitude = _flat(jnp.abs(gradient))
        if room is not None:
            magnitude = jnp.where(_flat(room), magnitude, jnp.zeros_like(magnitude))
        chosen = jax.nn.one_hot(magnitude.argmax(axis=1), magnitude.shape[1], dtype=gradient.dtype)
        chosen = jnp.where(magnitude > 0, chosen, jnp.zeros_like(chosen))
        return chosen.reshape(gradient.shape) * jnp.sign(gradient)

    def step(
        self, centre: jax.Array, point: jax.Array, gradient: jax.Array, size: Any
    ) -> jax.Array:
        """One step of projected steepest ascent (eq. 9 and 14 of AWP, NeurIPS 2020).

        Args:
            centre: Clean images ``[batch, ...]``.
            point: Current images ``[batch, ...]``.
            gradient: Of the loss in the point.
            size: Step size in the norm of the ball, pixel units (``2/255``).

        Returns:
            The projected images ``[batch, ...]``.
        """
        room = None
        if self.norm == "l1":
            room = jnp.where(gradient > 0, point < self.high, point > self.low)
        size = jnp.asarray(size, gradient.dtype)
        return self.project(centre, point + size * self.direction(gradient, room))

    def project(self, centre: jax.Array, point: jax.Array) -> jax.Array:
        """The point itself when it is inside, else the nearest of the norm ball, then clipped.

        Clipping to the pixel range after the norm projection never leaves the ball, because the
        centre lies in the range: each coordinate only moves towards its centre.
        """
        displacement = point - centre
        if self.norm == "linf":
            radius = jnp.asarray(self.radius, displacement.dtype)
            displacement = jnp.clip(displacement, -radius, radius)
        elif self.norm == "l2":
            norms = image_norms(displacement, "l2")
            radius = jnp.asarray(self.radius, norms.dtype)
            scale = jnp.where(norms > radius, radius / jnp.maximum(norms, 1e-30), 1.0)
            scaled = _at_least_float32(displacement) * _per_example(scale, displacement)
            displacement = scaled.astype(displacement.dtype)
        else:
            displacement = _project_l1(displacement, self.radius)
        return jnp.clip(centre + displacement, self.low, self.high)


def kernels_only(params: Any) -> Any:
    """The default mask of AWP: leaves with more than one axis (convolution and dense kernels).

    BatchNorm scales, BatchNorm biases and all other biases are left alone (csdongxian/AWP,
    ``utils_awp.py``).
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


@dataclasses.dataclass(frozen=True)
class WeightBall:
    """Displacements ``v`` of weights ``w`` with ``||v_l|| <= gamma * ||w_l||`` (AWP, eq. 8).

    Attributes:
        gamma: Relative radius, without unit (0.005 = half a percent). May be traced.
        size: The norm of eqs. 10 and 15: ``"l2"`` (Frobenius) or ``"l1"``; both are rescaled
            radially.
        scope: What one norm is taken over: ``"leaf"`` (each tensor, as AWP), ``"global"`` (all
            perturbed tensors together, as the released RWP) or ``"filter"`` (each slice of the
            last axis, as filter-normalised landscapes).
        mask: ``None`` for ``kernels_only``, a pytree of bools, or a function from the parameters
            to one. What is masked out is never displaced.

    Points are displacements, pytrees like the centre. Zero weights and zero gradients give zero,
    never NaN.

    Raises:
        ValueError: For an unknown size or scope, or a gamma that is negative or no number.
    """

    gamma: Any = 0.005
    size: str = "l2"
    scope: str = "leaf"
    mask: Any = None

    def __post_init__(self):
        checks.choice(self.size, SIZES, "size")
        checks.choice(self.scope, SCOPES, "scope")
        object.__setattr__(self, "gamma", checks.radius(self.gamma, "gamma"))

    def mask_of(self, centre: Any) -> Any:
        """The mask as a pytree of bools like ``centre``."""
        mask = kernels_only if self.mask is None else self.mask
        mask = mask(centre) if callable(mask) else mask
        return jax.tree.map(lambda keep, sub: jax.tree.map(lambda _: bool(keep), sub), mask, centre)

    def _masked(self, tree: Any, centre: Any) -> Any:
        return jax.tree.map(
            lambda keep, leaf: leaf if keep else jnp.zeros_like(leaf), self.mask_of(centre), tree
        )

    def norms(self, tree: Any, centre: Any) -> Any:
        """The norms that this ball compares: one per leaf, per filter, or one for all.

        Args:
            tree: Weights, gradients or displacements.
            centre: The weights (for the mask).

        Returns:
            A pytree like ``tree`` of arrays that broadcast against its leaves.
        """

        def reduce(leaf):
            axes = None
            if self.scope == "filter" and leaf.ndim > 1:
                axes = tuple(range(leaf.ndim - 1))
            leaf = _at_least_float32(leaf)
            powers = jnp.abs(leaf) if self.size == "l1" else jnp.square(leaf)
            return jnp.sum(powers, axis=axes, keepdims=axes is not None)

        sums = jax.tree.map(reduce, self._masked(tree, centre))
        if self.scope == "global":
            total = sum(jax.tree.leaves(sums))
            sums = jax.tree.map(lambda _: total, sums)
        return sums if self.size == "l1" else jax.tree.map(jnp.sqrt, sums)

    def start(self, key: jax.Array | None, centre: Any) -> Any:
        """Zero: weight ascent begins at the centre. ``key`` is not used."""
        del key
        return jax.tree.map(jnp.zeros_like, centre)

    def direction(self, gradient: Any, centre: Any) -> Any:
        """g/||g|| * ||w|| per scope (eq. 10 of AWP without eta2); zero where either is zero."""

        def scaled(keep, g, w, g_norm, w_norm):
            if not keep:
                return jnp.zeros_like(w)
            # float16 could not hold the ratio of a small gradient.
            ratio = w_norm / (g_norm + _WEIGHT_NORM_FLOOR)
            return (_at_least_float32(g) * ratio).astype(w.dtype)

        return jax.tree.map(
            scaled,
            self.mask_of(centre),
            gradient,
            centre,
            self.norms(gradient, centre),
            self.norms(centre, centre),
        )

    def step(self, centre: Any, point: Any, gradient: Any, size: Any) -> Any:
        """One step of eq. 10: ``project(v + size * ||w_l|| * g_l / ||g_l||)``.

        Args:
            centre: Weights w.
            point: Displacement v.
            gradient: Of the loss in w + v.
            size: eta2, relative to ||w_l||, without unit.

        Returns:
            The new displacement.
        """
        direction = self.direction(gradient, centre)
        moved = jax.tree.map(lambda v, d: v + jnp.asarray(size, v.dtype) * d, point, direction)
        return self.project(centre, moved)

    def project(self, centre: Any, point: Any) -> Any:
        """Rescales radially what lies outside (eq. 15)."""

        def rescale(keep, v, v_norm, w_norm):
            if not keep:
                return jnp.zeros_like(v)
            limit = jnp.asarray(self.gamma, w_norm.dtype) * w_norm
            # 1e-30 only guards the division that `where` throws away.
            scale = jnp.where(v_norm > limit, limit / jnp.maximum(v_norm, 1e-30), 1.0)
            return (_at_least_float32(v) * scale).astype(v.dtype)

        return jax.tree.map(
            rescale,
            self.mask_of(centre),
            point,
            self.norms(point, centre),
            self.norms(centre, centre),
        )

    def sample(self, key: jax.Array, centre: Any) -> Any:
        """A Gaussian direction scaled onto the sphere ``||v_l|| = gamma * ||w_l||``."""
        noise = jax.tree.map(
            lambda k, leaf: jax.random.normal(k, jnp.shape(leaf), jnp.result_type(leaf)),
            leaf_keys(key, centre),
            centre,
        )
        return jax.tree.map(
            lambda d: jnp.asarray(self.gamma, d.dtype) * d, self.direction(noise, centre)
        )
