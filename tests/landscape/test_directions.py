"""Directions: norms of filters and layers, draws, the ascent direction of AWP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.attacks import AttackResult
from awp_jax.balls import WeightBall
from awp_jax.landscape import adversarial_directions, directions
from awp_jax.weights import adversarial_displacement

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    """Convolution [3, 3, 2, 5] with a dead filter, its BatchNorm, dense [5, 4] and its bias."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 5)) * np.array([1, 10, 0.1, 0, 3])
    tree = {
        "conv": {"kernel": kernel},
        "bn": {"scale": np.ones(5), "bias": np.zeros(5)},
        "dense": {"kernel": rng.normal(size=(5, 4)), "bias": rng.normal(size=4)},
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def norms(kernel):
    """Of each output channel, the last axis."""
    return np.sqrt((np.asarray(kernel, np.float64) ** 2).sum(tuple(range(kernel.ndim - 1))))


@pytest.mark.core
def test_each_filter_has_the_norm_of_its_weights(params):
    found = directions(KEY, params, 3)
    for layer in ("conv", "dense"):
        for draw in found[layer]["kernel"]:
            np.testing.assert_allclose(norms(draw), norms(params[layer]["kernel"]), rtol=1e-5)
    assert (found["conv"]["kernel"][..., 3] == 0).all(), "zero filters have no direction, no NaN"
    for leaf in (found["bn"]["scale"], found["bn"]["bias"], found["dense"]["bias"]):
        assert leaf.shape[0] == 3 and (leaf == 0).all()


def test_each_layer_has_the_norm_of_its_weights(params):
    draw = directions(KEY, params, normalisation="layer")["conv"]["kernel"][0]
    kernel = params["conv"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(draw), jnp.linalg.norm(kernel), rtol=1e-5)
    # Within the layer the draw is Gaussian: filters do not follow those of the weights.
    assert norms(draw).max() < 3 * norms(draw).min()


def test_a_mask_says_what_moves(params):
    everything = jax.tree.map(lambda leaf: True, params)
    found = directions(KEY, params, ball=WeightBall(1.0, mask=everything))
    bias = params["dense"]["bias"]
    np.testing.assert_allclose(
        jnp.linalg.norm(found["dense"]["bias"][0]), jnp.linalg.norm(bias), rtol=1e-5
    )


def test_a_draw_depends_on_its_key_and_number_alone(params):
    many, few = directions(KEY, params, 4), directions(KEY, params, 2)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(few), strict=True):
        np.testing.assert_array_equal(a[:2], b)
    kernels = np.asarray(many["conv"]["kernel"]).reshape(4, -1)
    cosines = np.corrcoef(kernels) - np.eye(4)
    assert np.abs(cosines).max() < 0.5
    # Sharded parameters, as on several devices, give the same draw.
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    sharded = {**params, "dense": {**params["dense"]}}
    sharded["dense"]["kernel"] = jax.device_put(params["dense"]["kernel"], spread)
    for a, b in zip(
        jax.tree.leaves(directions(KEY, sharded, 2)), jax.tree.leaves(few), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_dtype_is_that_of_the_weights(params, x64):
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    found = directions(KEY, wide)["dense"]["kernel"]
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(norms(found[0]), norms(wide["dense"]["kernel"]), rtol=1e-14)


def softmax_regression(params, images):
    return images.reshape(images.shape[0], -1) @ params["kernel"] + params["bias"][None]


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(1)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    images = rng.uniform(0.3, 0.7, (6, 2, 2, 1)).astype(np.float32)
    return params, images, rng.integers(0, 3, 6).astype(np.int32)


def test_the_adversarial_direction_is_the_normalised_gradient(regression):
    params, images, labels = regression
    found = adversarial_directions(softmax_regression, params, KEY, images, labels, None, 2)
    x, w = images.reshape(6, -1).astype(np.float64), np.asarray(params["kernel"], np.float64)
    z = x @ w + np.asarray(params["bias"])
    share = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    gradient = x.T @ (share - np.eye(3)[labels]) / 6
    expected = gradient / np.linalg.norm(gradient) * np.linalg.norm(w)
    for draw in found["kernel"]:  # six examples are one mini-batch: both are the same
        np.testing.assert_allclose(draw, expected, rtol=1e-4, atol=1e-5)
    assert (found["bias"] == 0).all()


def test_the_adversarial_direction_is_that_of_awp_on_one_mini_batch(regression):
    params, images, labels = regression
    seen = []

    def attack(logits_fn, key, batch, batch_labels):
        seen.append((batch, batch_labels))
        unused = jnp.zeros(len(batch))
        return AttackResult(images=1 - batch, success=unused > 0, loss=unused)

    found = adversarial_directions(
        softmax_regression, params, KEY, images, labels, attack, 2, batch_size=4
    )
    assert len(seen) == 2 and not np.array_equal(seen[0][0], seen[1][0])
    for draw, (batch, batch_labels) in zip(found["kernel"], seen, strict=True):

        def loss(params, batch=batch, batch_labels=batch_labels):
            logits = jax.nn.log_softmax(softmax_regression(params, 1 - batch))
            return -jnp.take_along_axis(logits, batch_labels[:, None], axis=1).mean()

        v = adversarial_displacement(params, jax.grad(loss), 0.5)
        np.testing.assert_allclose(0.5 * draw, v["kernel"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalisation": "filters"}, "Did you mean 'filter'"),
        ({"count": 0}, "count is 0"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "typed key"),
        ({"params": {}}, "holds no arrays"),
    ],
)
def test_bad_input(params, arguments, message):
    with pytest.raises(ValueError, match=message):
        directions(**{"key": KEY, "params": params} | arguments)
