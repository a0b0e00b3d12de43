"""Several models as one: the mean against one written by hand, and all of them fooled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from digits_network import initial, network
from jax.tree_util import Partial

from awp_jax.attacks import PGD, mean_of_models, stacked_models, worst_of_models
from awp_jax.attacks._model import predict

KEY = jax.random.key(0)
PARAMS = [initial(seed, width=16) for seed in range(3)]
MODELS = [Partial(network, params) for params in PARAMS]
STACKED = jax.tree.map(lambda *leaves: jnp.stack(leaves), *PARAMS)


def batch(count=24):
    images = jax.random.uniform(jax.random.key(5), (count, 8, 8, 1))
    return images, mean_of_models(MODELS)(images).argmax(1).astype(jnp.int32)


def by_hand(of):
    def logits_fn(images):
        outputs = [network(params, images) for params in PARAMS]
        if of == "logits":
            return sum(outputs) / 3
        return jnp.log(sum(jax.nn.softmax(logits) for logits in outputs) / 3)

    return logits_fn


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_attacking_the_mean_is_attacking_the_mean_by_hand(of):
    images, labels = batch()
    attack = PGD(epsilon=0.05, steps=5, start="none")
    expected = attack(by_hand(of), KEY, images, labels)
    assert 0 < float(expected.success.mean()) < 1
    for logits_fn in (mean_of_models(MODELS, of=of), stacked_models(network, STACKED, of=of)):
        np.testing.assert_allclose(logits_fn(images), by_hand(of)(images), rtol=1e-4, atol=1e-4)
        found = attack(logits_fn, KEY, images, labels)
        np.testing.assert_array_equal(found.success, expected.success)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-3, atol=1e-5)


def test_the_mean_of_extreme_logits_is_finite():
    models = [lambda _: jnp.array([[0.0, 1e4]]), lambda _: jnp.array([[-1e4, 0.0]])]
    mean = mean_of_models(models)
    np.testing.assert_allclose(mean(jnp.zeros((1, 2))), [[-1e4, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: mean_of_models([lambda y: 1e4 * y] * 2)(x)[0, 0])
    assert bool(jnp.isfinite(gradient(jnp.array([[0.0, 1.0]]))).all())


@pytest.mark.parametrize("make", [mean_of_models, lambda m: worst_of_models(m).logits_fn])
def test_other_parameters_compile_nothing_anew(make):
    images, _ = batch(2)
    predict(make(MODELS[:2]), images)
    before = predict._cache_size()
    predict(make(MODELS[1:]), images)
    assert predict._cache_size() == before


def test_other_stacked_parameters_compile_nothing_anew():
    images, _ = batch(2)
    predict(stacked_models(network, STACKED), images)
    before = predict._cache_size()
    predict(stacked_models(network, jax.tree.map(lambda leaf: leaf + 1, STACKED)), images)
    assert predict._cache_size() == before


def test_the_smallest_loss_and_the_verdict_by_hand():
    outputs = jnp.array([[[0.0, 2.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 3.0]]])
    labels = jnp.array([0, 0])
    both = worst_of_models(MODELS)
    np.testing.assert_allclose(both.loss(outputs, labels), [-1.0, 2.0])
    np.testing.assert_array_equal(both.success(outputs, labels), [False, True])
    cross_entropy = worst_of_models(MODELS, loss="cross_entropy").loss
    expected = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(2.0))]
    np.testing.assert_allclose(cross_entropy(outputs, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
def test_every_model_is_fooled_where_the_attack_says_so(loss):
    images, labels = batch()
    both = worst_of_models(MODELS, loss)
    assert both.logits_fn(images).shape == (24, 3, 10)
    attack = PGD(epsilon=0.2, steps=20, loss=both.loss, success=both.success)
    found = attack(both.logits_fn, KEY, images, labels)
    wrong = jnp.stack([model(found.images).argmax(1) != labels for model in MODELS])
    np.testing.assert_array_equal(found.success, wrong.all(0))
    # An attack on the mean fools the mean, and leaves single models right more often.
    other = PGD(epsilon=0.2, steps=20)(mean_of_models(MODELS), KEY, images, labels)
    left = jnp.stack([model(other.images).argmax(1) != labels for model in MODELS]).all(0)
    assert float(found.success.mean()) > 0.5
    assert float(found.success.mean()) >= float(left.mean())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mean_of_models([]), "at least one logits_fn"),
        (lambda: mean_of_models([3]), "at least one logits_fn"),
        (lambda: mean_of_models(MODELS[0]), "a sequence"),
        (lambda: mean_of_models(MODELS, of="votes"), "Unknown of 'votes'"),
        (lambda: stacked_models(network, {}), "first axes"),
        (lambda: stacked_models(network, {"a": jnp.ones((2, 1)), "b": jnp.ones(3)}), "first axes"),
        (lambda: stacked_models(network, {"a": jnp.ones(())}), "first axes"),
        (lambda: worst_of_models(MODELS, loss="hinge"), "Unknown loss 'hinge'"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()
