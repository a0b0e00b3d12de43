"""Loss and accuracy on a grid of weights around a model."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, parallel, results
from awp_jax.attacks._model import as_pytree_function, check_examples, number_of_classes
from awp_jax.data import as_float, padded_batches
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._model import float_images, full_precision, logits_at, looked_at
from awp_jax.panels import clean, contour, levels_of
from awp_jax.random import example_keys
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params

# Points in one compiled call where loops stay rolled (GPU, TPU).
_POINTS_PER_CALL = 8


class Surface(NamedTuple):
    """A loss landscape on a grid.

    Attributes:
        axes: One array of coordinates per direction; 1 moves by the whole direction.
        loss: float64, one axis per direction: mean cross-entropy in nats; NaN where not computed,
            or where the model returns NaN.
        accuracy: Of the same shape: share classified correctly after the attack, in [0, 1]; NaN
            where the loss is.
        computed: Of the same shape: which points are done. ``None`` for those with a loss.
    """

    axes: tuple[np.ndarray, ...]
    loss: np.ndarray
    accuracy: np.ndarray
    computed: np.ndarray | None = None

    @property
    def done(self) -> np.ndarray:
        """``computed``, or the points with a loss where that is not said."""
        return ~np.isnan(self.loss) if self.computed is None else self.computed

    def __repr__(self) -> str:
        head = " x ".join(map(str, getattr(self.loss, "shape", ()))) + " points"
        return results.described("Surface", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the loss as a curve, or of two directions its change from the centre as contours.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        if len(self.axes) == 1:
            axes.plot(self.axes[0], self.loss, "o-", markersize=3)
            axes.set_xlabel("a")
            axes.set_ylabel("loss (nats)")
            clean(axes)
            return axes
        if len(self.axes) != 2:
            raise ValueError(f"{len(self.axes)} directions cannot be drawn: 1 or 2 can.")
        centre = tuple(int(np.abs(axis).argmin()) for axis in self.axes)
        change = np.abs(self.loss - self.loss[centre])
        drawn = contour(axes, *self.axes, change, levels_of([change]))
        axes.set_xlabel("a")
        axes.set_ylabel("b")
        axes.figure.colorbar(drawn, ax=axes, label="|g(a, b) - g(0, 0)| (nats)")
        return axes


def axis(points: int = 41, extent: float = 1.0) -> np.ndarray:
    """Equally spaced coordinates from -extent to extent, exactly 0 in the middle.

    Args:
        points: How many: odd, at least 3.
        extent: Above 0, relative to the weights' norms (1 in AWP's figures).

    Returns:
        float64 ``[points]``.

    Raises:
        ValueError: For an even number, fewer than 3, or an extent that is 0, negative or no
            number.

    Example:
        >>> from awp_jax.landscape import axis
        >>> axis(5, 1.0).tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    if checks.positive_integer(points, "points", minimum=3) % 2 == 0:
        raise ValueError(f"points is {points}, but an odd number was expected: 0 is one of them.")
    if not 0 < extent < float("inf"):
        raise ValueError(f"range is {extent!r}, but a finite number above 0 was expected.")
    half = points // 2
    return np.arange(-half, half + 1) / half * extent


