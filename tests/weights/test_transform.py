"""The optax transformations, against a numpy implementation and inside each other's wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_awp
import optax
import pytest
from numpy_awp import DECAY, MOMENTUM, RATE, jax_loss

from awp_jax.balls import WeightBall
from awp_jax.weights import awp, random_displacement, random_weight_perturbation

STEPS = 5
XS, YS = numpy_awp.batches(STEPS)


def inner(decay=DECAY, mask=None):
    return optax.chain(optax.add_decayed_weights(decay, mask), optax.sgd(RATE, MOMENTUM))


def run(tx, steps=STEPS, params=None, jit=True, **extra):
    """Trains on the batches; returns parameters as numpy and the last state."""
    params = jax.tree.map(jnp.asarray, params or numpy_awp.first_params())
    state = tx.init(params)

    def one(params, state, x, y):
        grad_fn = functools.partial(jax.grad(jax_loss), x=x, y=y)
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn, **extra)
        return optax.apply_updates(params, updates), state

    one = jax.jit(one) if jit else one
    for x, y in zip(XS[:steps], YS[:steps], strict=True):
        params, state = one(params, state, x, y)
    return jax.tree.map(np.asarray, params), state


def assert_same(found, expected, rtol=1e-12):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol)


@pytest.mark.core
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("size", ["l2", "l1"])
def test_equals_the_numpy_implementation(steps, size, x64):
    found, state = run(awp(inner(), ball=WeightBall(numpy_awp.GAMMA, size=size), steps=steps))
    expected = numpy_awp.train(numpy_awp.first_params(), XS, YS, steps=steps, size=size)
    assert_same(found, expected)
    assert int(state.count) == STEPS and state.aux is None


@pytest.mark.core
def test_the_comparison_would_notice_a_decay_at_w(x64):
    found, _ = run(awp(inner(), numpy_awp.GAMMA))
    wrong = numpy_awp.train(numpy_awp.first_params(), XS, YS, decay_at="w")
    difference = np.linalg.norm(found["kernel"] - wrong["kernel"])
    assert difference > 1e-3 * np.linalg.norm(found["kernel"])


def test_equation_11_by_hand(x64):
    # w = (3, 4), L = 1/2 ||w||^2, so v = 0.1 w and everything happens at 1.1 w:
    # velocity 1: 1.1 w + 0.5 * 1.1 w = 1.65 w; w' = w - 0.2 * 1.65 w = 0.67 w.
    # velocity 2: 0.9 * 1.65 w + 1.65 * 0.67 w = 2.5905 w; w'' = 0.67 w - 0.5181 w = 0.1519 w.
    tx = awp(optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.2, 0.9)), 0.1)
    params = {"kernel": jnp.array([[3.0, 4.0]])}
    state = tx.init(params)
    for factor in (0.67, 0.1519):
        updates, state = tx.update(params, state, params, grad_fn=lambda p: p)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], factor * np.array([[3, 4]]), rtol=1e-12)


def test_the_gradient_may_be_left_to_the_transformation(x64):
    tx = awp(optax.sgd(0.1), 0.1, steps=2)
    params = jax.tree.map(jnp.asarray, numpy_awp.first_params())
    grad_fn = functools.partial(jax.grad(jax_loss), x=XS[0], y=YS[0])
    given, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    left, _ = tx.update(None, tx.init(params), params, grad_fn=grad_fn)
    assert_same(left, given)


def test_gamma_schedule(x64):
    def gamma(count):
        return 0.02 * (count + 1)

    found, _ = run(awp(inner(), gamma))
    gammas = [0.02 * (index + 1) for index in range(STEPS)]
    assert_same(found, numpy_awp.train(numpy_awp.first_params(), XS, YS, gammas=gammas))


def test_a_schedule_that_starts_late(x64):
    found, _ = run(awp(inner(), _late))
    assert_same(
        found, numpy_awp.train(numpy_awp.first_params(), XS, YS, gammas=[0, 0, 0.1, 0.1, 0.1])
    )


def _late(count):
    return jnp.where(count < 2, 0.0, 0.1)


def test_gamma_zero_is_the_inner_optimizer(x64):
    found, _ = run(awp(inner(), 0.0))
    params = jax.tree.map(jnp.asarray, numpy_awp.first_params())
    state = inner().init(params)
    for x, y in zip(XS, YS, strict=True):
        updates, state = inner().update(jax.grad(jax_loss)(params, x, y), state, params)
        params = optax.apply_updates(params, updates)
    assert_same(found, params)


def test_coincides_with_sam_on_one_leaf(x64):
    # SAM's radius is absolute: rho = gamma * ||w|| for the first step.
    params = {"kernel": jnp.asarray(numpy_awp.first_params()["kernel"])}

    def loss_fn(p):
        return jax_loss({"kernel": p["kernel"], "bias": jnp.zeros(2)}, XS[0], YS[0])

    rho = 0.1 * float(jnp.linalg.norm(params["kernel"]))
    sam = optax.contrib.sam(
        optax.sgd(0.1),
        optax.chain(optax.contrib.normalize(), optax.sgd(rho)),
        opaque_mode=True,
    )
    grads = jax.grad(loss_fn)(params)
    theirs, _ = sam.update(
        grads, sam.init(params), params, grad_fn=lambda p, _: jax.grad(loss_fn)(p)
    )
    tx = awp(optax.sgd(0.1), 0.1)
    ours, _ = tx.update(grads, tx.init(params), params, grad_fn=jax.grad(loss_fn))
    assert_same(ours, theirs)


@pytest.mark.core
def test_zero_gradients_give_zero_and_no_nan():
    params = jax.tree.map(jnp.float32, numpy_awp.first_params())
    seen = []

    def grad_fn(p):
        seen.append(p)
        return jax.tree.map(jnp.zeros_like, p)

    tx = awp(optax.sgd(0.1), 0.1, steps=1)
    updates, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    for name in params:
        np.testing.assert_array_equal(updates[name], np.zeros_like(params[name]))
        np.testing.assert_array_equal(seen[-1][name], params[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("gamma", [0.1, lambda count: jnp.float32(0.1)], ids=["number", "schedule"])
def test_keeps_dtypes(dtype, gamma):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), numpy_awp.first_params())
    tx = awp(optax.sgd(0.1), gamma, steps=2)
    seen = []

    def grad_fn(p):
        seen.extend(leaf.dtype for leaf in jax.tree.leaves(p))
        return p

    updates, _ = tx.update(params, tx.init(params), params, grad_fn=grad_fn)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert set(seen) == {jnp.dtype(dtype)}


def test_mask_and_scope_are_its_own(x64):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.array([3.0, 4.0])}
    seen = []

    def grad_fn(p):
        seen.append(p)
        return {"kernel": jnp.ones((2, 2)), "bias": jnp.array([0.0, 2.0])}

    tx = awp(optax.sgd(0.1), ball=WeightBall(0.1, mask={"kernel": False, "bias": True}))
    tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    np.testing.assert_array_equal(seen[-1]["kernel"], np.ones((2, 2)))
    np.testing.assert_allclose(seen[-1]["bias"], [3.0, 4.5], rtol=1e-12)


def test_aux_comes_from_the_perturbed_point(x64):
    params = jax.tree.map(jnp.asarray, numpy_awp.first_params())
    tx = awp(optax.sgd(0.1), 0.1, aux=jnp.zeros((3, 2)))

    def grad_fn(p):
        return jax.grad(lambda p: (jax_loss(p, XS[0], YS[0]), p["kernel"]), has_aux=True)(p)

    state = tx.init(params)
    np.testing.assert_array_equal(state.aux, np.zeros((3, 2)))
    _, state = tx.update(grad_fn(params)[0], state, params, grad_fn=grad_fn)
    v = numpy_awp.displacement(numpy_awp.first_params(), XS[0], YS[0], gamma=0.1)
    np.testing.assert_allclose(state.aux, params["kernel"] + v["kernel"], rtol=1e-12)


def test_the_state_fits_a_scan(x64):
    params = jax.tree.map(jnp.asarray, numpy_awp.first_params())
    tx = awp(inner(), numpy_awp.GAMMA, aux=jnp.zeros(()))

    def one(carry, batch):
        params, state = carry

        def grad_fn(p):
            return jax.grad(lambda p: (jax_loss(p, *batch), p["bias"].sum()), has_aux=True)(p)

        updates, state = tx.update(None, state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), state), None

    (found, _), _ = jax.lax.scan(one, (params, tx.init(params)), (XS, YS))
    assert_same(found, numpy_awp.train(numpy_awp.first_params(), XS, YS))


def test_a_vmapped_ensemble(x64):
    first = numpy_awp.first_params()
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), first)
    tx = awp(inner(), numpy_awp.GAMMA)

    def one(params):
        grad_fn = functools.partial(jax.grad(jax_loss), x=XS[0], y=YS[0])
        updates, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates)

    found = jax.jit(jax.vmap(one))(members)
    for index, scale in enumerate((1, 2)):
        expected = numpy_awp.train({k: scale * v for k, v in first.items()}, XS[:1], YS[:1])
        assert_same({name: leaf[index] for name, leaf in found.items()}, expected)


def test_no_tracer_leaks():
    with jax.checking_leaks():
        run(awp(inner(), 0.1, steps=2), steps=1)


def test_extra_arguments():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append((value, extra))
        return updates, state

    recorder = optax.GradientTransformationExtraArgs(lambda params: (), update)
    run(awp(optax.chain(recorder, optax.sgd(0.1)), 0.1), steps=1, jit=False, value=7, other=8)
    assert seen == [(7, {"other": 8})]
    run(awp(optax.sgd(0.1), 0.1), steps=1, jit=False, value=7, other=8)  # nobody takes them


@pytest.mark.core
def test_missing_arguments_are_named():
    params = {"kernel": jnp.ones((2, 2))}
    tx = awp(optax.sgd(0.1))
    state = tx.init(params)
    with pytest.raises(ValueError, match="^grad_fn is missing: call update"):
        tx.update(params, state, params)
    with pytest.raises(ValueError, match="^params is missing: call update"):
        tx.update(params, state, grad_fn=lambda p: p)
    with pytest.raises(ValueError, match="gamma is -1"):
        awp(optax.sgd(0.1), -1)
    with pytest.raises(ValueError, match="steps is 0"):
        awp(optax.sgd(0.1), steps=0)
    with pytest.raises(ValueError, match="typed key"):
        random_weight_perturbation(optax.sgd(0.1), 0.1, 0)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("grad_fn", "message"),
    [
        (lambda p: (0.5, p), "is a tuple of 3 arrays and params a dict of 2 .* jax.value_and_grad"),
        (lambda p: {"kernel": p["kernel"]}, r"\(only params has \['bias'\]\)"),
        (lambda p: {**p, "scale": p["bias"]}, r"\(only grad_fn's result has \['scale'\]\)"),
        (lambda p: {**p, "bias": p["kernel"]}, r"shape \(2, 2\) at \['bias'\], but .* \(2,\)"),
    ],
)
def test_a_gradient_that_is_not_like_the_parameters_is_one_sentence(grad_fn, message, jit):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = awp(optax.sgd(0.1), 0.1)
    state = tx.init(params)

    def update(grads):
        return tx.update(grads, state, params, grad_fn=grad_fn)

    with pytest.raises(ValueError, match=f"^grad_fn's result .*{message}"):
        (jax.jit(update) if jit else update)(params)
    with pytest.raises(ValueError, match="^the gradient at w has shape"):
        update({**params, "bias": jnp.ones(3)})


def test_a_grad_fn_that_is_none_or_gives_no_pair_is_one_sentence():
    params = {"kernel": jnp.ones((2, 2))}
    tx = awp(optax.sgd(0.1), 0.1, aux=0)
    with pytest.raises(ValueError, match="^grad_fn is a dict, but a function was expected"):
        tx.update(params, tx.init(params), params, grad_fn=params)
    with pytest.raises(ValueError, match="^grad_fn returned a dict, but with aux a pair"):
        tx.update(params, tx.init(params), params, grad_fn=lambda p: p)


# --- inside awp -------------------------------------------------------------------------------


def test_awp_around_clip(x64):
    found, _ = run(awp(optax.chain(optax.clip_by_global_norm(0.3), inner()), numpy_awp.GAMMA))
    expected = numpy_awp.train(numpy_awp.first_params(), XS, YS, clip=0.3)
    assert_same(found, expected)
    assert not np.allclose(
        expected["kernel"], numpy_awp.train(numpy_awp.first_params(), XS, YS)["kernel"]
    )


def test_awp_around_masked(x64):
    mask = {"kernel": True, "bias": False}
    decay = optax.masked(optax.add_decayed_weights(DECAY), mask)
    found, _ = run(awp(optax.chain(decay, optax.sgd(RATE, MOMENTUM)), numpy_awp.GAMMA))
    decays = {"kernel": DECAY, "bias": 0.0}
    assert_same(found, numpy_awp.train(numpy_awp.first_params(), XS, YS, decay=decays))


def test_awp_around_multi_transform(x64):
    parts = {"fast": optax.sgd(0.2, MOMENTUM), "slow": optax.sgd(0.01, MOMENTUM)}
    split = optax.multi_transform(parts, {"kernel": "fast", "bias": "slow"})
    found, _ = run(awp(split, numpy_awp.GAMMA))
    rates = {"kernel": 0.2, "bias": 0.01}
    assert_same(found, numpy_awp.train(numpy_awp.first_params(), XS, YS, decay=0.0, rates=rates))


def test_awp_around_multi_steps_perturbs_for_every_micro_batch(x64):
    first = numpy_awp.first_params()
    tx = awp(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), numpy_awp.GAMMA)
    after_one, _ = run(tx, steps=1)
    assert_same(after_one, first)
    after_two, _ = run(tx, steps=2)
    gradients = [
        numpy_awp.gradient(numpy_awp.add(first, numpy_awp.displacement(first, x, y)), x, y)
        for x, y in zip(XS[:2], YS[:2], strict=True)
    ]
    mean = {name: (gradients[0][name] + gradients[1][name]) / 2 for name in first}
    # MultiSteps takes its mean with a float32 factor.
    assert_same(after_two, numpy_awp.add(first, mean, -0.1), rtol=1e-7)


# --- awp inside others ------------------------------------------------------------------------

injectable = optax.inject_hyperparams(awp, static_args=("steps", "ball"))


@pytest.mark.parametrize("steps", [1, 3])
def test_injected_number(x64, steps):
    tx = injectable(inner(), gamma=0.02, steps=steps)
    params = jax.tree.map(jnp.asarray, numpy_awp.first_params())
    state = tx.init(params)
    gammas = [0.02, 0.1]
    for x, y, gamma in zip(XS, YS, gammas, strict=False):
        state.hyperparams["gamma"] = jnp.asarray(gamma)

        @jax.jit
        def one(params, state, x=x, y=y):
            grad_fn = functools.partial(jax.grad(jax_loss), x=x, y=y)
            updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state

        params, state = one(params, state)
    expected = numpy_awp.train(numpy_awp.first_params(), XS[:2], YS[:2], gammas=gammas, steps=steps)
    assert_same(params, expected)


def test_injected_schedule_and_mask(x64):
    def mask(params):
        return jax.tree.map(lambda leaf: leaf.ndim == 2, params)

    def masked(inner, gamma):
        return awp(inner, ball=WeightBall(gamma, mask=mask))

    tx = optax.inject_hyperparams(masked)(inner(), gamma=lambda count: 0.02 * (count + 1))
    found, state = run(tx)
    gammas = [0.02 * (index + 1) for index in range(STEPS)]
    assert_same(found, numpy_awp.train(numpy_awp.first_params(), XS, YS, gammas=gammas))
    np.testing.assert_allclose(state.hyperparams["gamma"], 0.02 * STEPS)


MASKED = {
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
    "multi_transform": lambda tx: optax.multi_transform(
        {"awp": tx, "plain": optax.sgd(0.1)}, {"kernel": "awp", "bias": "plain"}
    ),
}
TRANSFORMATIONS = {
    "awp": lambda: awp(optax.sgd(0.1), 0.1),
    "random": lambda: random_weight_perturbation(optax.sgd(0.1), 0.1, jax.random.key(0)),
}


@pytest.mark.parametrize("kind", TRANSFORMATIONS)
@pytest.mark.parametrize("wrapper", MASKED)
def test_refuses_masked_parameters(wrapper, kind):
    with pytest.raises(ValueError) as error:
        run(MASKED[wrapper](TRANSFORMATIONS[kind]()), steps=1)
    assert str(error.value).startswith("A weight perturbation was put inside optax.masked or")
    assert "\n" not in str(error.value)


def test_clip_outside_does_not_reach_the_outer_gradient(x64):
    found, _ = run(optax.chain(optax.clip_by_global_norm(0.3), awp(inner(), numpy_awp.GAMMA)))
    assert_same(found, numpy_awp.train(numpy_awp.first_params(), XS, YS))


def test_decay_outside_acts_at_w(x64):
    tx = optax.chain(
        awp(optax.identity(), numpy_awp.GAMMA),
        optax.add_decayed_weights(DECAY),
        optax.sgd(RATE, MOMENTUM),
    )
    found, _ = run(tx)
    assert_same(found, numpy_awp.train(numpy_awp.first_params(), XS, YS, decay_at="w"))


# --- random -----------------------------------------------------------------------------------


def test_random_weight_perturbation_by_hand(x64):
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([1.0, 2.0])}
    key = jax.random.key(5)
    tx = random_weight_perturbation(
        optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.2)), 0.1, key
    )
    state = tx.init(params)
    for count in range(2):
        v = random_displacement(params, jax.random.fold_in(key, count), 0.1)
        np.testing.assert_allclose(
            np.linalg.norm(v["kernel"]), 0.1 * np.linalg.norm(params["kernel"]), rtol=1e-12
        )
        # L = ||w||^2, so gradient and decay at w + v are 2.5 (w + v).
        expected = {k: params[k] - 0.2 * 2.5 * (params[k] + v[k]) for k in params}
        updates, state = tx.update(
            None, state, params, grad_fn=lambda p: jax.tree.map(lambda leaf: 2 * leaf, p)
        )
        params = optax.apply_updates(params, updates)
        assert_same(params, expected)
    assert int(state.count) == 2


def test_random_weight_perturbation_takes_schedules_and_aux():
    key = jax.random.key(0)
    tx = random_weight_perturbation(optax.sgd(0.1), lambda count: 0.1 * count, key, aux=0.0)
    params = {"kernel": jnp.array([[3.0, 4.0]])}
    state = tx.init(params)
    for count in range(2):
        _, state = tx.update(
            None,
            state,
            params,
            grad_fn=lambda p: (p, jnp.linalg.norm(p["kernel"] - params["kernel"])),
        )
        np.testing.assert_allclose(state.aux, 0.1 * count * 5, rtol=1e-5)


def test_a_grad_fn_of_modules_is_told_what_it_gets():
    params = {"kernel": jnp.ones((3, 2))}
    tx = awp(optax.sgd(0.1), gamma=0.1)
    with pytest.raises(TypeError, match="not callable") as found:
        tx.update(params, tx.init(params), params, grad_fn=lambda module: module(jnp.ones(3)))
    assert "grad_fn was called with parameters" in found.value.__notes__[0]
