"""The general weight perturbation and its short forms, against optax, NumPy and closed forms."""

import functools
import pathlib
import runpy
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training import train_state

from awp_jax.balls import (
    EMBEDDINGS,
    NORMALISATIONS,
    AdaptiveWeightBall,
    Ball,
    WeightBall,
    everything,
    kernels_without,
    matching,
)
from awp_jax.weights import (
    accumulated,
    asam,
    awp,
    perturb,
    perturbed,
    random_displacement,
    robust_displacement,
    rwp,
    sam,
    value_and_grad,
)

pytestmark = pytest.mark.core

PROGRAMS = pathlib.Path(__file__).parents[3] / "shared" / "programs"
X = jax.random.normal(jax.random.key(0), (16, 4))
Y = (X.sum(axis=1) > 0).astype(jnp.int32)


def mlp():
    keys = jax.random.split(jax.random.key(1))
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (4, 8)) / 2, "bias": jnp.zeros(8)},
        "output": {"kernel": jax.random.normal(keys[1], (8, 2)) / 3, "bias": jnp.zeros(2)},
    }


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def mlp_loss(params, x=X, y=Y):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return cross_entropy(hidden @ params["output"]["kernel"] + params["output"]["bias"][None], y)


def norm(tree):
    return float(optax.tree.norm(tree))


def trained(optimizer, params, grad_fn, steps=5):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("name", ["patch", "table", "segments", "layers"])
@pytest.mark.skipif(not PROGRAMS.exists(), reason="programs of outsiders are not here")
def test_programs_of_outsiders_run_unchanged(name, capsys):
    # As their own program would: without the settings of this suite.
    with jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(PROGRAMS / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("ok: ")


def test_sam_is_that_of_optax():
    def theirs(params, loss, steps):
        adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
        optimizer = optax.contrib.sam(
            optax.sgd(0.1, momentum=0.9), adversary, sync_period=2, opaque_mode=True
        )

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(
                jax.grad(loss)(params), state, params, grad_fn=lambda p, _: jax.grad(loss)(p)
            )
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(steps):
            params, state = step(params, state)
        return params

    def quadratic(w):
        return 0.5 * (jnp.array([[1.0, 10.0]]) * w**2).sum()

    for params, loss in ((jnp.array([[3.0, 4.0]]), quadratic), (mlp(), mlp_loss)):
        mine, _ = trained(sam(optax.sgd(0.1, momentum=0.9), rho=0.05), params, jax.grad(loss), 8)
        difference = norm(jax.tree.map(jnp.subtract, mine, theirs(params, loss, 8)))
        assert difference < 1e-6 * max(norm(mine), 1)


def test_sam_stays_where_the_gradient_is_zero():
    params = {"w": jnp.ones((2, 2))}
    after, state = trained(sam(optax.sgd(0.1)), params, optax.tree.zeros_like)
    np.testing.assert_array_equal(after["w"], params["w"])
    assert bool(state.finite)


def test_asam_is_that_of_its_authors():
    rho, eta, params = 0.5, 0.01, jax.tree.map(lambda w: w + 0.1, mlp())
    grads = jax.grad(mlp_loss)(params)
    # SamsungLabs/ASAM: |w| + eta for what is called a weight, 1 for biases, one norm over all.
    scale = {
        layer: {"kernel": np.abs(p["kernel"]) + eta, "bias": np.ones_like(p["bias"])}
        for layer, p in params.items()
    }
    scaled = jax.tree.map(lambda g, t: np.asarray(g, np.float64) * t, grads, scale)
    length = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(scaled)))
    expected = jax.tree.map(lambda g, t: rho * t * g / length, scaled, scale)
    ball = AdaptiveWeightBall(rho, eta)
    found = perturb(params, grads, ball=ball)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)
    jax.tree.map(same, found, expected)
    np.testing.assert_allclose(ball.distance(params, found), rho, rtol=1e-6)
    twice = ball.project(params, jax.tree.map(lambda v: 3 * v, found))
    jax.tree.map(same, twice, found)
    np.testing.assert_allclose(
        ball.distance(params, ball.sample(jax.random.key(0), params)), rho, rtol=1e-6
    )
    short, _ = trained(asam(optax.sgd(0.1), rho), params, jax.grad(mlp_loss))
    general, _ = trained(perturbed(optax.sgd(0.1), ball), params, jax.grad(mlp_loss))
    assert norm(jax.tree.map(jnp.subtract, short, general)) == 0
    assert isinstance(ball, Ball)


