"""Square attack: random search without gradients (Andriushchenko et al., ECCV 2020)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import streams
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._result import choose
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.pytrees import pytree_dataclass
from awp_jax.random import fold_keys
from awp_jax.typing import Inputs, Key, Labels, Radius

# After these many queries p is halved (section 4 of the paper, for 10,000 queries).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def window_sizes(queries: int, p: float, height: int, width: int, norm: str = "linf") -> np.ndarray:
    """The side of the square window at each query.

    Args:
        queries: Number of queries.
        p: First share of pixels to change.
        height: Of the images.
        width: Of the images.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``: in the last two sides are odd and at least 3.

    Returns:
        int ``[queries]``, between 1 and the shorter side of the image.
    """
    # Left: the step of that index still has the old p.
    halvings = np.searchsorted(np.array(HALVINGS), np.arange(queries), side="left")
    sides = np.rint(np.sqrt(p * 0.5**halvings * height * width)).astype(int)
    if norm != "linf":
        sides = np.maximum(sides, 3)
        sides += 1 - sides % 2
    # After the rounding to odd numbers: a window never exceeds the image.
    return np.clip(sides, 1, min(height, width))


def _pyramid(rows: int, columns: int, power: int, order: int) -> np.ndarray:
    """Nested rectangles with weights 1, 1/2^power, 1/3^power, ... from the middle outwards."""
    # A window of side 1 has no upper half, whose norm would be 0 / 0.
    if rows == 0:
        return np.zeros((rows, columns))
    middle_row, middle_column = rows // 2, columns // 2
    layers = max(middle_row, middle_column) + 1
    ring = np.maximum(
        np.abs(np.arange(rows) - middle_row)[:, None],
        np.abs(np.arange(columns) - middle_column)[None, :],
    )
    weights = 1.0 / np.arange(1, layers + 1) ** power
    # A pixel lies in the rectangle of its own ring and in all outer ones, whose weights add up.
    tails = np.cumsum(weights[::-1])[::-1]
    values = tails[np.minimum(ring, layers - 1)]
    return values / np.linalg.norm(values.ravel(), order)


def pattern(side: int, norm: str) -> np.ndarray:
    """The update of a window (eq. 2 of the paper): a bump and a dip side by side, of unit norm.

    Rings of the bump weigh ``1 / k^2`` in L2 (the paper) and ``1 / k^4`` in L1 (fra31/auto-attack,
    square.py).

    Args:
        side: Of the window.
        norm: ``"l2"`` or ``"l1"``.

    Returns:
        ``[side, side]``.
    """
    power, order = (2, 2) if norm == "l2" else (4, 1)
    half = side // 2
    top, bottom = _pyramid(half, side, power, order), _pyramid(side - half, side, power, order)
    both = np.concatenate([top, -bottom])
    return both / np.linalg.norm(both.ravel(), order)


class SquareState(NamedTuple):
    """Everything the search remembers; each leaf has the batch as its first axis."""

    keys: Key
    images: Inputs
    labels: Labels
    best: jax.Array
    loss: jax.Array
    success: jax.Array
    first: jax.Array


@pytree_dataclass("ball")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(SteppedAttack):
    """Square attack: one random square per query, kept when the margin loss improves.

    Each example draws windows of its own, as in the paper (the released AutoAttack shares one over
    the batch), anywhere in the image. An example that is misclassified stays as it is.

    Attributes:
        epsilon, norm, ball, restarts, unroll: As in ``SteppedAttack``; an ``InputBall`` in Linf,
            L2 or L1 on images, with one radius or one for each example. L1 is that of
            fra31/auto-attack: as L2, but windows have sums of absolute values in place of squares,
            and what leaves ball or bounds is cut off by the exact projection on both.
        targeted: The labels are classes to reach.
        steps: Queries after the first one (5000, AutoAttack).
        p: First share of pixels to change (0.8, AutoAttack), halved after 10, 50, 200, 500, 1000,
            2000, 4000, 6000 and 8000 queries.
        released_corners: Draw corners as the released code does: never so that a window reaches
            the last row or column; nor do, below 10 pixels, tiles of the first query in L2 and L1
            reach the first. On small images that makes the attack weaker.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import Square
        >>> logits_fn = lambda images: images.mean((1, 2)) * jnp.array([[1.0, -1.0]])
        >>> images = jnp.full((1, 4, 4, 1), 0.01)
        >>> Square("8/255", steps=50)(logits_fn, jax.random.key(0), images, jnp.array([1])).success
        Array([ True], dtype=bool)
    """

    steps: int = dataclasses.field(default=5000, kw_only=False)
    targeted: bool = False
    p: float = 0.8
    released_corners: bool = False

    segment: ClassVar[int] = 100

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        self._needs_input_ball("paints windows in the norm of its ball")
        if not 0 < self.p <= 1:
            raise ValueError(f"p is {self.p!r}, but a number in (0, 1] was expected.")

    @property
    def goal(self) -> Goal:
        """What the attack wants."""
        return Goal("margin", targeted=self.targeted)

    def check(self, images: Inputs) -> None:
        """Raises ``ValueError`` for what is no batch of images, and for radii of features."""
        if getattr(images, "ndim", None) != 4:
            raise ValueError(
                "Square needs images [batch, height, width, channels], to paint windows, not "
                f"{getattr(images, 'shape', type(images).__name__)}."
            )
        if self.ball.per_feature(images):
            raise ValueError("Square needs one radius for all features of an example.")

    def begin(
        self,
        function: Callable[..., Any],
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
        restart: jax.Array,
    ) -> SquareState:
        """The first query: vertical stripes for Linf, else a grid of bumps and dips."""
        del rank, restart
        self.check(images)
        _, height, width, channels = images.shape
        start_keys, norm = fold_keys(keys, streams.SEARCH_START), self.ball.norm
        if norm == "linf":
            signs = jax.vmap(lambda k: _signs(k, (1, width, channels), images.dtype))(start_keys)
            noise = jnp.broadcast_to(signs, images.shape)
        else:
            tile = jnp.asarray(pattern(max(min(height, width) // 5, 1), norm), images.dtype)
            grid = functools.partial(_grid, released=self.released_corners)
            noise = jax.vmap(lambda k: grid(k, tile, height, width, channels))(start_keys)
        point = self._inside(images, noise)
        logits = function(point)
        return SquareState(
            keys=keys,
            images=images,
            labels=labels,
            best=point,
            loss=self.goal.ascended(logits, labels),
            success=self.goal.succeeded(logits, labels),
            first=jnp.zeros(labels.shape, jnp.int32),
        )

    def step(
        self, function: Callable[..., Any], index: jax.Array, state: SquareState
    ) -> SquareState:
        """One query per example."""
        s = state
        # From 1: the start has folded in 0.
        keys = fold_keys(s.keys, index + 1)
        propose = self._linf if self.ball.norm == "linf" else self._moved
        point = propose(keys, index, s.images, s.best)
        logits = function(point)
        loss = self.goal.ascended(logits, s.labels)
        wrong = self.goal.succeeded(logits, s.labels)
        # A misclassified point too: where logits tie its margin need not be higher.
        keep = ~s.success & (wrong | (loss > s.loss))
        return s._replace(
            best=choose(keep, point, s.best),
            loss=jnp.where(keep, loss, s.loss),
            first=jnp.where(wrong & ~s.success, index.astype(jnp.int32) + 1, s.first),
            success=s.success | wrong,
        )

    def _linf(self, keys: Key, index: jax.Array, images: Inputs, best: jax.Array) -> jax.Array:
        """``+-2 epsilon`` per channel on a window (algorithm 2), +-epsilon once projected."""
        _, height, width, channels = images.shape
        # A table, because the index is traced: one compiled step serves every size of window.
        side = jnp.asarray(window_sizes(self.steps, self.p, height, width))[index]

        def one(key: Key) -> jax.Array:
            corner_key, sign_key = jax.random.split(key)
            corner = self._corner(corner_key, side, height, width)
            window = _window(corner, side, height, width, images.dtype)
            return window[..., None] * _signs(sign_key, (1, 1, channels), images.dtype)

        # Twice epsilon leads from any point of the ball to its far side, or beyond and back to it.
        return self.ball.project(images, best + 2 * self._radius(images) * jax.vmap(one)(keys))

    def _radius(self, images: Inputs) -> jax.Array:
        return self.ball.lying(jnp.asarray(self.ball.radius, images.dtype), images)

    def _inside(self, images: Inputs, noise: jax.Array) -> jax.Array:
        """The images with noise: of length epsilon, in L1 cut to the ball and its bounds."""
        if self.ball.norm == "l1":
            return self.ball.project(images, images + noise)
        return self.ball.on_sphere(images, noise)

    def _moved(self, keys: Key, index: jax.Array, images: Inputs, best: jax.Array) -> jax.Array:
        """Moves the mass of one window, and what is left of epsilon, to another (algorithm 3)."""
        _, height, width, channels = images.shape
        norm = self.ball.norm
        power = 2 if norm == "l2" else 1
        sides = window_sizes(self.steps, self.p, height, width, norm)
        # A canvas for each size that occurs: there are few, but thousands of queries.
        different, which = np.unique(sides, return_inverse=True)
        canvas = np.zeros((2, len(different), height, width))
        for row, n in enumerate(different):
            canvas[0, row, :n, :n] = pattern(n, norm)
            canvas[1, row, :n, :n] = pattern(n, norm).T
        side = jnp.asarray(sides)[index]
        upright, turned = jnp.asarray(canvas, images.dtype)[:, jnp.asarray(which)[index]]
        # As released: in L1 each channel gets all that is free. The projection cuts what is over.
        copies = channels if norm == "l1" else 1

        def mass(window: jax.Array) -> jax.Array:
            return jnp.sum(jnp.abs(window) ** power, axis=(0, 1), keepdims=True)

        def one(key: Key, delta: jax.Array, radius: jax.Array) -> jax.Array:
            corner_key, other_key, turn_key, sign_key = jax.random.split(key, 4)
            corner = self._corner(corner_key, side, height, width)
            target = _window(corner, side, height, width, images.dtype)[..., None]
            other = self._corner(other_key, side, height, width)
            source = _window(other, side, height, width, images.dtype)[..., None]
            shape = jnp.where(jax.random.bernoulli(turn_key), turned, upright)
            # On a canvas as large as the image and rolled to its place: corner and size are traced,
            # so that nothing can be sliced.
            bump = jnp.roll(shape, corner, axis=(0, 1))[..., None]
            bump = bump * _signs(sign_key, (1, 1, channels), images.dtype)
            old = delta * target
            # 1e-12: a window that holds no mass yet would be 0 / 0.
            new = bump + old / (mass(old) ** (1 / power) + 1e-12)
            # Rounding may leave more than the radius: what is unused is never less than nothing.
            unused = jnp.maximum(radius**power - mass(delta).sum(), 0.0) / channels
            # Of both windows together: where they overlap, mass counts once.
            moved = mass(delta * jnp.maximum(target, source))
            length = ((unused + moved) * copies) ** (1 / power)
            new = new / (mass(new) ** (1 / power) + 1e-12) * length
            return jnp.where(target > 0, new, jnp.where(source > 0, 0.0, delta))

        radii = jnp.broadcast_to(self._radius(images).reshape(-1), keys.shape)
        return self._inside(images, jax.vmap(one)(keys, best - images, radii))

    def _corner(self, key: Key, side: jax.Array, height: int, width: int) -> jax.Array:
        """A window's upper left corner, uniform over all places where it fits."""
        places = jnp.stack([height - side, width - side]).astype(jnp.int32)
        places = jnp.maximum(places, 1) if self.released_corners else places + 1
        draw = jax.random.uniform(key, (2,))
        # A draw just below 1 may be rounded up in the product.
        return jnp.minimum((draw * places.astype(draw.dtype)).astype(jnp.int32), places - 1)

    def candidate(self, state: SquareState) -> jax.Array:
        """The best point."""
        return state.best


