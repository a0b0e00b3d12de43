"""Rescaled networks: same function, same flatness, other curvature (Stutz et al., section 3.4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax import models
from awp_jax.attacks import PGD
from awp_jax.balls import WeightBall
from awp_jax.landscape import (
    average_flatness,
    hessian_spectrum,
    kernels_and_biases,
    worst_case_flatness,
)

pytestmark = pytest.mark.core
ATTACK = PGD(0.05, steps=3)
SETTINGS = {"attack": ATTACK, "reference_restarts": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(6, 4, 4, 1)).astype(np.float32)
    return images, generator.integers(0, 3, 6).astype(np.int32)


def measured(apply_fn, params, images, labels):
    arguments = (apply_fn, params, images, labels, jax.random.key(1))
    average = average_flatness(*arguments, draws=2, **SETTINGS)
    worst = worst_case_flatness(
        *arguments, xi=0.02, weight_step=0.01, steps=4, restarts=2, **SETTINGS
    )
    top = hessian_spectrum(*arguments, attack=ATTACK, batch_size=4).eigenvalues[0]
    return np.array([average.flatness, worst.flatness]), top


def check(one, other, least_change):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-4)
    assert (np.abs(one[0]) > 1e-3).all()  # not zero against zero
    assert abs(one[1] / other[1] - 1) > least_change


def dense(params, images):
    x = images.reshape(images.shape[0], -1)
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
    return x @ params["last"]["kernel"] + params["last"]["bias"][None]


def test_two_layers_of_a_relu_network(batch):
    generator = np.random.default_rng(2)

    def layer(inputs, outputs):
        kernel = generator.normal(size=(inputs, outputs)) / inputs**0.5
        bias = generator.normal(size=outputs)
        return {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}

    params = {"first": layer(16, 6), "second": layer(6, 6), "last": layer(6, 3)}
    # relu(c (W x + b)) = c relu(W x + b): the bias goes with its own kernel, and the next
    # layer's bias stays.
    scaled = {
        **params,
        "first": jax.tree.map(lambda leaf: 2 * leaf, params["first"]),
        "second": {**params["second"], "kernel": params["second"]["kernel"] / 2},
    }
    apply_fn, images = dense, jnp.asarray(batch[0])
    np.testing.assert_allclose(apply_fn(scaled, images), apply_fn(params, images), rtol=1e-5)
    check(measured(apply_fn, params, *batch), measured(apply_fn, scaled, *batch), 0.1)


def convolutional(statistics, params, images):
    x = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    normal = (x - statistics["mean"]) / jnp.sqrt(statistics["var"] + statistics["epsilon"])
    x = jax.nn.relu(normal * params["bn"]["scale"] + params["bn"]["bias"]).mean((1, 2))
    return x @ params["dense"]["kernel"] + params["dense"]["bias"]


def test_a_convolution_before_batch_norm(batch):
    generator = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(generator.normal(size=shape).astype(np.float32))

    per_channel = (1, 1, 1, 3)
    params = {
        "conv": {"kernel": draw(3, 3, 1, 3)},
        "bn": {"scale": 1 + 0.1 * draw(*per_channel), "bias": draw(*per_channel)},
        "dense": {"kernel": 3 * draw(3, 3), "bias": draw(1, 3)},
    }
    layers = {"conv": True, "bn": False, "dense": True}
    statistics = {
        "mean": draw(*per_channel),
        "var": jnp.exp(draw(*per_channel)),
        "epsilon": jnp.float32(0.1),
    }

    def at(factor):
        kernel = {"kernel": factor * params["conv"]["kernel"]}
        apply_fn = Partial(
            convolutional,
            {
                "mean": factor * statistics["mean"],
                "var": factor**2 * statistics["var"],
                "epsilon": factor**2 * statistics["epsilon"],
            },
        )
        moved = {**params, "conv": kernel}
        arguments = (apply_fn, moved, *batch, jax.random.key(1))
        average = average_flatness(
            *arguments, draws=2, ball=WeightBall(0.5, mask=layers), **SETTINGS
        )
        worst = worst_case_flatness(
            *arguments,
            ball=WeightBall(0.02, mask=layers),
            weight_step=0.01,
            steps=4,
            restarts=2,
            **SETTINGS,
        )
        top = hessian_spectrum(*arguments, attack=ATTACK, batch_size=4, layers={**layers})
        return np.array([average.flatness, worst.flatness]), top.eigenvalues[0]

    middle = at(1.0)
    for factor in (0.5, 2.0):
        check(at(factor), middle, 0.02)


@pytest.mark.parametrize("name", ["preact-resnet-10", "wrn-16-1", "vgg-11", "mnist-cnn", "mlp"])
def test_layers_are_kernels_and_biases_but_no_batch_norm(name):
    shape = (28, 28, 1) if name == "mnist-cnn" else (32, 32, 3)
    classifier = models.create(name, image_shape=shape, num_classes=10)
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0))
    mask = jax.tree_util.tree_leaves_with_path(kernels_and_biases(params))
    names = [(jax.tree_util.keystr(path, simple=True, separator="/"), keep) for path, keep in mask]
    for leaf, keep in names:
        # Every BatchNorm of these models is called bn..., and nothing else has a scale.
        normalises = any(part.startswith("bn") for part in leaf.split("/"))
        normalises |= (leaf.rpartition("/")[0] + "/scale", False) in names
        assert keep is not normalises, leaf
    assert any(leaf.endswith("bias") and keep for leaf, keep in names)


def test_layers_of_other_trees():
    from flax import linen, nnx

    module = linen.Sequential([linen.Dense(3), linen.BatchNorm(use_running_average=True)])
    tree = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert kernels_and_biases(tree) == {
        "layers_0": {"kernel": True, "bias": True},
        "layers_1": {"scale": False, "bias": False},
    }
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert jax.tree.leaves(kernels_and_biases(state)) == [True, True]