@pytest.mark.parametrize("scope", ["leaf", "global", "filter", "element"])
@pytest.mark.parametrize("size", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-34, 1e-30, 1e-25, 1.0, 1e20, 3e37])
def test_gradients_of_any_size_give_the_same_displacement(scope, size, scale):
    params, grads = mlp(), jax.grad(mlp_loss)(mlp())
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    grads = jax.tree.map(lambda g: jnp.where(jnp.abs(g) < 1e-2 * largest, largest, g), grads)
    ball = WeightBall(0.01, size=size, scope=scope)
    expected = perturb(params, grads, ball=ball)
    found = perturb(params, jax.tree.map(lambda g: g * scale, grads), ball=ball)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_the_largest_float32_and_half_precision():
    w = {"k": jnp.array([[3.0, 4.0]])}
    ball = WeightBall(gamma=0.01)
    found = perturb(w, {"k": jnp.array([[3e38, 3e38]])}, ball=ball)["k"]
    np.testing.assert_allclose(found, [[0.05 / 2**0.5] * 2], rtol=1e-6)
    half = {"k": jnp.float16([[3.0, 4.0]])}
    found = perturb(half, {"k": jnp.float16([[0.0, 1e-7]])}, ball=ball)["k"]
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found, [[0, 0.05]], rtol=1e-3)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_bad_number_moves_nothing_and_is_reported(bad):
    params = mlp()
    clean = jax.grad(mlp_loss)(params)
    grads = jax.tree.map(lambda g: g, clean)
    grads["hidden"]["kernel"] = grads["hidden"]["kernel"].at[1, 2].set(bad)
    assert norm(perturb(params, grads, 0.01)) == 0
    optimizer = awp(optax.sgd(0.1, momentum=0.9), gamma=0.01)
    state = optimizer.init(params)
    # Only the gradient at w is bad: a step of the optimiser without displacement.
    updates, after = optimizer.update(grads, state, params, grad_fn=lambda p: clean)
    assert not after.finite and int(after.count) == 1
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        updates,
        jax.tree.map(lambda g: -0.1 * g, clean),
    )
    # That at w + v is bad too: nothing moves, and the momentum stays.
    updates, after = jax.jit(lambda s: optimizer.update(grads, s, params, grad_fn=lambda p: grads))(
        state
    )
    assert norm(updates) == 0 and not after.finite
    assert norm(after.inner) == 0


def test_aux_of_a_step_that_was_not_taken_is_not_kept():
    params, statistics = mlp(), {"mean": jnp.ones(3), "count": jnp.array(4)}
    optimizer = awp(optax.sgd(0.1), gamma=0.01, aux=statistics)
    clean = jax.grad(mlp_loss)(params)

    def grad_fn(scale):
        broken = {"mean": scale * jnp.full(3, 2.0), "count": jnp.array(5)}
        return lambda p: (jax.tree.map(lambda g: scale * g, clean), broken)

    state = optimizer.init(params)
    _, bad = jax.jit(lambda s: optimizer.update(clean, s, params, grad_fn=grad_fn(jnp.nan)))(state)
    jax.tree.map(np.testing.assert_array_equal, bad.aux, statistics)
    assert not bad.finite
    _, good = optimizer.update(clean, bad, params, grad_fn=grad_fn(1.0))
    assert good.aux["mean"].tolist() == [2, 2, 2] and int(good.aux["count"]) == 5


