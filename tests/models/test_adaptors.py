"""Linen modules and plain functions keep the same contract."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax import models

SHAPE = {"image_shape": (6, 6, 2), "num_classes": 3}


class LinenCNN(nn.Module):
    dropout: float = 0.0

    def setup(self):
        self.conv = nn.Conv(4, (3, 3))
        self.norm = nn.BatchNorm(momentum=0.9)
        self.drop = nn.Dropout(self.dropout)
        self.dense = nn.Dense(3)

    def features(self, images, train, deterministic=None):
        x = nn.relu(self.norm(self.conv(images), use_running_average=not train))
        deterministic = not train if deterministic is None else deterministic
        return self.drop(x.mean((1, 2)), deterministic=deterministic)

    def __call__(self, images, train, deterministic=None):
        return self.dense(self.features(images, train, deterministic))


def images_of(batch):
    return jax.random.uniform(jax.random.key(1), (batch, *SHAPE["image_shape"]))


@pytest.fixture
def linen():
    module = LinenCNN()
    classifier = models.from_linen(module, **SHAPE, features_method="features")
    return module, classifier, *classifier.init(jax.random.key(0))


def test_linen_modes(linen):
    module, classifier, params, batch_stats = linen
    images = images_of(4)
    variables = {"params": params, "batch_stats": batch_stats}
    running, unchanged = classifier.apply(params, batch_stats, images, mode="running")
    np.testing.assert_array_equal(running, module.apply(variables, images, train=False))
    assert unchanged is batch_stats
    expected, changed = module.apply(variables, images, train=True, mutable=["batch_stats"])
    batch, unchanged = classifier.apply(params, batch_stats, images, mode="batch")
    np.testing.assert_array_equal(batch, expected)
    assert unchanged is batch_stats
    update, stats = classifier.apply(params, batch_stats, images, mode="update")
    np.testing.assert_array_equal(update, expected)
    np.testing.assert_array_equal(stats["norm"]["mean"], changed["batch_stats"]["norm"]["mean"])
    assert np.any(stats["norm"]["mean"] != batch_stats["norm"]["mean"])


def test_linen_features_and_logits_fn(linen):
    _, classifier, params, batch_stats = linen
    images = images_of(4)
    assert classifier.features(params, batch_stats, images).shape == (4, 4)
    logits = jax.jit(lambda function, images: function(images))(
        classifier.logits_fn(params, batch_stats), images
    )
    expected, _ = classifier.apply(params, batch_stats, images, mode="running")
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert jax.eval_shape(classifier.init, jax.random.key(0))[0]["dense"]["bias"].shape == (3,)


def test_linen_limits_are_errors(linen):
    _, classifier, params, batch_stats = linen
    mask = jnp.ones((4,), bool)
    with pytest.raises(ValueError, match="takes no mask"):
        classifier.apply(params, batch_stats, images_of(4), mode="update", mask=mask)
    classifier.apply(params, batch_stats, images_of(4), mode="running", mask=mask)
    without = models.from_linen(LinenCNN(), **SHAPE)
    with pytest.raises(ValueError, match="LinenCNN was made without a function for its features"):
        without.features(params, batch_stats, images_of(4))
    with pytest.raises(ValueError, match=r"LinenCNN takes images of shape \[batch, 6, 6, 2\]"):
        classifier.apply(params, batch_stats, jnp.zeros((2, 6, 6, 1)), mode="running")


def test_linen_collections_that_nothing_carries_are_refused_by_name():
    class Averaged(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            self.variable("ema", "mean", jnp.zeros, ())
            return nn.Dense(3)(images.reshape(images.shape[0], -1))

    with pytest.raises(ValueError, match=r"Averaged has the collections 'ema', but .*batch_stats"):
        models.from_linen(Averaged(), **SHAPE).init(jax.random.key(0))


def test_linen_dropout_with_one_flag():
    classifier = models.from_linen(LinenCNN(dropout=0.5), **SHAPE, has_dropout=True)
    params, batch_stats = classifier.init(jax.random.key(0))
    images, key = images_of(4), jax.random.key(2)
    with pytest.raises(ValueError, match='mode "update" needs a key'):
        classifier.apply(params, batch_stats, images, mode="update")
    with pytest.raises(ValueError, match='mode "batch" cannot turn off'):
        classifier.apply(params, batch_stats, images, mode="batch")
    with pytest.raises(ValueError, match="one key for the whole batch"):
        keys = jax.random.split(key, 4)
        classifier.apply(params, batch_stats, images, mode="batch", key=keys)
    one, _ = classifier.apply(params, batch_stats, images, mode="batch", key=key)
    other, _ = classifier.apply(params, batch_stats, images, mode="batch", key=jax.random.key(3))
    assert not np.allclose(one, other)


def test_linen_dropout_with_its_own_flag():
    classifier = models.from_linen(
        LinenCNN(dropout=0.5),
        **SHAPE,
        has_dropout=True,
        call_arguments=lambda batch, dropout: {"train": batch, "deterministic": not dropout},
    )
    params, batch_stats = classifier.init(jax.random.key(0))
    images = images_of(4)
    without, _ = classifier.apply(params, batch_stats, images, mode="batch")
    again, _ = classifier.apply(params, batch_stats, images, mode="batch")
    np.testing.assert_array_equal(without, again)
    key = jax.random.key(2)
    dropped, _ = classifier.apply(params, batch_stats, images, mode="batch", key=key)
    assert not np.allclose(without, dropped)


def mlp_init(key):
    one, two = jax.random.split(key)
    return {"w1": jax.random.normal(one, (72, 5)), "w2": jax.random.normal(two, (5, 3))}


def mlp_features(params, images):
    return jnp.tanh(images.reshape(images.shape[0], -1) @ params["w1"])


def mlp(params, images):
    return mlp_features(params, images) @ params["w2"]


@pytest.mark.core
def test_plain_function():
    classifier = models.from_callable(
        mlp, mlp_init, **SHAPE, features_fn=mlp_features, mean=(0.5, 0.5), std=(0.5, 0.5)
    )
    params, batch_stats = classifier.init(jax.random.key(0))
    assert batch_stats == {}
    images = images_of(4)
    for mode in models.MODES:
        logits, stats = classifier.apply(params, batch_stats, images, mode=mode)
        np.testing.assert_allclose(logits, mlp(params, 2 * images - 1), rtol=1e-4, atol=1e-5)
        assert stats == {}
    assert classifier.features(params, {}, images).shape == (4, 5)
    gradient = jax.grad(lambda images: classifier.logits_fn(params, {})(images).sum())(images)
    assert gradient.shape == images.shape


def test_stateful_function():
    def apply(params, batch_stats, images, *, mode, key, mask):
        logits = mlp(params, images)
        if key is not None:
            logits = logits + jax.random.normal(key, logits.shape)
        return logits, {"count": batch_stats["count"] + (mode == "update")}

    classifier = models.from_callable(
        apply,
        lambda key: (mlp_init(key), {"count": jnp.zeros(())}),
        **SHAPE,
        name="counting",
        stateful=True,
        has_dropout=True,
    )
    params, batch_stats = classifier.init(jax.random.key(0))
    images = images_of(2)
    with pytest.raises(ValueError, match="counting has dropout"):
        classifier.apply(params, batch_stats, images, mode="update")
    key = jax.random.key(1)
    _, stats = classifier.apply(params, batch_stats, images, mode="update", key=key)
    assert stats["count"] == 1
    _, stats = classifier.apply(params, batch_stats, images, mode="batch")
    assert stats["count"] == 0
    with pytest.raises(ValueError, match="has_dropout needs stateful=True"):
        models.from_callable(mlp, mlp_init, **SHAPE, has_dropout=True)
