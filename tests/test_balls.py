"""Balls: answers by hand, projections against scipy, properties with hypothesis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from awp_jax.attacks import PGD
from awp_jax.attacks._in_ball import starting_point
from awp_jax.balls import InputBall, WeightBall, input_norms, kernels_only

NORMS = ("linf", "l2", "l1")
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
properties = settings(deadline=None, max_examples=40, derandomize=True, database=None)


def norms_of(displacement, norm):
    flat = np.asarray(displacement, np.float64).reshape(len(displacement), -1)
    return np.linalg.norm(flat, ord=ORDERS[norm], axis=1)


# --- images -----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def project(norm, radius, centre, point):
    return InputBall(norm, radius).project(centre, point)


@functools.partial(jax.jit, static_argnums=0)
def step(norm, radius, centre, point, gradient, size):
    return InputBall(norm, radius).step(centre, point, gradient, size)


def batches(low, high):
    return hnp.arrays(np.float64, (3, 5), elements=st.floats(low, high))


@pytest.mark.core
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14), ("bfloat16", 2e-2)]
)
def test_projection_never_leaves_the_ball_or_the_pixel_range(norm, dtype, tolerance):
    @properties
    @given(batches(0, 1), batches(-3, 3), st.floats(0, 3))
    def check(centre, displacement, radius):
        centre = jnp.asarray(centre, dtype)
        point = jnp.asarray(centre + jnp.asarray(displacement, dtype), dtype)
        radius = jnp.asarray(radius, dtype)
        once = project(norm, radius, centre, point)
        assert once.dtype == dtype and once.shape == centre.shape
        moved = np.asarray(once, np.float64) - np.asarray(centre, np.float64)
        limit = float(radius)
        assert (norms_of(moved, norm) <= limit + tolerance * (1 + limit)).all()
        assert float(once.min()) >= 0 and float(once.max()) <= 1
        twice = project(norm, radius, centre, once)
        np.testing.assert_allclose(
            np.asarray(twice, np.float64), np.asarray(once, np.float64), rtol=0, atol=tolerance
        )

    with jax.enable_x64(True):
        check()


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_stay(norm):
    @properties
    @given(batches(0.1, 0.9), batches(-0.01, 0.01))
    def check(centre, displacement):
        centre, point = jnp.asarray(centre), jnp.asarray(centre + displacement)
        np.testing.assert_allclose(project(norm, 0.06, centre, point), point, rtol=0, atol=1e-15)

    with jax.enable_x64(True):
        check()


@pytest.mark.parametrize("norm", NORMS)
def test_steps_never_leave_the_ball_or_the_pixel_range(norm):
    @properties
    @given(batches(0, 1), batches(-2, 2), batches(-1e3, 1e3), st.floats(0, 2), st.floats(0, 4))
    def check(centre, displacement, gradient, radius, size):
        arrays = [jnp.asarray(a) for a in (centre, centre + displacement, gradient)]
        found = np.asarray(step(norm, jnp.float64(radius), *arrays, size))
        assert (norms_of(found - centre, norm) <= radius + 1e-12).all()
        assert found.min() >= 0 and found.max() <= 1

    with jax.enable_x64(True):
        check()


def _nearest_in_l1_ball(displacement, radius):
    """The nearest point by a general solver, in the positive and negative parts."""
    n = len(displacement)

    def distance(parts):
        return np.sum((parts[:n] - parts[n:] - displacement) ** 2)

    found = scipy.optimize.minimize(
        distance,
        np.zeros(2 * n),
        method="SLSQP",
        bounds=[(0, None)] * (2 * n),
        constraints={"type": "ineq", "fun": lambda parts: radius - parts.sum()},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x[:n] - found.x[n:]


def _nearest_in_l2_ball(displacement, radius):
    found = scipy.optimize.minimize(
        lambda z: np.sum((z - displacement) ** 2),
        np.full(len(displacement), 1e-3),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda z: radius**2 - np.sum(z**2)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_is_the_nearest_point(norm, x64):
    nearest = {"l1": _nearest_in_l1_ball, "l2": _nearest_in_l2_ball}[norm]
    displacement = (
        np.random.default_rng(0).normal(size=(6, 4)) * np.array([[0.1, 0.5, 1, 2, 4, 8]]).T
    )
    displacement[1] = [1, 1, -1, 1]  # ties
    displacement[2] = [0, 3, 0, 0]
    centre = jnp.zeros((6, 4))
    found = InputBall(norm, 1.0, low=-10, high=10).project(centre, jnp.asarray(displacement))
    expected = np.stack([nearest(row, 1.0) for row in displacement])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_projections_by_hand():
    centre = jnp.full((1, 3), 0.5)
    point = jnp.array([[0.9, 0.4, 0.5]])  # displacement (0.4, -0.1, 0)
    by_norm = {
        "linf": [0.7, 0.4, 0.5],
        "l2": 0.5 + 0.2 * np.array([0.4, -0.1, 0]) / np.sqrt(0.17),
        "l1": [0.7, 0.5, 0.5],  # soft threshold 0.2
    }
    for norm, expected in by_norm.items():
        found = InputBall(norm, 0.2).project(centre, point)
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)


def test_l1_projection_shrinks_equally_by_hand():
    # (0.4, 0.2) onto radius 0.3: both lose 0.15; (0.4, 0.05) onto 0.3: (0.3, 0).
    centre, ball = jnp.full((2, 2), 0.5), InputBall("l1", 0.3)
    found = ball.project(centre, centre + jnp.array([[0.4, 0.2], [0.4, 0.05]]))
    np.testing.assert_allclose(found - centre, [[0.25, 0.05], [0.3, 0.0]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_is_the_centre(norm):
    ball = InputBall(norm, 0.0)
    centre = jnp.array([[0.1, 0.7, 0.3], [0.0, 1.0, 0.5]])
    far = jnp.array([[0.9, 0.9, 0.9], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(ball.project(centre, far), centre)
    np.testing.assert_array_equal(ball.start(jax.random.key(0), centre), centre)


def test_directions_by_hand():
    gradient = jnp.array([[3.0, 0.0, -4.0]])
    np.testing.assert_array_equal(InputBall("linf").direction(gradient), [[1, 0, -1]])
    np.testing.assert_allclose(InputBall("l2").direction(gradient), [[0.6, 0, -0.8]], rtol=1e-6)
    np.testing.assert_array_equal(InputBall("l1").direction(gradient), [[0, 0, -1]])
    # The third pixel is at its bound: the next one moves.
    point = jnp.array([[0.5, 0.5, 0.0]])
    found = InputBall("l1", 0.3).step(point, point, gradient, 0.25)
    np.testing.assert_array_equal(found - point, [[0.25, 0, 0]])


def test_l1_step_leaves_a_saturated_pixel_for_the_next():
    centre = jnp.array([[1.0, 0.5, 0.5]])
    found = InputBall("l1", 0.3).step(centre, centre, jnp.array([[5.0, 2.0, 1.0]]), 0.2)
    np.testing.assert_allclose(found, [[1.0, 0.7, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_of_an_image_moves_nothing(norm, dtype):
    centre = jnp.full((2, 4), 0.5, dtype)
    found = InputBall(norm, 0.1).step(centre, centre, jnp.zeros_like(centre), 0.1)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.full((2, 4), 0.5))


def test_input_norms_by_hand():
    images = jnp.array([[[3.0], [-4.0]], [[0.0], [0.0]]])
    np.testing.assert_allclose(input_norms(images, "linf"), [4, 0])
    np.testing.assert_allclose(input_norms(images, "l2"), [5, 0])
    np.testing.assert_allclose(input_norms(images, "l1"), [7, 0])


@pytest.mark.parametrize("norm", NORMS)
def test_uniform_start_has_its_distribution(norm):
    centre = jnp.full((4000, 2), 0.5)
    start = jax.jit(InputBall(norm, 0.1).start)
    moved = np.asarray(start(jax.random.key(1), centre) - centre)
    if norm == "linf":
        for pixel in moved.T:
            assert scipy.stats.kstest(pixel, scipy.stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
        return
    lengths = norms_of(moved, norm)
    assert scipy.stats.kstest(lengths, scipy.stats.uniform(0, 0.1).cdf).pvalue > 1e-3
    if norm == "l2":  # isotropic
        angles = np.arctan2(moved[:, 1], moved[:, 0])
        uniform = scipy.stats.uniform(-np.pi, 2 * np.pi)
        assert scipy.stats.kstest(angles, uniform.cdf).pvalue > 1e-3
    else:  # uniform on the edges of the diamond: the share of one pixel is uniform
        shares = np.abs(moved[:, 0]) / lengths
        assert scipy.stats.kstest(shares, scipy.stats.uniform(0, 1).cdf).pvalue > 1e-3


def test_gaussian_start_is_not_clipped():
    centre = jnp.zeros((500, 4))
    start = jax.jit(lambda key: starting_point(InputBall(), "gaussian", key, centre))
    moved = np.asarray(start(jax.random.key(0)))
    assert moved.min() < 0
    assert scipy.stats.kstest(moved.ravel(), scipy.stats.norm(0, 0.001).cdf).pvalue > 1e-3


def test_no_start_is_the_centre():
    centre = jnp.array([[0.25, 0.75]])
    np.testing.assert_array_equal(
        starting_point(InputBall(), "none", jax.random.key(0), centre), centre
    )


@pytest.mark.core
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("how", ["uniform", "gaussian"])
def test_starts_do_not_depend_on_the_batch_split(norm, how):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(6))
    centre = jnp.linspace(0, 1, 6 * 4).reshape(6, 2, 2)
    start = jax.jit(lambda key, centre: starting_point(InputBall(norm, 0.1), how, key, centre))
    whole = start(jax.random.key(3), centre)
    parts = [start(keys[a:b], centre[a:b]) for a, b in ((0, 3), (3, 6))]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), rtol=0, atol=1e-7)
    assert len(np.unique(np.asarray(whole - centre)[:, 0, 0])) > 3


def test_bad_image_balls():
    with pytest.raises(ValueError, match="Unknown norm 'l_2'.*Did you mean 'l2'"):
        InputBall("l_2")
    with pytest.raises(ValueError, match="epsilon is -0.1"):
        InputBall("linf", -0.1)
    with pytest.raises(ValueError, match=r"range of inputs \[1.0, 0.0\] is empty"):
        InputBall(low=1, high=0)
    with pytest.raises(ValueError, match="Unknown start 'unifrom'.*Did you mean 'uniform'"):
        PGD(start="unifrom")
    assert InputBall("linf", "8/255").radius == 8 / 255


def test_a_large_l1_radius_is_usual():
    assert InputBall("l1", 12).radius == 12
    with pytest.raises(ValueError, match="8/255 meant"):
        InputBall("linf", 8)


# --- weights ----------------------------------------------------------------------------------

WEIGHTS = {"dense": {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([1.0, 2.0])}}
GRADS = {"dense": {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([5.0, 5.0])}}


def kernel(tree):
    return np.asarray(tree["dense"]["kernel"])


def bias(tree):
    return np.asarray(tree["dense"]["bias"])


def test_default_mask_is_kernels_only():
    params = {"conv": jnp.ones((1, 1, 2, 2)), "scale": jnp.ones(3), "scalar": jnp.ones(())}
    assert kernels_only(params) == {"conv": True, "scale": False, "scalar": False}


@pytest.mark.core
def test_equation_10_by_hand():
    zero = jax.tree.map(jnp.zeros_like, WEIGHTS)
    l2 = WeightBall(0.1).step(WEIGHTS, zero, GRADS, 0.1)
    np.testing.assert_allclose(kernel(l2), 0.1 * 5 * np.array([[1, -3]]) / np.sqrt(10), rtol=1e-6)
    np.testing.assert_array_equal(bias(l2), [0, 0])
    l1 = WeightBall(0.1, "l1").step(WEIGHTS, zero, GRADS, 0.1)
    np.testing.assert_allclose(kernel(l1), 0.1 * 7 * np.array([[1, -3]]) / 4, rtol=1e-6)


def test_equation_15_by_hand():
    # Two steps of 0.1 * ||w|| at right angles leave the ball and come back radially.
    ball = WeightBall(0.1)
    first = ball.step(WEIGHTS, ball.start(None, WEIGHTS), _kernel_gradient(2.0, 0.0), 0.1)
    np.testing.assert_allclose(kernel(first), [[0.5, 0.0]], rtol=1e-6)
    second = ball.step(WEIGHTS, first, _kernel_gradient(0.0, 7.0), 0.1)
    np.testing.assert_allclose(kernel(second), [[0.5 / np.sqrt(2)] * 2], rtol=1e-6)
    ball = WeightBall(0.1, "l1")
    first = ball.step(WEIGHTS, ball.start(None, WEIGHTS), _kernel_gradient(2.0, 0.0), 0.1)
    np.testing.assert_allclose(kernel(first), [[0.7, 0.0]], rtol=1e-6)
    second = ball.step(WEIGHTS, first, _kernel_gradient(0.0, 7.0), 0.1)
    np.testing.assert_allclose(kernel(second), [[0.35, 0.35]], rtol=1e-6)


def _kernel_gradient(*values):
    return {"dense": {"kernel": jnp.array([values]), "bias": jnp.ones(2)}}


def test_scopes_by_hand():
    params = {"a": jnp.array([[3.0, 0.0], [4.0, 12.0]]), "b": jnp.array([[84.0]])}
    grads = {"a": jnp.array([[0.0, 0.0], [2.0, 5.0]]), "b": jnp.array([[-1.0]])}
    leaf = WeightBall(0.1).direction(grads, params)
    np.testing.assert_allclose(leaf["a"], 13 / np.sqrt(29) * np.asarray(grads["a"]), rtol=1e-6)
    np.testing.assert_allclose(leaf["b"], [[-84]], rtol=1e-6)
    everything = WeightBall(0.1, scope="global").direction(grads, params)
    np.testing.assert_allclose(
        everything["a"], 85 / np.sqrt(30) * np.asarray(grads["a"]), rtol=1e-6
    )
    np.testing.assert_allclose(everything["b"], [[-85 / np.sqrt(30)]], rtol=1e-6)
    # One norm per column: ||(3, 4)|| = 5, ||(0, 12)|| = 12.
    by_filter = WeightBall(0.1, scope="filter").direction(grads, params)
    np.testing.assert_allclose(by_filter["a"], [[0, 0], [5, 12]], rtol=1e-6)


def test_global_projection_uses_one_ratio():
    params = {"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}  # radius 0.1 * 5
    far = {"a": jnp.array([[0.6]]), "b": jnp.array([[-0.8]])}  # length 1
    found = WeightBall(0.1, scope="global").project(params, far)
    np.testing.assert_allclose(found["a"], [[0.3]], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [[-0.4]], rtol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        {"dense": {"kernel": False, "bias": True}},
        lambda params: jax.tree.map(lambda leaf: leaf.ndim == 1, params),
        lambda params: jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "bias", params),
    ],
    ids=["pytree", "function", "by name"],
)
def test_masks(mask):
    found = WeightBall(0.1, mask=mask).direction(GRADS, WEIGHTS)
    np.testing.assert_array_equal(kernel(found), [[0, 0]])
    np.testing.assert_allclose(bias(found), np.sqrt(5) * np.array([5, 5]) / np.sqrt(50), rtol=1e-6)


def test_prefix_masks():
    params = {"a": WEIGHTS, "b": WEIGHTS}
    ball = WeightBall(0.1, mask={"a": True, "b": False})
    assert jax.tree.leaves(ball.mask_of(params)) == [True, True, False, False]
    assert jax.tree.leaves(WeightBall(0.1, mask=True).mask_of(params)) == [True] * 4
    moved = ball.direction({"a": GRADS, "b": GRADS}, params)
    assert bias(moved["a"]).all() and kernel(moved["a"]).all()
    assert not bias(moved["b"]).any() and not kernel(moved["b"]).any()


def test_what_is_masked_out_of_a_global_norm_does_not_count():
    heavy = {"dense": {"kernel": WEIGHTS["dense"]["kernel"], "bias": jnp.array([1e6, 0.0])}}
    found = WeightBall(0.1, scope="global").norms(heavy, heavy)
    np.testing.assert_allclose(jax.tree.leaves(found), [0, 5], rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("size", ["l2", "l1"])
@pytest.mark.parametrize("scope", ["leaf", "global", "filter"])
def test_zero_weights_and_zero_gradients_give_zero(size, scope, dtype):
    with jax.enable_x64(dtype == "float64"):
        ball = WeightBall(0.1, size, scope)
        ones, zeros = {"k": jnp.ones((2, 2), dtype)}, {"k": jnp.zeros((2, 2), dtype)}
        for weights, gradient in ((ones, zeros), (zeros, ones), (zeros, zeros)):
            found = ball.step(weights, ball.start(None, weights), gradient, 0.1)["k"]
            assert found.dtype == dtype
            np.testing.assert_array_equal(np.asarray(found, np.float32), np.zeros((2, 2)))
        found = ball.sample(jax.random.key(0), zeros)["k"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.zeros((2, 2)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_gradients_of_half_precision_keep_their_length(dtype):
    weights = {"k": jnp.ones((2, 2), dtype)}
    gradient = {"k": jnp.full((2, 2), 1e-6, dtype)}
    ball = WeightBall(0.125)
    found = ball.step(weights, ball.start(None, weights), gradient, 0.125)["k"]
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), np.full((2, 2), 0.125), rtol=1e-2)


def test_bfloat16_norms_are_summed_in_float32():
    ones = {"k": jnp.ones((100, 100), jnp.bfloat16)}  # in bfloat16, 256 + 1 is 256
    for size, expected in (("l2", 100.0), ("l1", 10_000.0)):
        norms = WeightBall(0.1, size).norms(ones, ones)["k"]
        assert norms.dtype == jnp.float32 and float(norms) == expected


def test_displacements_have_the_dtype_of_the_weights():
    weights = {"k": jnp.ones((2, 2), jnp.bfloat16)}
    gradient = {"k": jnp.ones((2, 2), jnp.float32)}  # as from a float32 loss on cast weights
    ball = WeightBall(0.1)
    assert ball.step(weights, ball.start(None, weights), gradient, 0.1)["k"].dtype == jnp.bfloat16


def test_gamma_may_be_traced():
    def moved(gamma):
        ball = WeightBall(gamma)
        return ball.step(WEIGHTS, ball.start(None, WEIGHTS), GRADS, gamma)

    expected = 0.2 * 5 * np.array([[1, -3]]) / np.sqrt(10)
    np.testing.assert_allclose(kernel(jax.jit(moved)(0.2)), expected, rtol=1e-6)
    batch = jax.vmap(moved)(jnp.array([0.1, 0.2]))["dense"]["kernel"]
    np.testing.assert_allclose(batch, np.stack([expected / 2, expected]), rtol=1e-6)


@pytest.mark.parametrize("size", ["l2", "l1"])
@pytest.mark.parametrize("scope", ["leaf", "global", "filter"])
def test_weight_projection_properties(size, scope):
    order = {"l2": 2, "l1": 1}[size]
    # A grid, so that squares do not underflow.
    shapes = hnp.arrays(np.int64, (3, 2), elements=st.integers(-1000, 1000)).map(lambda a: a / 100)

    @jax.jit
    def projected(weights, point, gamma):
        return WeightBall(gamma, size, scope).project(weights, point)

    def norms(tree):
        if scope == "leaf":
            return np.array([np.linalg.norm(leaf.ravel(), order) for leaf in tree])
        if scope == "global":
            return np.linalg.norm(np.concatenate([leaf.ravel() for leaf in tree]), order)
        return np.stack([np.linalg.norm(leaf, order, axis=0) for leaf in tree])

    @properties
    @given(shapes, shapes, shapes, shapes, st.integers(0, 100).map(lambda n: n / 100))
    def check(w1, w2, v1, v2, gamma):
        once = [np.asarray(leaf) for leaf in projected([w1, w2], [v1, v2], gamma)]
        assert (norms(once) <= gamma * norms([w1, w2]) * (1 + 1e-12) + 1e-300).all()
        twice = projected([w1, w2], once, gamma)
        for a, b in zip(once, twice, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)

    with jax.enable_x64(True):
        check()


@pytest.mark.parametrize("scope", ["leaf", "global", "filter"])
def test_samples_lie_on_the_sphere(scope, x64):
    weights = {"a": jnp.array([[3.0, 0.0], [4.0, 12.0]]), "b": jnp.array([[84.0]])}
    found = WeightBall(0.1, scope=scope).sample(jax.random.key(0), weights)
    a, b = np.asarray(found["a"]), np.asarray(found["b"])
    if scope == "leaf":
        np.testing.assert_allclose([np.linalg.norm(a), np.linalg.norm(b)], [1.3, 8.4])
    elif scope == "global":
        np.testing.assert_allclose(np.sqrt((a**2).sum() + (b**2).sum()), 8.5)
    else:
        np.testing.assert_allclose(np.linalg.norm(a, axis=0), [0.5, 1.2])
    other = WeightBall(0.1, scope=scope).sample(jax.random.key(1), weights)
    assert not np.allclose(a, other["a"])


def test_samples_are_isotropic():
    weights = {"k": jnp.ones((1, 2))}
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.jit(jax.vmap(lambda key: WeightBall(0.1).sample(key, weights)["k"][0]))(keys)
    angles = np.arctan2(found[:, 1], found[:, 0])
    assert scipy.stats.kstest(angles, scipy.stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3


def test_balls_work_under_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        images = jnp.full((2, 3), 0.5)
        for norm in NORMS:
            ball = InputBall(norm, 0.1)
            jax.eval_shape(ball.start, jax.random.key(0), images)
            jax.eval_shape(ball.step, images, images, images, 0.01)
        for dtype in ("float32", "bfloat16"):
            weights = {"k": jnp.ones((2, 2), dtype)}
            for size in ("l2", "l1"):
                ball = WeightBall(0.1, size)
                jax.eval_shape(ball.step, weights, weights, weights, 0.1)
                jax.eval_shape(ball.sample, jax.random.key(0), weights)


def test_bad_weight_balls():
    with pytest.raises(ValueError, match="Unknown size 'l3'"):
        WeightBall(0.1, "l3")
    with pytest.raises(ValueError, match="Unknown scope 'layer'"):
        WeightBall(0.1, scope="layer")
    with pytest.raises(ValueError, match="gamma is -1"):
        WeightBall(-1)
    with pytest.raises(ValueError, match="one typed key|typed key was expected"):
        WeightBall(0.1).sample(jnp.zeros(2, jnp.uint32), WEIGHTS)