def test_a_radius_by_path_by_prefix_and_by_schedule():
    params, grads = mlp(), jax.grad(mlp_loss)(mlp())
    by_path = {"hidden/kernel": 0.01, "output/kernel": 0.03}
    found = perturb(params, grads, ball=WeightBall(gamma=by_path.get))
    prefix = {"hidden": 0.01, "output": {"kernel": 0.03, "bias": 0.5}}
    same = perturb(params, grads, ball=WeightBall(gamma=prefix))
    for layer, expected in (("hidden", 0.01), ("output", 0.03)):
        ratio = norm(found[layer]["kernel"]) / norm(params[layer]["kernel"])
        assert abs(ratio - expected) < 1e-6
    assert norm(jax.tree.map(jnp.subtract, found, same)) < 1e-8
    distance = WeightBall(gamma=prefix).distance(params, same)
    np.testing.assert_allclose(distance["output"]["kernel"], 0.03, rtol=1e-5)
    seen = []
    optimizer = awp(optax.sgd(0.1), gamma=optax.linear_schedule(0.0, 0.02, 2))

    def grad_fn(p):
        seen.append(norm(p["hidden"]["kernel"] - params["hidden"]["kernel"]))
        return grads

    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
    np.testing.assert_allclose(
        seen, np.array([0, 0.01, 0.02]) * norm(params["hidden"]["kernel"]), rtol=1e-5
    )

    def ball_of(count):
        return WeightBall(radius=0.1 * count, scope="global", mask=everything)

    optimizer = perturbed(optax.sgd(0.1), ball_of)
    state = optimizer.init(params)._replace(count=jnp.int32(3))
    seen.clear()
    optimizer.update(grads, state, params, grad_fn=lambda p: seen.append(p) or grads)
    moved = jax.tree.map(jnp.subtract, seen[-1], params)
    assert norm(moved) == pytest.approx(0.3, rel=1e-5)
    with pytest.raises(ValueError, match="count -> ball .*gamma=function|A function count"):
        awp(optax.sgd(0.1), gamma=by_path.__getitem__)


def test_masks_by_pattern_and_without_what_people_leave_out():
    params = {
        "Embed_0": {"embedding": jnp.ones((9, 4))},
        "Dense_0": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
        "LayerNorm_0": {"scale": jnp.ones((2, 1))},
    }
    only = WeightBall(mask="Dense_*/kernel").mask_of(params)
    assert only["Dense_0"] == {"kernel": True, "bias": False}
    assert not only["Embed_0"]["embedding"]
    both = kernels_without(*EMBEDDINGS, *NORMALISATIONS)(params)
    assert jax.tree.leaves(both) == [False, True, False, False]
    with pytest.raises(ValueError, match="The mask 'dense/.' fits none of 4 leaves: Dense_0/bias"):
        WeightBall(mask=["dense/*"]).mask_of(params)
    with pytest.raises(ValueError, match="mask does not fit the weights"):
        WeightBall(mask={"a": True}).mask_of(params)
    with pytest.raises(ValueError, match="mask holds 1, but a pytree of True and False"):
        WeightBall(mask={"a": 1})
    with pytest.raises(ValueError, match="text such as 'head/\\*' was expected"):
        matching(3)


@pytest.mark.parametrize("make", [sam, asam])
def test_a_mask_of_nothing_is_refused_at_init(make):
    transformation = make(optax.sgd(0.1), 0.05, mask="misspelt/*")
    with pytest.raises(ValueError, match="'misspelt/.' fits none of 1 leaves: kernel"):
        transformation.init({"kernel": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gamma": 0.1, "radius": 0.1}, "gamma is 0.1 and radius 0.1, but one of them"),
        ({"size": "linf"}, "Unknown size 'linf'"),
        ({"scope": "layer"}, "Unknown scope 'layer'"),
        ({"gamma": -1}, "gamma is -1"),
        ({"gamma": "much"}, "gamma is 'much'"),
        ({"gamma": {"a": 0.1}, "scope": "global"}, "gamma holds several radii, but scope 'global'"),
    ],
)
def test_a_wrong_ball_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightBall(**arguments)


