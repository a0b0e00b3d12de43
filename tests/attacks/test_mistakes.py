"""What people type by habit or in the wrong order: one sentence, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_ball import Own

from awp_jax.attacks import APGD, PGD, autoattack, cross_entropy
from awp_jax.balls import AdaptiveWeightBall, InputBall, WeightBall
from awp_jax.landscape import robust_loss
from awp_jax.weights import awp, perturbed, sam, value_and_grad

pytestmark = pytest.mark.core
KEY = jax.random.key(0)
IMAGES, LABELS = jnp.full((2, 4, 4, 1), 0.9), jnp.array([0, 0])
PARAMS = {"kernel": jnp.ones((1, 2))}


def model(images):
    return (images.mean((1, 2)) - 0.5) * jnp.array([[1.0, -1.0]])


@pytest.mark.parametrize("ball", [WeightBall(0.1), AdaptiveWeightBall(0.1)])
@pytest.mark.parametrize("attack", [PGD, APGD])
def test_a_ball_of_weights_is_none_of_inputs(attack, ball):
    """Its points are displacements: images moved around zero, and each was called a success."""
    with pytest.raises(ValueError, match=r"in which weights move, but inputs shall move: give Inp"):
        attack(ball=ball, steps=2, step_size=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda ball: awp(optax.sgd(0.1), ball=ball),
        lambda ball: perturbed(optax.sgd(0.1), ball),
        lambda ball: perturbed(optax.sgd(0.1), lambda count: ball),
        lambda ball: value_and_grad(lambda p: p["kernel"].sum(), ball=ball),
    ],
)
def test_a_ball_of_inputs_is_none_of_weights(make):
    with pytest.raises(ValueError, match=r"in which inputs move, but weights shall move: give Wei"):
        make(InputBall("l2", 0.1))


def test_the_order_of_arguments_is_said():
    with pytest.raises(ValueError, match=r"the order is attack\(logits_fn, key, images, labels\)"):
        PGD(0.1, steps=2)(model, IMAGES, LABELS, KEY)
    with pytest.raises(ValueError, match="key is int"):
        PGD(0.1, steps=2)(model, 0, IMAGES, LABELS)


def test_autoattack_is_not_traced():
    with pytest.raises(ValueError, match="autoattack is being traced"):
        jax.jit(lambda x: autoattack(model, KEY, x, LABELS, epsilon=0.1).images)(IMAGES)


def test_autoattack_in_a_ball_of_ones_own():
    class Box(Own):
        radius = 0.1

    with pytest.raises(ValueError, match=r"name attacks that need none, such as attacks=\['apgd"):
        autoattack(model, KEY, IMAGES, LABELS, ball=Box())
    found = autoattack(model, KEY, IMAGES.at[1].set(0.55), LABELS, ball=Box(), attacks=["apgd-ce"])
    assert found.accuracy == 0.5


def test_models_of_pytorch_are_named():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    for call in (
        lambda: PGD(0.1, steps=2)(module, KEY, IMAGES, LABELS),
        lambda: autoattack(module, KEY, IMAGES, LABELS, epsilon=0.1),
        lambda: robust_loss(module, PARAMS, IMAGES, LABELS, KEY),
    ):
        with pytest.raises(ValueError, match="but a function of JAX arrays"):
            call()
    with pytest.raises(ValueError, match="The model is a dict"):
        PGD(0.1, steps=2)(PARAMS, KEY, IMAGES, LABELS)


def test_tensors_of_pytorch_are_named_by_autoattack_too():
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(np.array(IMAGES))
    with pytest.raises(ValueError, match="torch tensor"):
        autoattack(model, KEY, images, LABELS, epsilon=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: awp(optax.sgd(0.1), mask="head/*"), r"ball=WeightBall\(gamma, mask=...\)"),
        (lambda: awp(optax.sgd(0.1), rho=0.1), r"ball=WeightBall\(radius=rho"),
        (lambda: sam(optax.sgd(0.1), gamma=0.1), "did you mean rho"),
    ],
)
def test_words_of_others(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_large_gamma_is_not_taken_for_pixels():
    with pytest.warns(UserWarning, match="relative to the weights' norm") as caught:
        awp(optax.sgd(0.1), gamma=5.0)
    assert "255" not in str(caught[0].message)


def test_own_losses_still_work():
    found = PGD(0.1, steps=2, loss=cross_entropy)(model, KEY, IMAGES, LABELS)
    assert found.success.shape == (2,)
