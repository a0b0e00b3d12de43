"""Histograms, PAC-Bayes terms, and what is the same for every measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.attacks import PGD, Square
from awp_jax.balls import WeightBall
from awp_jax.landscape import (
    _worst_case,
    average_flatness,
    hessian_spectrum,
    pac_bayes,
    perturbed_loss,
    robust_loss,
    weight_histograms,
    worst_case_flatness,
)

pytestmark = pytest.mark.core
ATTACK = PGD(0.05, steps=2)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(generator.normal(size=shape).astype(np.float32))

    params = {
        "a": {"kernel": draw(4, 5), "bias": draw(5)},
        "b": {"kernel": draw(5, 3), "bias": jnp.zeros(3)},
    }
    images = generator.integers(0, 256, (7, 2, 2, 1)).astype(np.uint8)
    return params, images, generator.integers(0, 3, 7).astype(np.int32)


def apply_fn(params, images):
    flat = images.reshape(images.shape[0], -1)
    hidden = jax.nn.relu(flat @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"][None]


def average(params, images, labels, **changes):
    settings = {"attack": ATTACK, "draws": 2, "reference_restarts": 2, "batch_size": 4} | changes
    return average_flatness(apply_fn, params, images, labels, KEY, **settings)


def worst(params, images, labels, **changes):
    settings = {"attack": ATTACK, "steps": 2, "restarts": 2, "reference_restarts": 2}
    settings |= {"batch_size": 4, "xi": 0.05} | changes
    return worst_case_flatness(apply_fn, params, images, labels, KEY, **settings)


def test_a_histogram_by_hand():
    kernel = jnp.array([[-0.9, -0.1, 0.0, 0.3, 1.0]])
    params = {"dense": {"kernel": kernel, "bias": jnp.zeros(4)}, "bn": {"scale": jnp.ones(3)}}
    found = weight_histograms(params, bins=5)
    assert list(found) == ["dense/bias", "dense/kernel"]
    np.testing.assert_array_equal(found["dense/kernel"].counts, [1, 0, 2, 1, 1])
    np.testing.assert_allclose(found["dense/kernel"].edges, [-1, -0.6, -0.2, 0.2, 0.6, 1], 1e-6)
    np.testing.assert_allclose(found["dense/kernel"].norm, 1.91**0.5, rtol=1e-6)
    np.testing.assert_allclose(found["dense/kernel"].mean, 0.06, rtol=1e-5)
    assert found["dense/bias"].counts.tolist() == [0, 0, 4, 0, 0]  # a layer of zeros
    assert not np.isnan(found["dense/bias"].edges).any()


def test_counts_sum_to_the_size_of_every_layer(problem):
    found = weight_histograms(problem[0])
    sizes = {name: int(histogram.counts.sum()) for name, histogram in found.items()}
    assert sizes == {"a/bias": 5, "a/kernel": 20, "b/bias": 3, "b/kernel": 15}


def apply_threshold(params, images):
    """Wrong for label 0 where the mean square of the weights is above 4 times the pixel."""
    margin = jnp.square(params["dense"]["kernel"]).mean() - 4 * images.mean((1, 2, 3))
    return jnp.stack([jnp.zeros_like(margin), margin], axis=1)


def test_pac_bayes_by_hand():
    """2500 weights of 1: ||w|| = 50, so alpha 0.02 adds noise of variance 1 to each."""
    params = {"dense": {"kernel": jnp.ones((50, 50))}, "bn": {"scale": jnp.full(3, 1e3)}}
    # Mean squares: 1 at w, about 2 at alpha 0.02, about 1.0001 at alpha 0.0002.
    images = np.broadcast_to(np.array([0.45, 0.55], np.float32)[:, None, None, None], (2, 2, 2, 1))
    found = pac_bayes(
        apply_threshold,
        params,
        images,
        np.zeros(2, np.int32),
        KEY,
        alphas=(0.02, 0.0002),
        draws=4,
        delta=0.1,
        training_examples=200,
        attack=None,
    )
    assert found.empirical == 0
    np.testing.assert_allclose(found.draws, [[0.5] * 4, [0] * 4])
    np.testing.assert_allclose(found.sharpness, [0.5, 0])
    np.testing.assert_allclose(found.divergence, [1250, 12500000])
    # 4 * sqrt((1250 + ln(4000)) / 200), ln(4000) = 8.29404964
    np.testing.assert_allclose(found.complexity[0], 4 * (1258.29404964 / 200) ** 0.5, rtol=1e-9)
    np.testing.assert_allclose(found.bound[0], 0.5 + found.complexity[0], rtol=1e-12)


def test_neither_batches_nor_calls_change_a_draw(problem):
    found = [average(*problem, batch_size=size) for size in (4, 7)]
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=2e-6)
    shared = [worst(*problem, batch_size=size, shared_across_batches=True) for size in (4, 7)]
    np.testing.assert_allclose(shared[0].losses, shared[1].losses, rtol=1e-5)
    reference = robust_loss(apply_fn, *problem, KEY, attack=ATTACK, restarts=2, batch_size=4)
    np.testing.assert_allclose(found[0].reference, reference.loss, rtol=1e-6)
    known = average(*problem, reference=reference)
    np.testing.assert_array_equal(known.losses, found[0].losses)
    assert reference.loss >= reference.single == reference.losses[0].mean(dtype=np.float64)
    assert not np.array_equal(reference.losses[0], reference.losses[1])
    assert shared[0].flatness >= shared[0].per_batch


def test_nothing_moves_at_xi_zero(problem):
    assert abs(average(*problem, xi=0.0, attack=None).flatness) < 1e-7
    assert abs(worst(*problem, xi=0.0, attack=None).flatness) < 1e-7


def test_other_weights_compile_nothing(problem):
    params, images, labels = problem
    worst(params, images, labels)
    compiled = [f._cache_size() for f in (_worst_case._gradients, _worst_case._step)]
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    worst(other, images, labels, xi=0.02, weight_step=0.01)
    assert compiled == [f._cache_size() for f in (_worst_case._gradients, _worst_case._step)]


def test_layers_of_zeros_give_no_nan(problem):
    params, images, labels = problem
    params = {**params, "a": jax.tree.map(jnp.zeros_like, params["a"])}
    results = (
        average(params, images, labels),
        worst(params, images, labels),
        worst(params, images, labels, attack=None),
        perturbed_loss(apply_fn, params, images, labels, KEY, gammas=(0.1,), attack=ATTACK),
        hessian_spectrum(apply_fn, params, images, labels, KEY, attack=ATTACK),
    )
    for result in results:
        assert all(np.isfinite(value).all() for value in result)
    dead = jax.tree.map(jnp.zeros_like, params)
    assert average(dead, images, labels).flatness == 0
    # Only the last bias has curvature: that of a uniform softmax, 1 / 3.
    found = hessian_spectrum(apply_fn, dead, images, labels, KEY, attack=None)
    np.testing.assert_allclose(found.eigenvalues, [1 / 3], rtol=1e-5)


def test_a_flat_loss_has_no_curvature(problem):
    _, images, labels = problem

    def constant(params, images):
        return jnp.zeros((images.shape[0], 3)) * params["kernel"].sum()

    params = {"kernel": jnp.ones((2, 2))}
    found = hessian_spectrum(constant, params, images, labels, KEY, count=2, attack=None)
    np.testing.assert_array_equal(found.eigenvalues, [0, 0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"xi": -0.1}, "xi is -0.1, but a finite number of at least 0"),
        (
            {"ball": WeightBall(0.1, mask={"a": False, "b": False}), "xi": None},
            "leaves no parameter to perturb",
        ),
        ({"ball": WeightBall(0.1, mask={"c": True}), "xi": None}, "mask does not fit the weights"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_input_is_one_sentence(problem, changes, message):
    for measure in (average, worst):
        with pytest.raises(ValueError, match=message):
            measure(*problem, **changes)


def test_more_bad_input(problem):
    params, images, labels = problem
    with pytest.raises(ValueError, match="draws is 0"):
        average(*problem, draws=0)
    with pytest.raises(ValueError, match="weight_step is -1"):
        worst(*problem, weight_step=-1)
    with pytest.raises(ValueError, match="PGD without eot, or None, was expected"):
        worst(*problem, attack=Square(0.1, 5))
    with pytest.raises(ValueError, match="Unknown start 'ranom'.*'random'"):
        worst(*problem, start="ranom")
    with pytest.raises(ValueError, match=r"labels \(6,\)"):
        average(params, images, labels[:6])
    with pytest.raises(ValueError, match="key has shape"):
        robust_loss(apply_fn, params, images, labels, jax.random.split(KEY, 7))
    with pytest.raises(ValueError, match="count is 43, but fewer than the 43 parameters"):
        hessian_spectrum(apply_fn, params, images, labels, KEY, count=43)
    with pytest.raises(ValueError, match="which"):
        hessian_spectrum(apply_fn, params, images, labels, KEY, which="lowest")
    with pytest.raises(ValueError, match="gammas is empty"):
        perturbed_loss(apply_fn, params, images, labels, KEY, gammas=())
    with pytest.raises(ValueError, match="alpha is 0, but a number above 0"):
        pac_bayes(apply_fn, params, images, labels, KEY, alphas=(0,))
    with pytest.raises(ValueError, match="delta is 1"):
        pac_bayes(apply_fn, params, images, labels, KEY, delta=1)
    with pytest.raises(ValueError, match="All weights are zero"):
        pac_bayes(apply_fn, jax.tree.map(jnp.zeros_like, params), images, labels, KEY)
    broken = jax.tree.map(lambda leaf: jnp.nan * leaf, params)
    with pytest.raises(ValueError, match="NaN for 7 of 7 images"):
        average(broken, images, labels, attack=None)