@pytest.mark.parametrize("make", [awp, rwp, sam, asam])
def test_a_wrong_radius_is_refused_when_the_transformation_is_made(make):
    with pytest.raises(ValueError, match="'much'"):
        make(optax.sgd(0.1), "much")
    with pytest.raises(ValueError, match="ball is 3"):
        perturbed(optax.sgd(0.1), 3)
    with pytest.raises(ValueError, match="Both gamma 0.1 and a ball"):
        awp(optax.sgd(0.1), 0.1, ball=WeightBall())


class Positive:
    """A ball of one's own: weights may only grow, each by 0.1 at most."""

    def start(self, key, centre):
        return jax.tree.map(jnp.zeros_like, centre)

    def step(self, centre, point, gradient, size):
        moved = jax.tree.map(lambda v, g: v + size * jnp.sign(g), point, gradient)
        return self.project(centre, moved)

    def project(self, centre, point):
        return jax.tree.map(lambda v: jnp.clip(v, 0.0, 0.1), point)

    def sample(self, key, centre):
        return jax.tree.map(lambda w: jnp.full_like(w, 0.05), centre)

    def distance(self, centre, point):
        return jax.tree.map(lambda v: jnp.abs(v).max(), point)


def test_a_ball_of_ones_own_everywhere():
    params = mlp()
    grads = jax.grad(mlp_loss)(params)
    expected = jax.tree.map(lambda g: jnp.where(g > 0, 0.1, 0.0), grads)
    found = perturb(params, grads, ball=Positive(), step_size=1.0)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError, match="Positive has no radius"):
        perturbed(optax.sgd(0.1), Positive())
    optimizer = perturbed(optax.sgd(1.0), Positive(), step_size=1.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, grad_fn=jax.grad(mlp_loss))
    at = jax.tree.map(jnp.add, params, expected)
    np.testing.assert_allclose(
        updates["hidden"]["kernel"], -jax.grad(mlp_loss)(at)["hidden"]["kernel"], atol=1e-7
    )
    value, _ = value_and_grad(mlp_loss, ball=Positive(), step_size=1.0)(params)
    np.testing.assert_allclose(value, mlp_loss(at), rtol=1e-6)
    v = random_displacement(params, jax.random.key(0), Positive())
    assert float(v["hidden"]["kernel"][0, 0]) == pytest.approx(0.05)

    def losses(p):
        return jnp.stack([mlp_loss(p)] * 2)

    v = robust_displacement(params, losses, Positive(), c_min=10.0, steps=2, step_size=1.0)
    assert float(Positive().distance(params, v)["hidden"]["kernel"]) == pytest.approx(0.1)


@pytest.mark.parametrize("unroll", [None, False])
def test_parts_of_a_batch_give_the_step_of_the_whole(unroll):
    params, optimizer = mlp(), awp(optax.sgd(0.1), gamma=0.01)
    whole = jax.grad(mlp_loss)
    parts = accumulated(jax.grad(mlp_loss), 4, X, Y, unroll=unroll)
    np.testing.assert_allclose(
        whole(params)["hidden"]["kernel"], parts(params)["hidden"]["kernel"], atol=1e-6
    )
    first, _ = trained(optimizer, params, lambda p: whole(p, X, Y))
    second, _ = trained(optimizer, params, jax.jit(parts))
    assert norm(jax.tree.map(jnp.subtract, first, second)) < 1e-6

    def with_aux(p, x, y):
        return jax.grad(mlp_loss)(p, x, y), x.sum()

    gradient, aux = jax.jit(accumulated(with_aux, 4, X, Y, has_aux=True, unroll=unroll))(params)
    np.testing.assert_allclose(aux, X.reshape(4, -1).sum(axis=1), rtol=1e-5)
    value, _ = accumulated(jax.value_and_grad(mlp_loss), 2, X, Y)(params)
    np.testing.assert_allclose(value, mlp_loss(params), rtol=1e-6)
    with pytest.raises(ValueError, match=r"The batch has \[16\] examples, which 3 micro-batches"):
        accumulated(whole, 3, X, Y)


