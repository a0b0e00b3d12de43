"""The loop: rolled, unrolled and eager agree; compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax import ascent
from awp_jax.ascent import Watch, ascend, is_traced, loop, watched
from awp_jax.balls import InputBall, WeightBall


def body(index, state):
    total, steps = state
    return 2 * total + index, steps + 1


@pytest.mark.core
@pytest.mark.parametrize("unroll", [None, True, False])
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("first", [0, 3])
def test_all_ways_agree(unroll, jitted, first):
    run = functools.partial(loop, body, steps=4, unroll=unroll, first=first)
    total, steps = (jax.jit(run) if jitted else run)((jnp.int32(1), jnp.int32(0)))
    expected = 1
    for index in range(first, first + 4):
        expected = 2 * expected + index
    assert int(total) == expected and int(steps) == 4


@pytest.mark.parametrize("unroll", [None, True, False])
def test_no_steps_return_the_state(unroll):
    state = (jnp.float32(1), None)
    assert loop(body, state, 0, unroll=unroll) is state


@pytest.mark.parametrize("unroll", [True, False])
def test_the_index_is_int32_in_float64_too(unroll, x64):
    seen = []

    def record(index, state):
        seen.append(index.dtype)
        return state + index

    loop(record, jnp.int32(0), 2, unroll=unroll)
    assert set(seen) == {jnp.dtype("int32")}


def test_many_steps_under_jit_stay_rolled():
    jaxpr = jax.make_jaxpr(lambda s: loop(lambda i, now: now + 1, s, 100))(0)
    assert "while" in str(jaxpr) or "scan" in str(jaxpr)
    few = jax.make_jaxpr(lambda s: loop(lambda i, now: now + 1, s, 3))(0)
    on_cpu = jax.default_backend() == "cpu"
    assert ("while" in str(few) or "scan" in str(few)) != on_cpu


@pytest.mark.core
@pytest.mark.parametrize("unroll", [True, False])
def test_compiled_once_per_function(unroll):
    traces = []

    def counted(scale, index, state):
        traces.append(index)
        return scale * state

    for scale in (2.0, 3.0):
        found = loop(Partial(counted, jnp.float32(scale)), jnp.float32(1), 4, unroll=unroll)
        assert float(found) == scale**4
    assert len(traces) == 1


def test_segments_of_a_rolled_loop_compile_once():
    traces = []

    def counted(index, state):
        traces.append(index)
        return state + index

    state = jnp.int32(0)
    for first in (0, 5, 10):
        state = loop(counted, state, 5, unroll=False, first=first)
    assert int(state) == sum(range(15)) and len(traces) == 1


def test_unrolled_under_jit_traces_the_body_once():
    traces = []

    def counted(index, state):
        traces.append(index)
        return state + index

    assert int(jax.jit(lambda s: loop(counted, s, 6, unroll=True))(jnp.int32(0))) == 15
    assert len(traces) == 1


@pytest.mark.parametrize("unroll", [True, False])
def test_closures_over_tracers_do_not_leak(unroll):
    @jax.jit
    def run(scale, state):
        return loop(lambda i, now: now * scale, state, 3, unroll=unroll)

    with jax.checking_leaks():
        assert float(run(2.0, 1.0)) == 8.0


def test_is_traced_sees_what_a_closure_hides():
    seen = []
    jax.jit(lambda x: seen.append(is_traced(None)) or x)(1.0)
    assert seen == [True] and not is_traced(jnp.ones(2))


@pytest.mark.parametrize("unroll", [True, False])
def test_works_under_vmap_and_grad(unroll):
    def run(x):
        return loop(lambda i, now: now * x, jnp.ones_like(x), 3, unroll=unroll)

    np.testing.assert_allclose(jax.vmap(run)(jnp.array([1.0, 2.0])), [1, 8])
    if unroll:
        assert float(jax.grad(run)(2.0)) == 12.0


@pytest.mark.parametrize("unroll", [True, False])
def test_ascend_projects_and_passes_the_carry(unroll):
    centre = jnp.array([[0.5, 0.5], [0.5, 0.95]])

    def gradient_fn(point, carry):
        return jnp.array([[1.0, -1.0], [-2.0, 3.0]]), carry + 1

    point, carry = ascend(
        gradient_fn,
        InputBall("linf", 0.1),
        centre,
        centre,
        jnp.int32(0),
        steps=3,
        step_size=0.04,
        unroll=unroll,
    )
    np.testing.assert_allclose(point, [[0.6, 0.4], [0.4, 1.0]], rtol=1e-6)
    assert int(carry) == 3


def test_ascend_on_weights_reaches_the_boundary():
    weights = {"k": jnp.array([[3.0, 4.0]])}

    def gradient_fn(point, carry):
        return {"k": jnp.array([[0.0, 2.0]])}, carry

    point, carry = ascend(
        gradient_fn,
        WeightBall(0.1),
        weights,
        {"k": jnp.zeros((1, 2))},
        steps=5,
        step_size=0.05,
    )
    np.testing.assert_allclose(point["k"], [[0.0, 0.5]], rtol=1e-6)
    assert carry is None


def test_ascend_refuses_bad_steps():
    with pytest.raises(ValueError, match="steps is -1"):
        ascend(lambda p, c: (p, c), InputBall(), None, None, steps=-1, step_size=0.1)


@pytest.mark.parametrize("unroll", [True, False])
def test_who_watches_hears_of_every_step_and_changes_nothing(unroll, monkeypatch):
    monkeypatch.setattr(ascent, "_MOST_UNSEEN", 3)
    monkeypatch.setattr(ascent, "_LOOKS", (0.0, 1e9))  # looks at every step
    told = []
    state = (jnp.int32(1), jnp.int32(0))
    alone = loop(body, state, 8, unroll=unroll, first=2)
    with watched(Watch(told.append)):
        seen = loop(body, state, 8, unroll=unroll, first=2)
        jax.jit(functools.partial(loop, body, steps=8, unroll=unroll))(state)  # traced: not told
    assert told == ([1] * 8 if unroll else [3, 3, 2])
    assert [int(x) for x in seen] == [int(x) for x in alone]
    loop(body, state, 2, unroll=unroll)
    assert sum(told) == 8


def test_looks_become_rare_where_steps_are_fast():
    told = []
    with watched(Watch(told.append)):
        loop(body, (jnp.int32(1), jnp.int32(0)), 70, unroll=True)
    assert told[:3] == [1, 2, 4] and len(told) <= 7
