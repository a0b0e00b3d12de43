"""Balls of inputs beyond images in [0, 1]: shapes of radii, bounds, masks, pytrees; one's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_ball import Own

from awp_jax.attacks import APGD, FAB, FGSM, PGD, SPSA, FeatureAttack, Square, autoattack
from awp_jax.balls import Ball, InputBall, input_norms

pytestmark = pytest.mark.core

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (6, 5))
WEIGHTS = jax.random.normal(jax.random.key(2), (5, 3))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])


def linear(inputs):
    return inputs @ WEIGHTS


def test_what_is_a_ball():
    assert isinstance(InputBall(), Ball)
    assert isinstance(Own(), Ball)
    with pytest.raises(
        ValueError, match=r"ball is 8, but something with start\(...\) was expected"
    ):
        PGD(ball=8)
    with pytest.raises(ValueError, match="the class Own, but an object of it was expected"):
        PGD(ball=Own)


@pytest.mark.parametrize("attack", [PGD, APGD, FGSM])
def test_a_ball_without_a_radius_needs_a_step_size(attack):
    with pytest.raises(ValueError, match="Own has no radius to derive the size of a step from"):
        attack(ball=Own())
    result = attack(ball=Own(), step_size=0.05)(linear, KEY, INPUTS, LABELS)
    assert float(jnp.abs(result.images - INPUTS).max()) <= 0.1 + 1e-6


@pytest.mark.parametrize("attack", [FAB, Square])
def test_attacks_without_a_meaning_in_a_ball_say_so(attack):
    with pytest.raises(ValueError, match=f"{attack.__name__} .* needs an InputBall, not a Own"):
        attack(ball=Own())


def test_ball_and_short_form_exclude_each_other():
    with pytest.raises(ValueError, match="Both a ball and epsilon 0.1 were given"):
        PGD(epsilon=0.1, ball=InputBall())
    attack = PGD(epsilon=0.1, norm="l2", steps=5)
    assert dataclasses.replace(attack, ball=InputBall("linf", 0.2)).ball.radius == 0.2
    assert repr(attack.epsilon) == "see attack.ball"


def test_another_radius_compiles_nothing_anew():
    traces = []

    def counted(inputs):
        traces.append(1)
        return linear(inputs)

    function = jax.tree_util.Partial(counted)
    run = jax.jit(lambda attack: attack(function, KEY, INPUTS, LABELS).images)
    ball = InputBall("l2", 0.1, None, None)
    first = run(PGD(ball=ball, steps=3))
    count = len(traces)
    second = run(PGD(ball=dataclasses.replace(ball, radius=0.2), steps=3))
    assert len(traces) == count
    ratio = input_norms(second - INPUTS, "l2") / input_norms(first - INPUTS, "l2")
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-4)


def test_robust_accuracy_over_radii_is_one_vmap():
    radii = jnp.array([0.0, 0.1, 0.5, 1.0])

    def accuracy(radius):
        ball = InputBall("linf", radius, None, None)
        return 1 - PGD(ball=ball, steps=5)(linear, KEY, INPUTS, LABELS).success.mean()

    together = jax.vmap(accuracy)(radii)
    np.testing.assert_allclose(together, [accuracy(r) for r in radii])
    assert (jnp.diff(together) <= 0).all()


def test_a_radius_for_each_example_and_feature_is_the_closed_form():
    two = WEIGHTS[:, :2]
    labels, full = LABELS % 2, None
    towards = jnp.sign(two[:, 0] - two[:, 1])[None] * jnp.where(labels == 1, 1.0, -1.0)[:, None]
    each = jnp.linspace(0.1, 0.6, 6)
    features = jnp.array([0.0, 0.1, 0.2, 0.3, 0.4])
    for radius, full in ((each, each[:, None]), (features, features[None])):
        attack = PGD(ball=InputBall("linf", radius, None, None), steps=10)
        found = attack(lambda x: x @ two, KEY, INPUTS, labels).images
        np.testing.assert_allclose(found, INPUTS + full * towards, atol=1e-5)
        apgd = APGD(ball=InputBall("linf", radius, None, None), steps=30)
        found = apgd(lambda x: x @ two, KEY, INPUTS, labels).images
        share = jnp.abs(found - INPUTS) / jnp.where(full > 0, full, 1)
        assert float(share.max()) <= 1 + 1e-5


def test_a_radius_that_may_be_of_examples_or_features_is_refused():
    ball = InputBall("linf", jnp.full(5, 0.1), None, None)
    with pytest.raises(ValueError, match=r"give it the shape \(5, 1\) or \(1, 5\)"):
        PGD(ball=ball)(linear, KEY, INPUTS[:5], LABELS[:5])
    with pytest.raises(ValueError, match=r"shape \(4,\), which does not lie over inputs of shape"):
        InputBall("linf", jnp.ones(4), None, None).project(INPUTS, INPUTS)
    with pytest.raises(ValueError, match="for l2 one number, or one for each of 6 examples"):
        InputBall("l2", jnp.ones(5), None, None).project(INPUTS, INPUTS)


def test_an_epsilon_in_255ths_is_refused():
    with pytest.raises(ValueError, match=r"epsilon is 8, wider than the range \[0, 1\].*8/255"):
        PGD(epsilon=8)
    assert InputBall("linf", 8, 0, 255).radius == 8
    assert InputBall("linf", 8, None, None).radius == 8


def test_inputs_outside_the_balls_bounds_are_named():
    with pytest.raises(ValueError, match=r"images hold \[.*\], but values in \[0, 1\]"):
        PGD()(linear, KEY, INPUTS, LABELS)
    wide = InputBall("linf", 1.0, -10, 10)
    assert PGD(ball=wide)(linear, KEY, INPUTS, LABELS).images.shape == INPUTS.shape
    with pytest.raises(ValueError, match="The range of inputs"):
        InputBall(low=1, high=0)
    with pytest.raises(ValueError, match="low is 'x', but a number or a fraction"):
        InputBall(low="x")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_arrays_as_bounds_and_masks_hold(norm):
    low = jnp.array([-1.0, -2.0, -3.0, -2.0, -1.0])
    mask = jnp.array([True, True, False, True, False])
    inputs = jnp.clip(INPUTS, low[None], -low[None])
    ball = InputBall(norm, 0.7, low, -low, mask)
    attacks = [PGD(ball=ball, steps=5), SPSA(ball=ball, steps=3), APGD(ball=ball, steps=5)]
    for attack in attacks:
        found = attack(linear, KEY, inputs, LABELS).images
        assert ((found >= low[None]) & (found <= -low[None])).all()
        np.testing.assert_array_equal(found[:, ~mask], inputs[:, ~mask])
        assert float(ball.distance(inputs, found).max()) <= 0.7 * (1 + 1e-5)
    outside = inputs.at[:, 2].add(0.1)
    assert jnp.isinf(ball.distance(inputs, outside)).all()


def test_gradients_of_any_size_give_the_same_l2_step():
    ball, gradient = InputBall("l2", 1.0, None, None), jnp.array([[3.0, 4.0]])
    clean = jnp.zeros((1, 2))
    for size in (1e-37, 1e-30, 1e-25, 1.0, 1e20, 8e37):
        np.testing.assert_allclose(
            ball.step(clean, clean, size * gradient, 0.5), [[0.3, 0.4]], rtol=1e-6
        )
    half = ball.step(
        clean.astype(jnp.float16), clean.astype(jnp.float16), jnp.float16([[0, 1e-7]]), 0.5
    )
    np.testing.assert_allclose(half, [[0.0, 0.5]])
    for bad in (jnp.nan, jnp.inf):
        both = jnp.array([[3.0, bad], [3.0, 4.0]])
        found = ball.step(jnp.zeros((2, 2)), jnp.zeros((2, 2)), both, 0.5)
        np.testing.assert_allclose(found, [[0, 0], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(ball.step(clean, clean, 0 * gradient, 0.5), clean)
    far = jnp.array([[3e38, 3e38]])
    np.testing.assert_allclose(ball.project(clean, far), [[0.5**0.5] * 2], rtol=1e-6)


def test_pytrees_of_inputs():
    images = jax.random.uniform(KEY, (4, 3, 3, 1))
    tokens = jax.random.normal(KEY, (4, 2, 5))
    ids = jnp.arange(4)[:, None]
    inputs = {"image": images, "ids": ids, "tokens": tokens}
    weights = jax.random.normal(jax.random.key(5), (19, 3))

    def model(x):
        flat = [x[n].reshape(len(x[n]), -1) for n in ("image", "tokens")]
        return jnp.concatenate(flat, axis=1) @ weights + x["ids"]

    labels = model(inputs).argmax(axis=1)
    for norm in ("linf", "l2", "l1"):
        # One radius: one norm over both.
        ball = InputBall(norm, 0.5, None, None)
        clean = PGD(ball=ball, steps=0, start="none")(model, KEY, inputs, labels)
        attacks = {
            "linf": [PGD(ball=ball, steps=5), SPSA(ball=ball, steps=3)],
            "l2": [APGD(ball=ball, steps=9)],
            "l1": [PGD(ball=ball, steps=5), APGD(ball=ball, steps=9)],
        }
        for attack in attacks[norm]:
            found = attack(model, KEY, inputs, labels)
            np.testing.assert_array_equal(found.images["ids"], ids)
            moved = [found.images[n] - inputs[n] for n in ("image", "tokens")]
            assert float(input_norms(moved, norm).max()) <= 0.5 * (1 + 1e-5)
            assert (found.loss > clean.loss).all()
    # A radius for each: each a ball of its own, with bounds of its own.
    ball = InputBall(
        "l2",
        {"image": 0.1, "ids": 0.0, "tokens": 0.4},
        low={"image": 0.0, "ids": None, "tokens": None},
        high={"image": 1.0, "ids": None, "tokens": None},
    )
    with pytest.raises(ValueError, match="no float array"):
        ball.project(inputs, inputs)
    both = {name: inputs[name] for name in ("image", "tokens")}
    ball = InputBall("l2", {"image": 0.1, "tokens": 0.4}, {"image": 0.0, "tokens": None}, None)
    found = PGD(ball=ball, steps=8)(lambda x: model({**x, "ids": ids}), KEY, both, labels).images
    lengths = ball.distance(both, found)
    np.testing.assert_allclose(lengths["tokens"], 0.4, rtol=1e-5)
    assert float(lengths["image"].max()) <= 0.1 + 1e-6
    assert float(found["image"].min()) >= 0.0


def test_autoattack_with_a_radius_for_each_example():
    images = jax.random.uniform(KEY, (12, 3, 3, 1))
    weights = jax.random.normal(jax.random.key(5), (9, 4))

    def model(x):
        return x.reshape(len(x), -1) @ weights

    labels = model(images).argmax(axis=1)
    radii = jnp.where(jnp.arange(12) % 2 == 0, 0.0, 0.5)
    plan = ["apgd-ce", "fab-t", "square"]
    found = autoattack(
        model, KEY, images, labels, ball=InputBall("linf", radii), attacks=plan, batch_size=5
    )
    change = np.abs(found.images - np.asarray(images)).max(axis=(1, 2, 3))
    assert (change <= np.asarray(radii) + 1e-6).all()
    assert found.robust[::2].all()
    assert not found.robust[1::2].all()


def test_autoattack_decides_before_it_runs():
    images, labels = jax.random.uniform(KEY, (8, 5)), LABELS[:8] % 2
    labels = jnp.resize(labels, 8)
    two = WEIGHTS[:, :2]
    calls = []

    def model(x):
        calls.append(1)
        return x @ two

    with pytest.warns(UserWarning, match="left out: apgd-dlr .*at least 3 classes.*square") as seen:
        found = autoattack(model, KEY, images, labels, epsilon=0.3, version="plus")
    assert len(seen) == 1
    assert [name for name, _ in found.left_out] == ["apgd-dlr", "square"]
    assert [row.name for row in found.rows] == ["clean", "apgd-ce", "fab", "apgd-t", "fab-t"]
    calls.clear()
    with pytest.raises(ValueError, match="Not defined here: square"):
        autoattack(model, KEY, images, labels, attacks=["apgd-ce", "square"])
    assert len(calls) <= 1  # only its shape was asked for
    with pytest.raises(ValueError, match="need an InputBall: in a ball of your own"):
        autoattack(model, KEY, images, labels, ball=Own())


def test_the_feature_attack_and_spsa_on_pixels_with_labels():
    images = jax.random.uniform(KEY, (4, 4, 4, 1))
    targets = (images[..., 0] > 0.5).astype(jnp.int32)

    def outputs(x):
        return jnp.stack([0.5 - x[..., 0], x[..., 0] - 0.5], axis=-1) * 10

    def loss(outputs, targets):
        logs = jax.nn.log_softmax(outputs)
        return -jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0].mean((1, 2))

    def success(outputs, targets):
        return (outputs.argmax(-1) == targets).mean((1, 2)) < 0.9

    settings = {"epsilon": 0.3, "loss": loss, "success": success}
    for attack in (PGD(**settings), SPSA(**settings, steps=5, samples=64, delta=0.01)):
        found = attack(outputs, KEY, images, targets)
        assert found.success.any() and found.loss.shape == (4,)
        assert (found.success == success(outputs(found.images), targets)).all()

    def features(x):
        return x.reshape(len(x), -1) - 0.5

    found = FeatureAttack(features, **settings, steps=20, step_size=0.05, restarts=2)(
        outputs, KEY, images, targets
    )
    assert (found.success == success(outputs(found.images), targets)).all()
    assert found.success.any()


def test_outputs_that_are_no_logits_need_a_loss_and_a_success():
    images = jax.random.uniform(KEY, (4, 4, 4, 1))
    with pytest.raises(ValueError, match="for other outputs give a loss and a success"):
        PGD()(lambda x: x, KEY, images, jnp.zeros(4, jnp.int32))
    wrong = PGD(loss=lambda o, t: o.mean(), success=lambda o, t: o.mean((1, 2, 3)) > 2)
    with pytest.raises(ValueError, match=r"loss\(outputs, targets\) gives \(\), but one value"):
        wrong(lambda x: x, KEY, images, jnp.zeros(4))
    with pytest.raises(ValueError, match="targets have shapes"):
        wrong(lambda x: x, KEY, images, jnp.zeros(3))


def test_regression_and_several_labels():
    targets = linear(INPUTS)
    ball = InputBall("l2", 0.3, None, None)
    attack = PGD(
        ball=ball,
        steps=200,
        step_size=0.3,
        loss=lambda out, want: jnp.square(out - want).sum(axis=1),
        success=lambda out, want: jnp.abs(out - want).max(axis=1) > 0.2,
    )
    found = attack(linear, KEY, INPUTS, targets)
    # The worst case of a linear map: epsilon times its largest singular value.
    largest = jnp.linalg.svd(WEIGHTS.T)[1][0]
    np.testing.assert_allclose(found.loss, (0.3 * largest) ** 2, rtol=2e-2)
    assert found.success.all()


@pytest.mark.parametrize("attack", [FGSM, PGD, APGD, Square])
def test_targeted_attacks_reach_the_target(attack):
    images = jax.random.uniform(KEY, (8, 4, 4, 1))
    weights = jax.random.normal(jax.random.key(5), (16, 4))

    def model(x):
        return x.reshape(len(x), -1) @ weights

    clean = model(images).argmax(axis=1)
    targets = (clean + 1) % 4
    found = attack(epsilon=0.8, targeted=True)(model, KEY, images, targets)
    reached = model(found.images).argmax(axis=1) == targets
    np.testing.assert_array_equal(found.success, reached)
    assert reached.mean() > 0.6
    already = attack(epsilon=0.0, targeted=True)(model, KEY, images, clean)
    assert already.success.all()
