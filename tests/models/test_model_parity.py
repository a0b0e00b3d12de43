"""Logits, gradients and running statistics against PyTorch, in float64 and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_models import (
    MnistNet,
    PostActBlock,
    PreActBlock,
    ResidualNet,
    VGGNet,
    WideNet,
    copy_into,
    like,
    scattered,
)

from awp_jax import models

CASES = {
    "preact-resnet-18": (
        {"image_shape": (8, 8, 3), "num_classes": 5, "width": 4},
        lambda: ResidualNet(PreActBlock, 3, 5, 4, (2, 2, 2, 2)),
    ),
    "resnet-10": (
        {"image_shape": (8, 8, 3), "num_classes": 5, "width": 4},
        lambda: ResidualNet(PostActBlock, 3, 5, 4, (1, 1, 1, 1)),
    ),
    "wrn-10-1": ({"image_shape": (8, 8, 3), "num_classes": 5}, lambda: WideNet(10, 1, 3, 5)),
    "wrn-16-2": ({"image_shape": (9, 9, 2), "num_classes": 3}, lambda: WideNet(16, 2, 2, 3)),
    "vgg-11": (
        {"image_shape": (32, 32, 3), "num_classes": 5, "width": 2},
        lambda: VGGNet((1, 1, 2, 2, 2), 2, 3, 5),
    ),
    "mnist-cnn": ({"image_shape": (28, 28, 1), "num_classes": 10, "dropout": 0.0}, MnistNet),
}


def relative(found, expected):
    """Largest difference over the whole tree against the whole tree's norm.

    Per leaf it would divide by the zero gradient of a bias that a BatchNorm follows.
    """
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in expected))
    gaps = zip(found, expected, strict=True)
    return max(np.max(np.abs(np.asarray(a) - np.asarray(b))) for a, b in gaps) / norm


def compare(name, mode):
    """The largest relative gap of logits, gradients and (mode "update") running statistics."""
    options, build = CASES[name]
    classifier = models.create(name, **options)
    params, batch_stats = scattered(classifier)
    module = copy_into(build(), classifier, params, batch_stats)
    module.train(mode == "update")
    dtype = jax.tree.leaves(params)[0].dtype
    rng = np.random.default_rng(7)
    images = rng.uniform(size=(6, *options["image_shape"])).astype(dtype)
    weights = rng.standard_normal((6, options["num_classes"])).astype(dtype)

    pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    outputs = module(pixels)
    (outputs * torch.tensor(weights)).sum().backward()

    def loss(params, images):
        # Without dropout no key is needed, not even to update the running statistics.
        logits, stats = classifier.apply(params, batch_stats, images, mode=mode)
        return (logits * weights).sum(), (logits, stats)

    # Most of the time here is compilation.
    fast = {"xla_backend_optimization_level": 0}
    wanted = (0, 1) if mode == "update" else (1,)
    step = jax.jit(jax.grad(loss, wanted, has_aux=True), compiler_options=fast)
    gradients, (logits, stats) = step(params, images)
    assert logits.dtype == dtype
    gaps = [
        relative(logits, outputs.detach().numpy()),
        relative(gradients[-1], pixels.grad.numpy().transpose(0, 2, 3, 1)),
    ]
    if mode == "update":
        named = {key: value.grad for key, value in module.named_parameters()}
        gaps.append(relative(gradients[0], like(classifier, params, named)))
        if stats:
            buffers = dict(module.named_buffers())
            gaps.append(relative(stats, like(classifier, stats, buffers)))
    return max(gaps)


@pytest.mark.parametrize("mode", ["running", "update"])
@pytest.mark.parametrize(
    "name", ["preact-resnet-18", "resnet-10", "wrn-16-2", "vgg-11", "mnist-cnn"]
)
def test_float64(x64, name, mode):
    assert compare(name, mode) < 1e-9


@pytest.mark.parametrize("name", ["resnet-10", "wrn-10-1", "mnist-cnn"])
def test_float32(name):
    assert compare(name, "update") < 1e-4


def test_the_comparison_notices_a_small_error(x64):
    """The comparison notices one BatchNorm scale that is off by a hundredth."""
    classifier = models.create("wrn-10-1", image_shape=(8, 8, 3), num_classes=5)
    params, batch_stats = scattered(classifier)
    images = jnp.full((2, 8, 8, 3), 0.5)
    before, _ = classifier.apply(params, batch_stats, images, mode="running")
    params["block2"]["0"]["bn2"]["scale"] = params["block2"]["0"]["bn2"]["scale"].at[0].mul(1.01)
    after, _ = classifier.apply(params, batch_stats, images, mode="running")
    assert relative(after, np.asarray(before)) > 1e-6
