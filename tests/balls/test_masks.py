"""Which weights a perturbation moves, in the names of several libraries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from awp_jax import models
from awp_jax.balls import WeightBall, everything, kernels_only
from awp_jax.weights import awp, value_and_grad

pytestmark = pytest.mark.core


def moved(mask):
    named = jax.tree_util.tree_leaves_with_path(mask)
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, keep in named if keep}


def test_biases_of_several_axes_stay():
    key = jax.random.key(0)
    conv = eqx.filter(eqx.nn.Conv2d(3, 4, 3, key=key), eqx.is_array)
    assert conv.bias.shape == (4, 1, 1)
    assert moved(kernels_only(conv)) == {"weight"}
    x = jnp.ones((1, 5, 8))
    attention = linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    params = attention.init(key, x)["params"]
    assert params["query"]["bias"].shape == (2, 4)
    names = {f"{name}/kernel" for name in ("key", "out", "query", "value")}
    assert moved(kernels_only(params)) == names


@pytest.mark.parametrize(
    "name, shape, moves",
    [
        ("kernel", (8, 1), True),  # a head of one output
        ("kernel", (1, 1, 1, 8), True),  # a 1 x 1 convolution of one channel
        ("weight", (8,), False),
        ("cls_token", (1, 1, 8), False),
        ("cls_token", (1, 2, 8), False),
        ("cls", (1, 1, 8), False),
        ("register_tokens", (1, 4, 8), False),
        ("positions", (1, 16, 8), False),
        ("pos_embed", (1, 17, 8), False),
        ("pos_embedding", (1, 17, 8), False),
        ("posembed_input", (1, 17, 8), False),
        ("position_embeddings", (17, 8), False),
        ("relative_position_bias_table", (9, 2), False),
        ("position_embeddings/embedding", (17, 8), False),
        ("position_embeddings/kernel", (17, 8), True),  # a dense layer on positions
        ("token_embedding/embedding", (17, 8), True),
        ("tokens", (17, 8), True),  # a table of words
        ("pose", (3, 8), True),
        ("composition", (3, 8), True),
        ("gates", (8, 1), True),
        ("scale", (2, 4), False),
        ("offset", (2, 4), False),
    ],
)
def test_names_and_shapes(name, shape, moves):
    tree, expected = jnp.ones(shape), moves
    for part in reversed(("layer", *name.split("/"))):
        tree, expected = {part: tree}, {part: expected}
    assert kernels_only(tree) == expected


def test_norms_tokens_and_positions_of_transformers_and_convnext_stay():
    """And layer scales, while every kernel moves."""
    for name in ("vit-s-convstem", "convnext-t-convstem"):
        classifier = models.create(name, image_shape=(32, 32, 3), num_classes=2)
        params, _ = jax.eval_shape(classifier.init, jax.random.key(0))
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        ]
        kernels = {name for name in names if name.endswith("/kernel")}
        assert len(kernels) > 20 and moved(kernels_only(params)) == kernels


class Encoder(linen.Module):
    """How the authors of ViT write it, and others after them."""

    @linen.compact
    def __call__(self, x):
        init = linen.initializers.normal(0.02)
        token = self.param("cls", init, (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = x + self.param("pos_embedding", init, (1, *x.shape[1:]))
        x = x + linen.Embed(6, 8, name="position_embeddings")(jnp.arange(x.shape[1]))[None]
        x = x + linen.MultiHeadDotProductAttention(2, name="attention")(linen.LayerNorm()(x))
        return linen.Dense(3, name="head")(x[:, 0])


def test_positions_and_tokens_of_linen_stay():
    params = Encoder().init(jax.random.key(0), jnp.ones((2, 5, 8)))["params"]
    expected = {f"attention/{name}/kernel" for name in ("key", "out", "query", "value")}
    assert moved(kernels_only(params)) == expected | {"head/kernel"}


def test_a_module_of_bools_is_a_mask():
    model = eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), eqx.is_array)
    mask = jax.tree.map(lambda leaf: leaf.shape[0] == 2, model)
    assert callable(mask)
    assert jax.tree.leaves(WeightBall(mask=mask).mask_of(model)) == jax.tree.leaves(mask)
    updates, _ = awp(optax.sgd(1.0), ball=WeightBall(0.1, mask=mask)).update(
        None,
        awp(optax.sgd(1.0)).init(model),
        model,
        grad_fn=jax.grad(lambda m: sum(jnp.sum(leaf**2) / 2 for leaf in jax.tree.leaves(m))),
    )
    grown = jax.tree.map(lambda u, w: float(-jnp.vdot(u, w) / jnp.vdot(w, w)), updates, model)
    expected = [1.1 if keep else 1.0 for keep in jax.tree.leaves(mask)]
    np.testing.assert_allclose(jax.tree.leaves(grown), expected, rtol=1e-6)


def test_a_mask_of_nothing_is_refused_before_anything_runs():
    params = {"encoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    misspelt = lambda p: {"encoder": {"kernel": False, "bias": False}}  # noqa: E731
    ball = WeightBall(0.1, mask=misspelt)
    message = r"The mask leaves no parameter to perturb of 2 \(encoder/bias, encoder/kernel\)"
    with pytest.raises(ValueError, match=message):
        awp(optax.sgd(0.1), ball=ball).init(params)
    with pytest.raises(ValueError, match=message):
        value_and_grad(lambda p: jnp.sum(p["encoder"]["kernel"]), ball=ball)(params)
    with pytest.raises(ValueError, match="perturb of 1 .a single array.: awp_jax.balls.everything"):
        awp(optax.sgd(0.1)).init(jnp.ones(3))
    assert WeightBall(0.1, mask=everything).mask_of(jnp.ones(3)) is True
