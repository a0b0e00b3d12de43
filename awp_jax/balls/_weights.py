"""Balls of weights: displacements of a size relative to the weights, or absolute."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from awp_jax import checks
from awp_jax.balls._masks import as_mask, path_name
from awp_jax.balls._norms import (
    Sizes,
    at_least_float32,
    reciprocal,
    sizes,
)
from awp_jax.mapped import names_of, varies_over
from awp_jax.pytrees import flatten, is_function, pytree_dataclass
from awp_jax.random import leaf_keys
from awp_jax.typing import Displacement, Gradients, Key, Params, PyTree, Radius

SIZES = ("l2", "l1")
SCOPES = ("leaf", "global", "filter", "element")

DEFAULT_GAMMA = 5e-3  # AWP, NeurIPS 2020, Table 2


@pytree_dataclass("gamma", "radius")
@dataclasses.dataclass(frozen=True)
class WeightBall:
    """Displacements ``v`` of weights ``w`` with ``||v_l|| <= gamma * ||w_l||`` (AWP, eq. 8).

    Points are displacements, pytrees like the weights. Zero weights and zero gradients give zero,
    never NaN; a gradient that holds NaN or infinity gives zero everywhere. Integers, ``None`` and
    what the mask leaves out are never displaced.

    Attributes:
        gamma: Relative radius, without unit (0.005 = half a percent of the weights' norm): a
            number; a pytree of numbers that is a prefix of the weights; or a function from a path
            such as ``"hidden/kernel"`` to a number, or to ``None`` for what is left alone. 0.005
            when neither ``gamma`` nor ``radius`` is given.
        radius: Absolute radius in the units of the weights, in the same forms, in place of gamma.
        size: The norm of eqs. 10 and 15: ``"l2"`` (Frobenius) or ``"l1"``; both are rescaled
            radially.
        scope: What one norm is taken over: ``"leaf"`` (each tensor, as AWP), ``"global"`` (all
            tensors together, as SAM and the released RWP), ``"filter"`` (each slice of the last
            axis, as filter-normalised landscapes) or ``"element"`` (each weight).
        mask: What is perturbed: ``None`` for ``kernels_only``; a pytree of bools or a prefix of
            one; a function from the parameters to one, such as ``everything``,
            ``matching("head/*")``, ``kernels_without(*EMBEDDINGS)``; or shell patterns of paths.
        axis_name: Under ``shard_map`` or ``pmap`` with weights that are split among the devices of
            a mapped axis: its name, or several; norms are then those of the whole weights. Leaves
            that ``shard_map`` knows to be the same everywhere count once; ``pmap``, and
            ``shard_map`` with ``check_vma=False``, know nothing, and all count as split. ``()``
            takes what each device has for the whole. Arrays sharded under plain ``jit`` need none.

    Numbers of gamma and radius may be traced, sharded and mapped: they compile nothing anew.

    Raises:
        ValueError: For an unknown size or scope, a radius that is negative or no number, gamma and
            radius together, several radii where the scope is ``"global"``, or an ``axis_name``
            where it is ``"filter"``; when used, for a mask or radii that do not fit the weights,
            and for weights that differ between devices of a mapped axis without ``axis_name``.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import WeightBall
        >>> w, g = {"kernel": jnp.array([[3.0, 4.0]])}, {"kernel": jnp.array([[0.0, 2.0]])}
        >>> ball = WeightBall(gamma=0.1)
        >>> print(ball.step(w, ball.start(None, w), g, 0.1)["kernel"])
        [[0.  0.5]]
    """

    moves: ClassVar[str] = "weights"

    gamma: Radius = None
    size: str = "l2"
    scope: str = "leaf"
    mask: Any = None
    radius: Radius = None
    axis_name: Any = None

    def __post_init__(self) -> None:
        checks.choice(self.size, SIZES, "size")
        checks.choice(self.scope, SCOPES, "scope")
        if self.axis_name and self.scope == "filter":
            raise ValueError(
                f"axis_name is {self.axis_name!r}, but scope 'filter' does not know which axis of "
                "a kernel is split: gather the weights first, or use scope 'leaf' or 'global'."
            )
        if self.gamma is not None and self.radius is not None:
            raise ValueError(
                f"gamma is {self.gamma!r} and radius {self.radius!r}, but one of them was "
                "expected: gamma is relative to the weights, radius absolute."
            )
        name = "gamma" if self.radius is None else "radius"
        value = DEFAULT_GAMMA if self.gamma is None and self.radius is None else self.reach
        if not is_function(value):
            # A gamma above 1 is nearly always a slip; absolute radii of any size are usual.
            usual = "relative" if name == "gamma" else None
            value = jax.tree.map(lambda r: checks.radius(r, name, usual), value)
        several = is_function(value) or not jax.tree_util.all_leaves([value])
        if several and self.scope == "global":
            raise ValueError(
                f"{name} holds several radii, but scope 'global' takes one norm over all weights: "
                "give one number, and leave weights out by the mask."
            )
        object.__setattr__(self, name, value)
        object.__setattr__(self, "mask", as_mask(self.mask))

    @property
    def reach(self) -> Any:
        """Gamma or the absolute radius, whichever there is: the units of a step."""
        return self.gamma if self.radius is None else self.radius

    # What the contract asks for.

    def start(self, key: Key | None, centre: Params) -> Any:
        """Zero: weight ascent begins at the weights. ``key`` is not used."""
        del key
        return jax.tree.map(_zero, centre)

    def step(self, centre: Params, point: Displacement, gradient: Gradients, size: Any) -> Any:
        """One step of eq. 10: ``project(v + size * ||w_l|| * g_l / ||g_l||)``.

        Args:
            centre: Weights w.
            point: Displacement v.
            gradient: Of the loss in w + v.
            size: eta2, in the units of the radius, and of its forms.

        Returns:
            The new displacement; where the gradient is not finite, ``point`` projected.
        """
        direction = self.direction(gradient, centre)
        sizes = self._spread(size, centre, "step_size")
        moved = self._map(
            lambda v, d, s: v + jnp.asarray(s, v.dtype) * d, centre, point, direction, sizes
        )
        return self.project(centre, moved)

    def project(self, centre: Params, point: Displacement) -> Any:
        """Rescales radially what lies outside (eq. 15)."""
        sizes = self._sizes(point, centre)
        limits = self._limits(centre)
        shortened = []
        for v, power, rest, limit in zip(
            self._moving(point, centre), sizes.power, sizes.rest, limits, strict=True
        ):
            wide, inside = at_least_float32(v), power * rest <= limit
            # In two steps: one factor for 3e38 would be too small for float32.
            nearest = wide / power * (limit * reciprocal(rest))
            shortened.append(jnp.where(inside, wide, nearest).astype(v.dtype))
        return self._put(centre, shortened)

    def sample(self, key: Key, centre: Params) -> Any:
        """A Gaussian direction scaled onto the sphere ``||v_l|| = gamma * ||w_l||``."""
        noise = jax.tree.map(_noise, leaf_keys(key, centre), centre)
        direction = self.direction(noise, centre)
        reach = self._spread(self.reach, centre, "radius")
        return self._map(lambda d, r: jnp.asarray(r, d.dtype) * d, centre, direction, reach)

    def distance(self, centre: Params, point: Displacement) -> Any:
        """The size of a displacement in the units of the radius.

        Args:
            centre: Weights w.
            point: Displacement v.

        Returns:
            ``||v_l|| / ||w_l||`` (with an absolute radius ``||v_l||``) as a pytree like the
            weights, for each leaf, filter or element; one number for scope ``"global"``. Infinite
            where a leaf moved that the mask leaves out, or one of zeros.
        """
        sizes = self._sizes(point, centre).norms()
        if self.radius is None:
            own = self._sizes(centre, centre).norms()
            sizes = [
                jnp.where(v > 0, v / jnp.where(w > 0, w, 1), 0.0)
                + jnp.where((v > 0) & (w == 0), jnp.inf, 0)
                for v, w in zip(sizes, own, strict=True)
            ]
        keep = jax.tree.leaves(self.mask_of(centre))
        found = iter(sizes)
        held = [
            next(found) if kept else jnp.where(jnp.any(leaf != 0), jnp.inf, 0.0)
            for kept, leaf in zip(keep, jax.tree.leaves(point), strict=True)
        ]
        if self.scope == "global":
            return jnp.max(jnp.stack([at_least_float32(jnp.asarray(leaf)) for leaf in held]))
        return jax.tree.unflatten(jax.tree.structure(centre), held)

    # What weight perturbations of this library ask beside.

    def direction(self, gradient: Gradients, centre: Params) -> Any:
        """The step of size 1: ``g / ||g|| * ||w||`` for each scope (with a radius ``g / ||g||``).

        Zero where the gradient or the weights are zero, and everywhere where the gradient is not
        finite.
        """
        sizes = self._sizes(gradient, centre)
        # Scaled before it was squared: a norm is finite exactly where all its entries are.
        finite = jnp.bool_(True)
        for rest in sizes.rest:
            finite &= jnp.isfinite(rest).all()
        lengths = self._lengths(centre)
        units = []
        for g, power, rest, own in zip(
            self._moving(gradient, centre), sizes.power, sizes.rest, lengths, strict=True
        ):
            known = jnp.where(finite, at_least_float32(g), 0.0)
            # float16 could not hold the ratio of a small gradient.
            units.append(known / power * (jnp.where(finite, reciprocal(rest), 0.0) * own))
        leaves = self._moving(centre, centre)
        return self._put(centre, [u.astype(w.dtype) for u, w in zip(units, leaves, strict=True)])

    def norms(self, tree: PyTree, centre: Params) -> Any:
        """The norms that this ball compares, as a pytree of arrays that broadcast against leaves.

        Args:
            tree: Weights, gradients or displacements.
            centre: The weights (for the mask); what it leaves out has norm 0.
        """
        found = iter(self._sizes(tree, centre).norms())
        return jax.tree.map(
            lambda kept: next(found) if kept else jnp.zeros((), jnp.float32), self.mask_of(centre)
        )

    def mask_of(self, centre: Params) -> Any:
        """What moves, as a pytree of bools like ``centre``.

        Raises:
            ValueError: When mask or radii do not fit the weights, or nothing of them moves.
        """
        tree = self.mask(centre)
        try:
            # Plain bools: what moves is part of the compiled program, and no number in it.
            keep = jax.tree.map(lambda k, sub: jax.tree.map(lambda _: bool(k), sub), tree, centre)
        except (ValueError, TypeError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"mask does not fit the weights: {first}") from None
        reach = self.reach
        if is_function(reach):
            given = jax.tree_util.tree_map_with_path(
                lambda path, _: reach(path_name(path)) is not None, centre
            )
            keep = jax.tree.map(lambda a, b: a and b, keep, given)
        keep = jax.tree.map(
            lambda k, leaf: k and jnp.issubdtype(jnp.result_type(leaf), jnp.floating), keep, centre
        )
        _check_moves(keep, centre)
        return keep

    def radii(self, centre: Params, share: float = 1.0) -> Any:
        """The radius of each leaf times ``share``, as a pytree like the weights."""
        return jax.tree.map(lambda r: r * share, self._spread(self.reach, centre, "radius"))

    def _spread(self, value: Any, centre: Params, name: str) -> Any:
        """A number, a prefix or a function of the path as a pytree like the weights."""
        if is_function(value):

            def of_path(path: tuple[Any, ...], leaf: Any) -> Any:
                del leaf
                found = value(path_name(path))
                return 0.0 if found is None else checks.radius(found, path_name(path), None)

            return jax.tree_util.tree_map_with_path(of_path, centre)
        if jax.tree_util.all_leaves([value]):
            return jax.tree.map(lambda _: value, centre)
        try:
            return jax.tree.map(lambda r, sub: jax.tree.map(lambda _: r, sub), value, centre)
        except (ValueError, TypeError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"{name} does not fit the weights: {first}") from None

    def _moving(self, tree: PyTree, centre: Params) -> list[jax.Array]:
        keep, structure = flatten(self.mask_of(centre))
        leaves = structure.flatten_up_to(tree)
        return [jnp.asarray(leaf) for kept, leaf in zip(keep, leaves, strict=True) if kept]

    def _put(self, centre: Params, leaves: list[Any]) -> Any:
        """A pytree like the weights of what moves, zero elsewhere."""
        found = iter(leaves)
        return jax.tree.map(
            lambda kept, w: next(found) if kept else _zero(w),
            self.mask_of(centre),
            centre,
        )

    def _map(self, function: Callable[..., Any], centre: Params, *trees: Any) -> Any:
        lists = [self._moving(tree, centre) for tree in trees[:1]]
        keep, structure = flatten(self.mask_of(centre))
        for tree in trees[1:]:
            leaves = structure.flatten_up_to(tree)
            lists.append([leaf for kept, leaf in zip(keep, leaves, strict=True) if kept])
        return self._put(centre, [function(*parts) for parts in zip(*lists, strict=True)])

    def _sizes(self, tree: PyTree, centre: Params) -> Sizes:
        """The norms that this ball compares, for each leaf that moves."""
        leaves = [at_least_float32(leaf) for leaf in self._moving(tree, centre)]
        if self.scope == "element":
            # The reciprocal of a large number itself would be too small.
            own = [jnp.abs(leaf) for leaf in leaves]
            there = [(size > 0).astype(size.dtype) + 0 * size for size in own]
            return Sizes([jnp.where(size > 0, size, 1) for size in own], there)
        axes = [
            tuple(range(leaf.ndim - 1)) if self.scope == "filter" and leaf.ndim > 1 else None
            for leaf in leaves
        ]
        return sizes(
            leaves,
            self.size,
            axes,
            together=self.scope == "global",
            one_pass=True,
            split=self._split(centre),
        )

    def _split(self, centre: Params) -> list[tuple[str, ...]] | None:
        """For each leaf that moves the mapped axes over which it is split; ``None``: none is."""
        given = names_of(self.axis_name)
        unknown = self.axis_name is None and jax.sharding.get_abstract_mesh().manual_axes
        if not given and not unknown:  # as nearly always, where looking at each leaf says nothing
            return None
        varying = [varies_over(leaf) for leaf in self._moving(centre, centre)]
        if not given:
            first = next(filter(None, varying), None)
            if first is not None:
                raise ValueError(
                    f"Weights differ between the devices of axis {first[0]!r}, as parts of them "
                    "do, whose norms would be taken for those of the whole: give "
                    f"ball=WeightBall(..., axis_name={first[0]!r}); or axis_name=() where each "
                    "device has weights of its own."
                )
            return None
        if not any(varying):  # nobody knows
            return [given] * len(varying)
        return [tuple(name for name in given if name in names) for names in varying]

    def _lengths(self, centre: Params) -> list[jax.Array]:
        """What the radius is relative to: the weights' norms, or 1."""
        if self.radius is not None:
            # An absolute radius: the same code, with weights of norm 1.
            return [jnp.ones((), at_least_float32(w).dtype) for w in self._moving(centre, centre)]
        return self._sizes(centre, centre).norms()

    def _limits(self, centre: Params) -> list[jax.Array]:
        keep, structure = flatten(self.mask_of(centre))
        reach = structure.flatten_up_to(self._spread(self.reach, centre, "radius"))
        reach = [r for kept, r in zip(keep, reach, strict=True) if kept]
        lengths = self._lengths(centre)
        return [jnp.asarray(r, own.dtype) * own for r, own in zip(reach, lengths, strict=True)]


def _zero(leaf: Any) -> Any:
    # Random keys have no zero, and nobody adds to them.
    random = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return leaf if random else jnp.zeros_like(leaf)


def _check_moves(keep: PyTree, centre: Params) -> None:
    """A misspelt layer would silently be training without a perturbation."""
    kept = jax.tree.leaves(keep)
    if kept and not any(kept):
        leaves = jax.tree.leaves_with_path(centre)
        few = ", ".join(path_name(path) or "a single array" for path, _ in leaves[:5])
        raise ValueError(
            f"The mask leaves no parameter to perturb of {len(leaves)} ({few}"
            f"{', ...' if len(leaves) > 5 else ''}): awp_jax.balls.everything takes all."
        )


def _noise(key: Key, leaf: Any) -> jax.Array:
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.zeros(jnp.shape(leaf), dtype)
    return jax.random.normal(key, jnp.shape(leaf), dtype)
