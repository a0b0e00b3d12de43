"""Steps of L1 attacks against linear programmes, by hand, and against the released code."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from awp_jax.attacks._l1 import boundary_displacement_l1, sparse_direction


def problem(seed, size=7):
    rng = np.random.default_rng(seed)
    point, normal = rng.uniform(size=size), rng.normal(size=size)
    most = np.where(normal > 0, normal * (1 - point), -normal * point).sum()
    return point, normal, rng.uniform(0.05, 0.95) * most


def displacement(point, normal, change, low=0.0, high=1.0):
    args = (jnp.asarray(x, jnp.float32)[None] for x in (point, normal, change))
    return np.asarray(boundary_displacement_l1(*args, low, high)[0], np.float64)


def shortest(point, normal, change, low=0.0, high=1.0):
    """min sum |d|, with d = up - down: a linear programme."""
    up = [None if high is None else high - x for x in point]
    down = [None if low is None else x - low for x in point]
    return linprog(
        np.ones(2 * len(point)),
        A_eq=np.concatenate([normal, -normal])[None],
        b_eq=[change],
        bounds=[(0, most) for most in up + down],
    ).fun


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), flip=st.booleans())
def test_displacement_is_the_shortest_in_the_box(seed, flip):
    point, normal, change = problem(seed)
    if flip:
        normal, change = -normal, -change
    moved = displacement(point, normal, change)
    assert moved @ normal == pytest.approx(change, abs=1e-5)
    assert (point + moved).min() >= -1e-6 and (point + moved).max() <= 1 + 1e-6
    assert np.abs(moved).sum() == pytest.approx(shortest(point, normal, change), rel=1e-4)


@pytest.mark.parametrize(("low", "high"), [(None, None), (0.0, None), (None, 1.0), (-2.0, 3.0)])
def test_displacement_with_other_bounds(low, high):
    point, normal, change = problem(3)
    for wanted in (change, -change):
        moved = displacement(point, normal, wanted, low, high)
        assert moved @ normal == pytest.approx(wanted, rel=1e-5)
        best = shortest(point, normal, wanted, low, high)
        assert np.abs(moved).sum() == pytest.approx(best, rel=1e-4)
    if low is None and high is None:
        # Without a box one entry does it, at the distance in the dual norm.
        assert np.count_nonzero(moved) == 1
        assert np.abs(moved).sum() == pytest.approx(abs(change) / np.abs(normal).max(), rel=1e-5)


def test_out_of_reach_goes_to_the_corner_and_zero_normals_stay():
    moved = displacement([0.2, 0.9, 0.4], [1.0, -1.0, 0.0], 50.0)
    np.testing.assert_allclose(moved, [0.8, -0.9, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(displacement([0.2, 0.9], [0.0, 0.0], 1.0), 0)
    np.testing.assert_array_equal(displacement([0.2, 0.9], [0.0, 0.0], 1.0, None, None), 0)
    np.testing.assert_array_equal(displacement([0.2, 0.9], [1.0, 2.0], 0.0), 0)


def test_sparse_direction_by_hand():
    gradient = jnp.array([[4.0, -3.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    half = sparse_direction(gradient, 0.5)
    # Two of four; a threshold of 0 takes all that are not zero; nothing to climb.
    np.testing.assert_allclose(half, [[0.5, -0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]])
    each = sparse_direction(gradient, jnp.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(each, [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]])
    images = sparse_direction(gradient.reshape(3, 2, 2, 1), 0.5)
    np.testing.assert_array_equal(images.reshape(3, 4), half)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_sparse_direction_has_length_1_and_the_share_asked_for(seed, share):
    gradient = np.random.default_rng(seed).normal(size=(3, 50)).astype(np.float32)
    found = np.asarray(sparse_direction(jnp.asarray(gradient), share))
    np.testing.assert_allclose(np.abs(found).sum(1), 1, rtol=1e-5)
    moved = np.count_nonzero(found, axis=1)
    assert (np.abs(moved - max(share * 50, 1)) <= 1.01).all()
    assert ((np.sign(found) == np.sign(gradient)) | (found == 0)).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_displacement_agrees_with_the_released_code():
    torch = pytest.importorskip("torch")
    projections = pytest.importorskip("pyautoattack.fab_projections")
    rng = np.random.default_rng(0)
    point = rng.uniform(size=(40, 64)).astype(np.float32)
    normal = rng.normal(size=(40, 64)).astype(np.float32)
    change = rng.normal(size=40).astype(np.float32) * 8
    level = torch.tensor((normal * point).sum(1) + change)
    theirs = projections.projection_l1(torch.tensor(point), torch.tensor(normal), level).numpy()
    mine = boundary_displacement_l1(*map(jnp.asarray, (point, normal, change)))
    np.testing.assert_allclose(mine, theirs, atol=2e-5)
