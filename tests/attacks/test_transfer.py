"""Transfer attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import APGD, PGD, SPSA, Square, transfer
from awp_jax.balls import input_norms
from awp_jax.landscape import average_flatness
from awp_jax.training import TrainingAttack


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def problem():
    weights = jax.random.normal(jax.random.key(7), (16, 3))
    images = 0.3 + 0.4 * jax.random.uniform(jax.random.key(0), (12, 4, 4, 1))
    return weights, images, linear(weights, images).argmax(1).astype(jnp.int32)


def test_the_same_model_is_a_white_box_attack_and_the_opposite_one_helps_nothing():
    weights, images, labels = problem()
    attack, key, target = PGD(0.3, 10), jax.random.key(0), Partial(linear, weights)
    white = attack(target, key, images, labels)
    same = transfer(attack, target, target, key, images, labels)
    np.testing.assert_array_equal(same.success, white.success)
    assert same.success.any()
    opposite = transfer(attack, Partial(linear, -weights), target, key, images, labels)
    assert opposite.success.sum() < same.success.sum()
    assert float(input_norms(same.images - images, "linf").max()) <= 0.3 + 1e-6


def test_clean_errors_of_the_target_count():
    weights, images, labels = problem()
    wrong = (labels + 1) % 3
    target = Partial(linear, weights)
    result = transfer(PGD(0.1, 5), target, target, jax.random.key(0), images, wrong)
    assert result.success.all()
    np.testing.assert_array_equal(result.images, images)


@pytest.mark.parametrize(
    "attack",
    [
        Square("8/255", steps=5),
        APGD("8/255", steps=5, loss="margin"),
        SPSA("8/255", steps=20, samples=64),
        PGD("8/255", steps=3, restarts=2, loss="margin"),
    ],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("scale", [20.0, 200.0])
def test_images_of_a_very_sure_surrogate_have_moved(attack, scale):
    """At 200 both cross-entropies are 0.0, and it is the loss that is ascended which counts."""
    weights = jnp.array([[1.0, -1.0]])

    def surrogate(x):
        return scale * (x.mean((1, 2)) - 0.5) @ weights

    def target(x):
        return (x.mean((1, 2)) - 0.88) @ weights

    images, labels = jnp.full((2, 4, 4, 1), 0.9), jnp.zeros(2, int)
    found = transfer(attack, surrogate, target, jax.random.key(0), images, labels)
    assert found.success.all()


def test_an_attack_of_ones_own_that_returns_images_is_told_what_is_expected():
    weights, images, labels = problem()
    surrogate = Partial(linear, weights)
    mine = lambda f, key, x, y: x  # noqa: E731
    with pytest.raises(ValueError, match="<lambda> returned a ArrayImpl, but an awp_jax.attacks.A"):
        transfer(mine, surrogate, surrogate, jax.random.key(0), images, labels)
    with pytest.raises(ValueError, match="returned a ArrayImpl"):
        average_flatness(
            lambda w, x: linear(w, x),
            weights,
            images,
            labels,
            jax.random.key(0),
            attack=mine,
            xi=0.1,
            draws=1,
        )


def test_images_of_other_libraries_and_layouts():
    torch = pytest.importorskip("torch")
    weights, images, labels = problem()
    with pytest.raises(ValueError, match=r"not a torch tensor: give x.numpy\(\), with images"):
        PGD()(Partial(linear, weights), jax.random.key(0), torch.ones(2, 4, 4, 3), labels[:2])
    with pytest.warns(UserWarning, match=r"\(2, 3, 8, 8\), which looks like .batch, channels"):
        PGD(steps=1)(
            lambda x: x.mean((2, 3)), jax.random.key(0), jnp.full((2, 3, 8, 8), 0.5), labels[:2]
        )


@pytest.mark.parametrize("norm, usual", [("l2", "0.5"), ("l1", "12")])
def test_other_norms_need_an_epsilon(norm, usual):
    for attack in (PGD, APGD, TrainingAttack):
        with pytest.raises(ValueError, match=f"epsilon is missing.*{norm}.*attacked at {usual}"):
            attack(norm=norm)


def test_bad_input():
    weights, images, labels = problem()
    surrogate, key = Partial(linear, weights), jax.random.key(0)
    with pytest.raises(ValueError, match="returns NaN"):
        transfer(PGD(), surrogate, Partial(linear, jnp.nan * weights), key, images, labels)
    with pytest.raises(ValueError, match="below 3"):
        transfer(PGD(), surrogate, surrogate, key, images, labels + 3)
