"""The projection on L1 ball and bounds together against bisection in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.balls import InputBall

ROWS = 6


def by_bisection(centre, point, radius, low, high):
    """The nearest point, by 200 halvings of the threshold that is taken off every displacement."""
    centre, point = np.asarray(centre, np.float64), np.asarray(point, np.float64)
    move = point - centre
    up = np.inf if high is None else high - centre
    down = np.inf if low is None else centre - low
    room = np.where(move > 0, up, down)
    size = np.abs(move)

    def kept(threshold):
        return np.minimum(np.maximum(size - threshold, 0), room)

    least, most = np.zeros((len(size), 1)), size.max(axis=1, keepdims=True)
    outside = kept(least).sum(axis=1, keepdims=True) > radius
    for _ in range(200):
        middle = (least + most) / 2
        above = kept(middle).sum(axis=1, keepdims=True) > radius
        least, most = np.where(above, middle, least), np.where(above, most, middle)
    return centre + np.sign(move) * kept(np.where(outside, most, 0.0))


def problem(size, seed):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(size=(ROWS, size)).astype(np.float32)
    centre[0] = np.round(centre[0])  # in corners
    point = (centre + rng.normal(size=centre.shape)).astype(np.float32)
    point[1] = centre[1] + 1e-3 * (point[1] - centre[1])  # inside, or nearly
    point[2, ::2] = centre[2, ::2]  # entries that do not move
    return centre, point


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (None, None), (0.0, None), (None, 1.0)])
@pytest.mark.parametrize("size", [1, 2, 17, 64, 768])
def test_is_that_of_bisection(size, low, high):
    for seed, radius in enumerate((0.01, 0.5, 2.0, 12.0, 0.6 * size)):
        centre, point = problem(size, seed)
        found = np.asarray(InputBall("l1", radius, low, high).project(centre, jnp.asarray(point)))
        expected = by_bisection(centre, point, radius, low, high)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        length = np.abs(found.astype(np.float64) - centre).sum(axis=1)
        # Each entry is rounded to 2^-24 or so: errors add up as their square root.
        assert length.max() <= radius * (1 + 1e-6) + 3e-7 * np.sqrt(size)
        assert (low is None or found.min() >= low) and (high is None or found.max() <= high)


def test_float64_is_exact(x64):
    centre, point = (array.astype(np.float64) for array in problem(200, 3))
    for radius in (0.3, 4.0, 90.0):
        found = InputBall("l1", radius).project(jnp.asarray(centre), jnp.asarray(point))
        np.testing.assert_allclose(found, by_bisection(centre, point, radius, 0, 1), atol=1e-13)


def test_each_example_has_its_radius_and_bounds_may_be_arrays():
    centre, point = problem(30, 4)
    radii = np.linspace(0.1, 3, ROWS).astype(np.float32)
    high = np.linspace(1.0, 1.5, 30).astype(np.float32)
    ball = InputBall("l1", jnp.asarray(radii), -0.5, jnp.asarray(high))
    expected = by_bisection(centre, point, radii[:, None].astype(np.float64), -0.5, high)
    np.testing.assert_allclose(ball.project(centre, jnp.asarray(point)), expected, atol=1e-6)
