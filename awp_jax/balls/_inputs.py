"""Balls of inputs: images, tables, embeddings, or any pytree of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.balls._input_norms import directions, input_norms, measured, per_example, shortened
from awp_jax.balls._l1 import project_l1
from awp_jax.balls._lying import broadcastable, clipped, has_room, lying, of_rows, spread
from awp_jax.balls._noise import leaf_keys_of, noise_like
from awp_jax.balls._norms import (
    at_least_float32,
    is_float,
    reciprocal,
)
from awp_jax.pytrees import flatten, pytree_dataclass
from awp_jax.random import example_keys, fold_keys
from awp_jax.typing import Gradients, Inputs, Key, Radius

NORMS = ("linf", "l2", "l1")


@pytree_dataclass("radius", "low", "high", "mask")
@dataclasses.dataclass(frozen=True)
class InputBall:
    """Inputs within ``radius`` of a centre and within their bounds.

    Points are inputs ``[batch, ...]`` of any rank of at least 2, or a pytree of them, in the dtype
    of the centre. Of a pytree the norm is taken over all leaves together, unless ``radius`` is a
    pytree itself: then each of its entries is a ball of its own. Arrays of integers stay as they
    are.

    Attributes:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        radius: Epsilon, in the units of the inputs (``8/255`` or ``"8/255"`` for pixels in [0, 1]):
            a number; ``[batch]``, one for each example; for Linf also one for each feature, of any
            shape that broadcasts against the inputs; or a pytree of these.
        low: Least value of an input: a number, an array that broadcasts against the inputs, or
            ``None`` for no bound (standardised tables, embeddings).
        high: Largest value.
        mask: What may change (a patch, all but some features): bools that broadcast against the
            inputs; ``None`` for all.

    The radius, bounds and mask may be traced, sharded and mapped by ``vmap``: they compile nothing
    anew.

    Raises:
        ValueError: For an unknown norm, a radius that is negative or no number, empty bounds; when
            used, for shapes that do not fit the inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import InputBall
        >>> ball = InputBall("l2", radius=0.5, mask=jnp.array([True, True, False]))
        >>> print(ball.project(jnp.zeros((1, 3)), jnp.array([[0.6, 0.8, 1.0]])))
        [[0.3 0.4 0. ]]
    """

    moves: ClassVar[str] = "inputs"

    norm: str = "linf"
    radius: Radius = 8 / 255
    low: Any = 0.0
    high: Any = 1.0
    mask: Any = None

    def __post_init__(self) -> None:
        checks.choice(self.norm, NORMS, "norm")
        usual = None if self.norm == "linf" else self.norm
        radius = jax.tree.map(lambda r: checks.radius(r, "epsilon", usual), self.radius)
        object.__setattr__(self, "radius", radius)
        for name in ("low", "high"):
            number = functools.partial(checks.number, name=name)
            object.__setattr__(self, name, jax.tree.map(number, getattr(self, name)))
        if checks.is_number(self.low) and checks.is_number(self.high) and self.low >= self.high:
            raise ValueError(f"The range of inputs [{self.low}, {self.high}] is empty.")
        if self.norm == "linf" and checks.is_number(self.low) and checks.is_number(self.high):
            for value in jax.tree.leaves(self.radius):
                if checks.is_number(value) and value > self.high - self.low:
                    raise ValueError(
                        f"epsilon is {value:g}, wider than the range [{self.low:g}, {self.high:g}] "
                        f"of the inputs: was {value:g}/255 meant? (Other inputs have other low and "
                        "high, or None.)"
                    )

    # What the contract asks for.

    def start(self, key: Key, centre: Inputs) -> Any:
        """Where an attack begins: a random point, see ``sample``."""
        return self.sample(key, centre)

    def sample(self, key: Key, centre: Inputs) -> Any:
        """A random point: U(-radius, radius) for Linf; else a random direction times U(0, radius).

        Rice et al. 2020, ``train_cifar.py``. Directions are Gaussian for L2 and Laplacian for L1.

        Args:
            key: One typed key, or one for each example.
            centre: Clean inputs ``[batch, ...]``.

        Returns:
            Inputs like ``centre``, within their bounds.
        """
        if self._several:
            return self._each(lambda ball, i, c: ball.sample(_folded(key, i, c), c), centre)
        centres, structure = self._leaves(centre)
        radii = self._radii(centres)
        if self.norm == "linf":
            drawn = structure.flatten_up_to(noise_like(key, centre, "linf"))
            moved = [
                # In the dtype of the inputs, which a wider radius must not change.
                c + r.astype(c.dtype) * d if is_float(c) else c
                for c, r, d in zip(centres, radii, drawn, strict=True)
            ]
            return self.project(centre, jax.tree.unflatten(structure, moved))
        draw = jax.random.normal if self.norm == "l2" else jax.random.laplace

        def one(k: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
            direction_key, length_key = jax.random.split(k)
            shape, dtype = c.shape, c.dtype
            return draw(direction_key, shape, dtype), jax.random.uniform(length_key, (), dtype)

        pairs = [
            jax.vmap(one)(k, c) if is_float(c) else (jnp.zeros(c.shape), None)
            for k, c in zip(leaf_keys_of(key, centres), centres, strict=True)
        ]
        # The norm goes over all leaves together, so there is one length for them: the first one's.
        share = next(lengths for _, lengths in pairs if lengths is not None)
        # Masked before it is measured, so that the whole length is left to what may move.
        directions = self._masked([direction for direction, _ in pairs], centres)
        norms = reciprocal(input_norms(directions, self.norm))
        moved = [
            c
            + d
            * per_example((share.astype(norms.dtype) * norms).astype(c.dtype), c)
            * r.astype(c.dtype)
            if is_float(c)
            else c
            for c, d, r in zip(centres, directions, radii, strict=True)
        ]
        return self.project(centre, jax.tree.unflatten(structure, moved))

    def step(self, centre: Inputs, point: Inputs, gradient: Gradients, size: Any) -> Any:
        """One step of projected steepest ascent (eqs. 9 and 14 of AWP, NeurIPS 2020).

        Args:
            centre: Clean inputs ``[batch, ...]``.
            point: Current inputs.
            gradient: Of the loss in the point. An example whose gradient is not finite stays.
            size: Length of the step in the ball's norm, in the units of the radius, and of the
                same shapes.

        Returns:
            The projected inputs.
        """
        if self._several:
            return self._each(
                lambda ball, _, c, p, g, s: ball.step(c, p, g, s),
                centre,
                point,
                gradient,
                size=size,
            )
        centres, structure = self._leaves(centre)
        points, gradients = structure.flatten_up_to(point), structure.flatten_up_to(gradient)
        gradients = self._masked(gradients, centres)
        if self.norm == "l1":
            # An L1 step moves a single entry, and would be wasted on one that is at its bound.
            gradients = self._with_room(gradients, points, centres)
        sizes = self._radii(centres, size, "step_size")
        moved = [
            p + s.astype(p.dtype) * d if is_float(p) else p
            for p, s, d in zip(points, sizes, directions(self.norm, gradients), strict=True)
        ]
        return self.project(centre, jax.tree.unflatten(structure, moved))

    def project(self, centre: Inputs, point: Inputs) -> Any:
        """The point itself when it is inside, else the nearest of the norm ball, within the bounds.

        Clipping to the bounds after the projection on an Linf or L2 ball never leaves it, because
        the centre lies within: each coordinate only moves towards its centre. The L1 projection is
        the exact one on ball and bounds together (Croce and Hein, ICML 2021).
        """
        if self._several:
            return self._each(lambda ball, _, c, p: ball.project(c, p), centre, point)
        centres, structure = self._leaves(centre)
        points = structure.flatten_up_to(point)
        moves = self._masked(
            [p - c if is_float(c) else c for p, c in zip(points, centres, strict=True)], centres
        )
        radii = self._radii(centres)
        lows, highs = self._bounds(centres)
        if self.norm == "linf":
            moves = [
                jnp.clip(m, -r.astype(m.dtype), r.astype(m.dtype)) if is_float(m) else m
                for m, r in zip(moves, radii, strict=True)
            ]
        elif self.norm == "l2":
            wide = [at_least_float32(m) for m in moves if is_float(m)]
            size, rest = measured(wide, "l2")
            limit = radii[0].reshape(-1).astype(rest.dtype)
            # Two factors, as the norm itself may be more than the largest number.
            outside = size * rest > limit
            factor = limit * reciprocal(rest)
            moves = [shortened(m, outside, size, factor) if is_float(m) else m for m in moves]
        else:
            moves = project_l1(centres, moves, radii[0].reshape(-1), lows, highs)
        moved = [
            c + m if is_float(c) else p for c, m, p in zip(centres, moves, points, strict=True)
        ]
        return self.clip(centre, jax.tree.unflatten(structure, moved))

    def distance(self, centre: Inputs, point: Inputs) -> Any:
        """How far each example is from its centre.

        Args:
            centre: Clean inputs ``[batch, ...]``.
            point: Inputs like them.

        Returns:
            ``[batch]``, in the ball's norm and the units of the inputs; infinite where something
            moved that the mask holds. With a radius for each feature, the largest share of its
            radius that any feature moved: inside is at most 1. For a pytree of radii one of these
            for each.
        """
        if self._several:
            return self._each(lambda ball, _, c, p: ball.distance(c, p), centre, point)
        centres, structure = self._leaves(centre)
        points = structure.flatten_up_to(point)
        moves = [
            at_least_float32(p - c) for p, c in zip(points, centres, strict=True) if is_float(c)
        ]
        if self.per_feature(centres):
            radii = self._radii([c for c in centres if is_float(c)])
            moves = [
                # A radius of 0 holds its feature: 0 / 0 there is no distance.
                jnp.where(m == 0, 0.0, jnp.abs(m) / r.astype(m.dtype))
                for m, r in zip(moves, radii, strict=True)
            ]
        distance = input_norms(moves, self.norm)
        for mask, p, c in zip(self._masks(centres), points, centres, strict=True):
            if mask is not None:
                held = jnp.any((~mask & (p != c)).reshape(c.shape[0], -1), axis=1)
                distance = jnp.where(held, jnp.inf, distance)
        return distance

    # What attacks of this library ask beside.

    def direction(self, gradient: Gradients) -> Any:
        """The unit step of steepest ascent: sign for Linf, g/||g|| for L2, one entry for L1.

        Args:
            gradient: Like the inputs.

        Returns:
            Like ``gradient``; zero where the gradient of an example is zero or not finite.
        """
        leaves, structure = flatten(gradient)
        return jax.tree.unflatten(structure, directions(self.norm, leaves))

    def on_sphere(self, centre: Inputs, way: Any, share: float = 1.0) -> Any:
        """The point at ``share`` of the radius in the direction ``way``, within the bounds.

        Args:
            centre: Clean inputs ``[batch, ...]``.
            way: Like them, of any length; zero stays at the centre.
            share: Of the radius, in [0, 1].
        """
        if self._several:
            return self._each(lambda ball, _, c, w: ball.on_sphere(c, w, share), centre, way)
        centres, structure = self._leaves(centre)
        ways = self._masked(structure.flatten_up_to(way), centres)
        norms = reciprocal(input_norms([w for w in ways if is_float(w)], self.norm))
        moved = [
            c + r.astype(c.dtype) * (share * per_example(norms, c)).astype(c.dtype) * w
            if is_float(c)
            else c
            for c, w, r in zip(centres, ways, self._radii(centres), strict=True)
        ]
        # On the sphere already, but perhaps out of the bounds.
        return self.project(centre, jax.tree.unflatten(structure, moved))

    def lying(self, value: jax.Array, leaf: jax.Array, name: str = "step_size") -> jax.Array:
        """A radius or step size with as many axes as the inputs, or none (one number).

        Raises:
            ValueError: Where its shape is neither that of examples nor (for Linf) of features.
        """
        return lying(self.norm, value, leaf, name)

    def clip(self, centre: Inputs, point: Inputs) -> Any:
        """``point`` within the bounds, and with what the mask holds put back."""
        if self._several:
            return self._each(lambda ball, _, c, p: ball.clip(c, p), centre, point)
        centres, structure = self._leaves(centre)
        lows, highs = self._bounds(centres)
        points = structure.flatten_up_to(point)
        inside = [
            clipped(p, low, high) if is_float(p) else p
            for p, low, high in zip(points, lows, highs, strict=True)
        ]
        return self.hold(centre, jax.tree.unflatten(structure, inside))

    def hold(self, centre: Inputs, point: Inputs) -> Any:
        """``point`` with what the mask holds put back; in the ball or not."""
        if self._several:
            return self._each(lambda ball, _, c, p: ball.hold(c, p), centre, point)
        centres, structure = self._leaves(centre)
        kept = [
            p if mask is None else jnp.where(mask, p, c)
            for p, c, mask in zip(
                structure.flatten_up_to(point), centres, self._masks(centres), strict=True
            )
        ]
        return jax.tree.unflatten(structure, kept)

    def per_feature(self, centre: Inputs) -> bool:
        """Whether features of one example have radii of their own."""
        # Shapes alone: eagerly each array made would be a program.
        radii = jax.eval_shape(lambda c: self._radii(jax.tree.leaves(c)), centre)
        return any(r.ndim > 0 and any(n > 1 for n in r.shape[1:]) for r in radii)

    def check(self, centre: Inputs) -> None:
        """Raises ``ValueError`` where radius, bounds or mask do not fit the inputs."""
        if self._several:
            self._each(lambda ball, _, c: ball.check(c), centre)
            return
        centres, _ = self._leaves(centre)
        self._radii(centres), self._bounds(centres), self._masks(centres)

    def examples(self, centre: Inputs, rows: Any) -> "InputBall":
        """The ball of some of the examples: what is given for each example is cut with them.

        Args:
            centre: All inputs ``[batch, ...]``.
            rows: int ``[n]``.

        Returns:
            The ball for ``centre[rows]``.
        """
        names = ("radius", "low", "high", "mask")
        own = {name: getattr(self, name) for name in names}
        parts = {name: of_rows(value, centre, rows) for name, value in own.items()}
        # By identity: no array is looked at, and callers see by it as well that nothing was cut.
        same = jax.tree.leaves(
            jax.tree.map(lambda a, b: a is b, list(own.values()), list(parts.values()))
        )
        return self if all(same) else dataclasses.replace(self, **parts)

    # How radius, bounds and mask lie over the inputs.

    @property
    def _several(self) -> bool:
        return not jax.tree_util.all_leaves([self.radius])

    def _each(self, work: Callable[..., Any], centre: Inputs, *trees: Any, size: Any = None) -> Any:
        """``work`` for the ball and the inputs under each entry of a pytree of radii."""
        radii, structure = flatten(self.radius)
        parts = [structure.flatten_up_to(tree) for tree in (centre, *trees)]

        def split(value: Any) -> list[Any]:
            # None counts as an entry: one of the balls may have no bound.
            alike = bool(jax.tree.structure(value, is_leaf=lambda x: x is None) == structure)
            return structure.flatten_up_to(value) if alike else [value] * len(radii)

        lows, highs, masks = split(self.low), split(self.high), split(self.mask)
        extra = []
        if size is not None:
            one = jax.tree_util.all_leaves([size])
            extra = [[size] * len(radii) if one else structure.flatten_up_to(size)]
        return jax.tree.unflatten(
            structure,
            [
                work(InputBall(self.norm, radii[i], lows[i], highs[i], masks[i]), i, *rest)
                for i, rest in enumerate(zip(*parts, *extra, strict=True))
            ],
        )

    def _leaves(self, centre: Inputs) -> tuple[list[jax.Array], Any]:
        leaves, structure = flatten(centre)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        if not any(is_float(leaf) for leaf in leaves):
            raise ValueError("The inputs hold no float array: there is nothing that can be moved.")
        return leaves, structure

    def _radii(
        self, centres: list[Any], radius: Radius = None, name: str = "radius"
    ) -> list[jax.Array]:
        """The radius (or a step size) as one array for each leaf, with as many axes, or none."""
        values = jax.tree.leaves(self.radius if radius is None else radius)
        # One for all, or one for each leaf.
        values = values if len(values) == len(centres) else values * len(centres)
        return [
            self.lying(jnp.asarray(value), leaf, name)
            for value, leaf in zip(values, centres, strict=True)
        ]

    def _bounds(self, centres: list[Any]) -> tuple[list[Any], list[Any]]:
        pair = []
        for name in ("low", "high"):
            bounds = spread(getattr(self, name), centres)
            pair.append(
                [
                    None if b is None else broadcastable(jnp.asarray(b), leaf, name)
                    for b, leaf in zip(bounds, centres, strict=True)
                ]
            )
        return pair[0], pair[1]

    def _masks(self, centres: list[Any]) -> list[Any]:
        return [
            None if m is None else broadcastable(jnp.asarray(m, bool), leaf, "mask")
            for m, leaf in zip(spread(self.mask, centres), centres, strict=True)
        ]

    def _masked(self, leaves: list[jax.Array], centres: list[Any]) -> list[jax.Array]:
        return [
            leaf if mask is None else jnp.where(mask, leaf, jnp.zeros_like(leaf))
            for leaf, mask in zip(leaves, self._masks(centres), strict=True)
        ]

    def _with_room(
        self, gradients: list[Any], points: list[Any], centres: list[Any]
    ) -> list[jax.Array]:
        """Gradients, zero where the point can go no further that way."""
        lows, highs = self._bounds(centres)
        return [
            jnp.where(has_room(g, p, low, high), g, jnp.zeros_like(g)) if is_float(p) else g
            for g, p, low, high in zip(gradients, points, lows, highs, strict=True)
        ]


def _folded(key: Key, number: int, centre: Inputs) -> jax.Array:
    # By the number of the ball: from the same keys all of them would draw the same noise.
    return fold_keys(example_keys(key, jax.tree.leaves(centre)[0].shape[0]), number)