def test_wrappers_without_extra_arguments_take_grad_fn_for_the_gradient():
    params, grad_fn = mlp(), jax.grad(mlp_loss)
    optimizer = optax.lookahead(awp(optax.sgd(0.1), gamma=0.01), sync_period=3, slow_step_size=0.5)
    both = optax.LookaheadParams.init_synced(params)
    state = optimizer.init(both)
    with pytest.raises(ValueError, match="grad_fn is missing.*optax.lookahead.*in place of grads"):
        optimizer.update(grad_fn(params), state, both)
    updates, _ = optimizer.update(grad_fn, state, both)
    expected, _ = awp(optax.sgd(0.1), gamma=0.01).update(
        grad_fn(params), awp(optax.sgd(0.1)).init(params), params, grad_fn=grad_fn
    )
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)  # float32 rounding
    jax.tree.map(same, updates.fast, expected)
    finite = optax.apply_if_finite(awp(optax.sgd(0.1), gamma=0.01), 3)
    found, _ = finite.update(grad_fn(params), finite.init(params), params, grad_fn=grad_fn)
    jax.tree.map(same, found, expected)


def test_integers_none_and_keys_pass_through():
    params = {**mlp(), "steps": jnp.int32(3), "adapter": None}
    grad_fn = jax.grad(lambda p: mlp_loss({n: p[n] for n in mlp()}), allow_int=True)
    optimizer = awp(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9)), gamma=0.01)
    after, state = trained(optimizer, params, grad_fn)
    assert int(after["steps"]) == 3 and after["adapter"] is None
    plain, _ = trained(
        awp(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9)), gamma=0.01),
        mlp(),
        jax.grad(mlp_loss),
    )
    jax.tree.map(np.testing.assert_allclose, {n: after[n] for n in mlp()}, plain)
    types = jax.tree.map(lambda leaf: leaf.dtype, state)
    assert types == jax.tree.map(lambda leaf: leaf.dtype, optimizer.init(params))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 4, rngs=rngs)
        self.again = self.hidden  # tied
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = self.drop(jax.nn.relu(self.norm(self.again(jnp.tanh(self.hidden(x))))))
        return self.output(x)


def net_loss(model, x, y):
    return cross_entropy(model(x), y)


def test_an_nnx_module_with_dropout_batch_norm_and_tied_weights():
    model, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    value, grads = value_and_grad(net_loss, gamma=0.0)(model, X, Y)
    expected, their_grads = nnx.value_and_grad(net_loss)(other, X, Y)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6),
        nnx.to_pure_dict(grads),
        nnx.to_pure_dict(their_grads),
    )
    # What the pass did to the rest is in the module: statistics, and the next dropout is another.
    np.testing.assert_allclose(model.norm.mean[...], other.norm.mean[...], rtol=1e-5)
    assert int(model.drop.rngs.count[...]) == int(other.drop.rngs.count[...])
    at_v, _ = value_and_grad(net_loss, gamma=0.05)(Net(nnx.Rngs(0)), X, Y)
    assert at_v > value
    # Tied: one array in the state, so one displacement.
    state = nnx.state(model, nnx.Param)
    assert len(jax.tree.leaves(state)) == 6
    first = float(value)

    @nnx.jit
    def step(model, optimizer):
        value, grads = value_and_grad(net_loss, gamma=0.01)(model, X, Y)
        optimizer.update(model, grads)
        return value

    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)
    for _ in range(20):
        last = step(model, optimizer)
    assert model.hidden is model.again
    assert float(last) < first
    with pytest.raises(ValueError, match="nnx.split"):
        value_and_grad(lambda p: 0.0)({"model": model, "scale": jnp.ones(2)})