@on_any_mesh(apply_fn="params images")
def surface(
    apply_fn: ApplyFn,
    params: Params,
    directions: Any,
    images: Images,
    labels: Labels,
    *,
    axes: Sequence[Any],
    attack: Attack | None = None,
    key: Key | None = None,
    adversarial: str = "anew",
    batch_size: int = 256,
    start: Surface | None = None,
    on_points: Callable[[Surface, int], Any] | None = None,
    points_per_call: int | None = None,
) -> Surface:
    """The loss ``g(a, b) = rho(w + a d + b e)`` on a grid (AWP, NeurIPS 2020, algorithm 1).

    Adversarial examples start from the same key at every point, so a point depends neither on the
    others nor on their order, and the point 0 equals ``awp_jax.evaluation.measure`` with that key.
    All points run through the same compiled functions. On CPU, where convolutions are slow inside
    XLA's loops, points and attack steps follow each other from Python; elsewhere several points
    are one call.

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``; a ``jax.tree_util.Partial`` (over
            BatchNorm statistics, say) is compiled once for all parameters.
        params: Weights w, a pytree of float arrays; everything is computed in their dtype.
        directions: Like ``params`` with leaves ``[directions, ...]``; see ``directions``.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        axes: For each direction its coordinates, ``[points]``; see ``axis``.
        attack: ``attack(logits_fn, key, images, labels)``, such as ``PGD``; ``None`` for the loss
            on clean images.
        key: One typed key, or one per example; needed with an attack.
        adversarial: ``"anew"``: adversarial examples are made at every point, as in the AWP papers.
            ``"centre"``: made once at w, which underestimates the loss (section 3 there). For an
            attack with several restarts its loss is the highest over them when made anew, and
            that of the images it returns when made at the centre.
        batch_size: Examples per pass; does not change the result.
        start: Points computed before, on the same axes; they are kept, the others computed.
        on_points: Called with what is there so far, and the number of points still to do, after
            every call.
        points_per_call: ``None`` for the rule above; else so many points in one compiled call.

    Returns:
        A ``Surface``.

    Raises:
        ValueError: For bad images or labels, directions that do not fit the parameters, empty or
            non-finite axes, a missing key, or an unknown value of ``adversarial``.

    Warns:
        UserWarning: Once, with the coordinates, where the model returns NaN: too far from its
            weights, nearly always.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.landscape import axis, directions, surface
        >>> apply_fn = lambda params, images: images.mean((1, 2)) @ params["kernel"]
        >>> params = {"kernel": jnp.array([[4.0, -4.0]])}
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.9), jnp.array([0, 0])
        >>> d = directions(jax.random.key(0), params)
        >>> found = surface(apply_fn, params, d, images, labels, axes=[axis(3, 0.5)])
        >>> found.loss.shape, bool(found.accuracy[1] == 1.0)
        ((3,), True)
    """
    checks.choice(adversarial, ("anew", "centre"), "adversarial")
    checks.positive_integer(batch_size, "batch_size")
    if attack is not None and key is None:
        raise ValueError("key is missing: an attack draws random starts from it.")
    coordinates = tuple(_coordinates(values) for values in axes)
    _check_directions(params, directions, len(coordinates))
    check_examples(as_float(images), labels, getattr(attack, "ball", None))
    function = as_pytree_function(apply_fn)
    images, labels, n = np.asarray(images), np.asarray(labels), len(labels)
    classes = number_of_classes(logits_at(function, params), float_images(images[:1], params))
    checks.labels_below(labels, classes)
    # Without an attack nobody draws, but compiled functions take keys all the same.
    keys = example_keys(jax.random.key(0) if key is None else key, n)
    batches = list(padded_batches(n, min(batch_size, n), parallel.shards(params)))
    found = _begun(coordinates, start)
    done = found.done  # the array of `found` itself
    todo = np.argwhere(~done)
    if points_per_call is None and jax.default_backend() != "cpu":
        points_per_call = _POINTS_PER_CALL
    with full_precision():
        if attack is not None and adversarial == "centre" and len(todo):
            images = _attacked(function, params, attack, keys, images, labels, batches)
            attack = None
        look = _look if points_per_call is None else _look_compiled
        size = min(points_per_call or 1, max(len(todo), 1))
        # A pytree can be an argument of the compiled function, whatever the attack is.
        attack = None if attack is None else as_pytree_function(attack)
        # On their devices once for all points.
        placed = [
            tuple(map(jnp.asarray, parallel.follow(params, (keys[i], images[i], labels[i]))))
            for i, _ in batches
        ]
        for first in range(0, len(todo), size):
            places = todo[first : first + size]
            # The last call is filled up with the first of its points: one size, one compilation.
            filled = np.concatenate([places, np.repeat(places[:1], size - len(places), axis=0)])
            where = np.stack([coordinates[d][filled[:, d]] for d in range(len(coordinates))], 1)
            results = parallel.to_host(
                [look(function, params, directions, where, attack, *batch) for batch in placed]
            )
            masks = [mask for _, mask in batches]
            losses, shares = (_gathered(results, masks, kind) for kind in range(2))
            # Not strict: the points that only fill up the last call have no place.
            for place, loss, share in zip(places, losses, shares, strict=False):
                # The argmax of NaN is a class, and would give such a point an accuracy.
                share = np.nan if np.isnan(loss) else share
                found.loss[tuple(place)], found.accuracy[tuple(place)] = loss, share
                done[tuple(place)] = True
            if on_points is not None:
                on_points(found, len(todo) - first - len(places))
    _warn_of_nan(found, todo)
    return found


