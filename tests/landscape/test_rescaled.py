"""Networks of the same function with other weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax import models
from awp_jax.landscape import rescaled


def network(name, **options):
    classifier = models.create(name, image_shape=(8, 8, 3), num_classes=4, **options)
    shapes = jax.eval_shape(classifier.init, jax.random.key(0))

    def fill(leaf):  # statistics and BatchNorm parameters as after training: none is 0 or 1
        wave = np.sin(np.arange(1.0, np.prod(leaf.shape) + 1)).reshape(leaf.shape)
        return jnp.asarray(0.3 * wave if leaf.ndim > 1 else 1 + 0.2 * wave, jnp.float32)

    return classifier, *jax.tree.map(fill, shapes)


def norms(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True): np.linalg.norm(leaf) for p, leaf in leaves}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_convolutions_before_batch_norm_grow_and_logits_stay(factor):
    classifier, params, stats = network("resnet-10", width=2)
    grown, others = rescaled(classifier, params, stats, factor)
    images = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3))
    apply = jax.jit(lambda p, s: classifier.apply(p, s, images, mode="running")[0])
    before, after = apply(params, stats), apply(grown, others)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    ratios = {k: v / norms(params)[k] for k, v in norms(grown).items()}
    convolutions = {k: r for k, r in ratios.items() if "conv" in k}
    assert len(convolutions) == 1 + 4 * 2 + 3  # stem, blocks, projections
    np.testing.assert_allclose(list(convolutions.values()), factor, rtol=1e-6)
    assert all(r == 1 for k, r in ratios.items() if "conv" not in k)


def test_a_chain_of_relu_layers():
    classifier, params, _ = network("mlp", width=8, depth=2)
    grown, _ = rescaled(classifier, params, {}, 3.0)
    found = {k: v / norms(params)[k] for k, v in norms(grown).items()}
    kernels = [r for k, r in found.items() if k.endswith("kernel")]
    biases = [r for k, r in found.items() if k.endswith("bias")]
    np.testing.assert_allclose(kernels, [3, 3, 1 / 9], rtol=1e-5)
    np.testing.assert_allclose(biases, [3, 9, 1], rtol=1e-5)


def test_what_cannot_be_rescaled_is_refused():
    for name, options in (("mlp", {"activation": "silu"}), ("wrn-10-1", {})):
        with pytest.raises(ValueError, match=f"{name} cannot be rescaled"):
            rescaled(*network(name, **options), 2.0)
    with pytest.raises(ValueError, match="factor is 0"):
        rescaled(*network("linear"), 0)