def _signs(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.rademacher(key, shape).astype(dtype)


def _window(corner: jax.Array, side: jax.Array, height: int, width: int, dtype: Any) -> jax.Array:
    """A mask ``[height, width]`` of zeros and ones."""
    # By comparison, because the window's size is traced.
    rows, columns = jnp.arange(height) - corner[0], jnp.arange(width) - corner[1]
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (inside_rows[:, None] & inside_columns[None, :]).astype(dtype)


def _grid(
    key: Key, tile: jax.Array, height: int, width: int, channels: int, released: bool
) -> jax.Array:
    """The first point: tiles of a fifth of the image, each a pattern with a random sign."""
    side, dtype = len(tile), tile.dtype
    rows, columns = height // side, width // side
    sign_key, turn_key = jax.random.split(key)
    signs = _signs(sign_key, (rows, 1, columns, 1, channels), dtype)
    turn = jax.random.bernoulli(turn_key, shape=(rows, 1, columns, 1, 1))
    upright, turned = tile[None, :, None, :, None], tile.T[None, :, None, :, None]
    tiles = (signs * jnp.where(turn, turned, upright)).reshape(
        rows * side, columns * side, channels
    )
    # The released code leaves space for five tiles, also where there are more: those are cut.
    spare = [height - rows * side, width - columns * side]
    before = [(height - 5 * side) // 2] * 2 if released else [n // 2 for n in spare]
    sides = [(b, max(n - b, 0)) for n, b in zip(spare, before, strict=True)]
    return jnp.pad(tiles, (*sides, (0, 0)))[:height, :width]