def _warn_of_nan(found: Surface, computed: np.ndarray) -> None:
    """One warning for all points, computed now, where the model returns NaN."""
    places = [place for place in computed if np.isnan(found.loss[tuple(place)])]
    if places:
        first = ", ".join(f"{axis[i]:g}" for axis, i in zip(found.axes, places[0], strict=True))
        warnings.warn(
            f"The model returns NaN at {len(places)} of {len(computed)} points of the landscape, "
            f"first at ({first}): loss and accuracy are NaN there.",
            stacklevel=3,
        )


def _attacked(
    function: Partial,
    params: Params,
    attack: Attack,
    keys: Key,
    images: Images,
    labels: Labels,
    batches: Any,
) -> np.ndarray:
    """All images, as ``attack`` changes them at ``params``."""
    parts = []
    for i, mask in batches:
        rows = (keys[i], float_images(jnp.asarray(images[i]), params), jnp.asarray(labels[i]))
        found = looked_at(attack, logits_at(function, params), *parallel.follow(params, rows))
        parts.append(parallel.to_host(found.images)[mask])
    return np.concatenate(parts)


def _move(params: Params, directions: Any, where: Any) -> Any:
    def moved(leaf: Any, ways: Any) -> Any:
        for way, by in zip(ways, where, strict=True):
            # In the weights' dtype, whatever that of the coordinates.
            leaf = leaf + by.astype(leaf.dtype) * way
        return leaf

    return jax.tree.map(moved, params, directions)


_compiled_move = jax.jit(_move)


def _look(
    function: Partial,
    params: Params,
    directions: Any,
    where: Any,
    attack: Attack | None,
    keys: Key,
    images: Images,
    labels: Labels,
) -> Any:
    """At one point, loss of each example of a batch and whether it is right: ``[1, batch]``."""
    moved = _compiled_move(params, directions, jnp.asarray(where[0]))
    images = float_images(images, params)
    result = looked_at(attack, logits_at(function, moved), keys, images, labels)
    return result.loss[None], ~result.success[None]


@jax.jit
def _look_compiled(
    function: Partial,
    params: Params,
    directions: Any,
    where: Any,
    attack: Attack | None,
    keys: Key,
    images: Images,
    labels: Labels,
) -> Any:
    """The same at several points ``where [points, directions]``, in one call."""
    images = float_images(images, params)

    def one(point: Any) -> Any:
        moved = _move(params, directions, point)
        result = looked_at(attack, logits_at(function, moved), keys, images, labels)
        return result.loss, ~result.success

    # map, not vmap: activations of one network at a time.
    return jax.lax.map(one, jnp.asarray(where))


def _gathered(results: list[Any], masks: list[np.ndarray], kind: int) -> np.ndarray:
    """The mean over all examples of what ``_look`` found, per point."""
    kept = [r[kind][:, mask].astype(np.float64) for r, mask in zip(results, masks, strict=True)]
    return np.concatenate(kept, axis=1).mean(axis=1)


def _begun(coordinates: tuple[np.ndarray, ...], start: Surface | None) -> Surface:
    shape = tuple(len(values) for values in coordinates)
    if start is None:
        nothing = np.zeros(shape, bool)
        return Surface(coordinates, np.full(shape, np.nan), np.full(shape, np.nan), nothing)
    same = len(start.axes) == len(shape) and all(map(np.array_equal, start.axes, coordinates))
    if not same or start.loss.shape != shape or start.accuracy.shape != shape:
        raise ValueError("start was computed on other axes.")
    # Copies: what was handed in as `start` is not written to.
    done = np.array(start.done, bool)
    return Surface(coordinates, np.array(start.loss), np.array(start.accuracy), done)


def _coordinates(values: Any) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ValueError(
            f"An axis has shape {found.shape} and holds {found.tolist()}, but finite coordinates "
            "[points] were expected."
        )
    return found


def _check_directions(params: Params, directions: Any, count: int) -> None:
    structure: Any = jax.tree.structure(params)
    if structure != jax.tree.structure(directions):
        raise ValueError("directions and params differ in structure: are they of one model?")
    if not count:
        raise ValueError("axes is empty: one array of coordinates per direction was expected.")
    for leaf, ways in zip(jax.tree.leaves(params), jax.tree.leaves(directions), strict=True):
        if jnp.shape(ways) != (count, *jnp.shape(leaf)):
            raise ValueError(
                f"directions hold an array of shape {jnp.shape(ways)}, but "
                f"{(count, *jnp.shape(leaf))} was expected: one axis per direction, then the shape "
                "of the parameter."
            )