@pytest.mark.skipif(not hasattr(nnx, "as_pure"), reason="before Flax 0.12.7 with other arguments")
def test_awp_in_an_nnx_optimizer():
    model = Net(nnx.Rngs(0))
    model.eval()
    optimizer = nnx.Optimizer(model, awp(optax.sgd(0.5), gamma=0.01), wrt=nnx.Param)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(p):
        return net_loss(nnx.merge(graph, p, rest, copy=True), X, Y)

    before = nnx.as_pure(params)
    expected, _ = trained(awp(optax.sgd(0.5), gamma=0.01), before, jax.grad(loss), 1)
    grads = nnx.grad(net_loss)(model, X, Y)
    optimizer.update(model, grads, grad_fn=jax.grad(loss))
    after = nnx.as_pure(nnx.state(model, nnx.Param))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), after, expected)


class TrainState(train_state.TrainState):
    def apply_gradients(self, *, grads, grad_fn, **changes):
        updates, state = self.tx.update(grads, self.opt_state, self.params, grad_fn=grad_fn)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=state, **changes)


def test_awp_in_a_linen_train_state():
    model = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(2)])
    params = model.init(jax.random.key(0), X)["params"]

    def loss(p):
        return cross_entropy(model.apply({"params": p}, X), Y)

    state = TrainState.create(
        apply_fn=model.apply, params=params, tx=awp(optax.sgd(0.5), gamma=0.01)
    )
    step = jax.jit(
        lambda s: s.apply_gradients(grads=jax.grad(loss)(s.params), grad_fn=jax.grad(loss))
    )
    for _ in range(3):
        state = step(state)
    expected, _ = trained(awp(optax.sgd(0.5), gamma=0.01), params, jax.grad(loss), 3)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state.params, expected)
    assert int(state.step) == 3


def test_an_equinox_module_as_it_is():
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(p):
        return cross_entropy(jax.vmap(eqx.combine(p, static))(X), Y)

    after, state = trained(awp(optax.sgd(0.5), gamma=0.01), arrays, jax.grad(loss), 10)
    assert loss(after) < loss(arrays) and bool(state.finite)
    value, grads = value_and_grad(loss, gamma=0.01)(arrays)
    assert value > loss(arrays)
    assert jax.tree.structure(grads) == jax.tree.structure(arrays)


def test_the_core_imports_without_flax():
    import subprocess

    code = (
        "import sys, awp_jax.weights, awp_jax.attacks, awp_jax.balls;"
        "bad = [m for m in ('flax', 'orbax', 'ml_collections', 'matplotlib') if m in sys.modules];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_people_try_first_is_answered_in_one_sentence():
    with pytest.raises(ValueError, match=r"inner is 0.1, but an optax optimiser was expected"):
        awp(0.1)
    params, batch = mlp(), (X, Y)
    optimizer = awp(optax.sgd(0.1))
    state, plain = optimizer.init(params), jax.grad(mlp_loss)
    with pytest.raises(ValueError, match="TrainState.*awp_jax.weights.value_and_grad"):
        optimizer.update(plain(params), state, params)
    with pytest.raises(ValueError, match="give aux=..., a first value of aux"):
        optimizer.update(plain(params), state, params, grad_fn=lambda p: (plain(p, *batch), 0))
    with pytest.raises(ValueError, match="jax.value_and_grad gives"):
        optimizer.update(plain(params), state, params, grad_fn=jax.value_and_grad(mlp_loss))
    module = Net(nnx.Rngs(0))
    inside = nnx.Optimizer(module, awp(optax.sgd(0.1)), wrt=nnx.Param)
    with pytest.raises(ValueError, match="'Flax NNX' of docs/weights.md"):
        inside.update(module, None, grad_fn=plain)
