"""What a step looks like before XLA sees it: what a plan for a GPU counts, without the plugin."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from compiled import programs_of
from small_run import tiny_config

from awp_jax import models, objectives, training

BATCH_NORMS = {"preact-resnet-10": 9, "resnet-10": 12, "wrn-16-1": 13}


def lowered(name, platform, objective="at"):
    """StableHLO of a step in bfloat16: the whole, and the one function its attack's loop calls."""
    width = {} if name.startswith("wrn") else {"width": 8}
    classifier = models.create(
        name, image_shape=(8, 8, 3), num_classes=10, dtype="bfloat16", **width
    )
    optimizer = optax.sgd(0.1)
    step = training.make_train_step(
        classifier, objectives.create(objective), optimizer, unroll=False
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda k: training.init_state(classifier, optimizer, k), key)
    images = jax.ShapeDtypeStruct((32, 8, 8, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((32,), jnp.int32)
    traced = jax.jit(step).trace(state, images, labels, key)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") == 1  # the steps of PGD
    body = text[text.index("stablehlo.while") :]
    called = re.search(r"func\.call @([\w.]+)|= call @(closed_call[\w.]*)", body)
    name = called[1] or called[2]
    start = text.index(f"func.func private @{name}(")
    return text, text[start : text.index("func.func", start + 9)]


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_the_attack_has_four_reductions_for_each_batch_norm(name):
    """Two stages forward and two backward, each of two sums at once."""
    _, loop = lowered(name, "cuda")
    assert loop.count(":2 = stablehlo.reduce(") == 4 * BATCH_NORMS[name]


@pytest.mark.parametrize("objective", ["at", "trades"])
def test_no_kernel_is_cast_in_the_loop_of_the_attack(objective):
    text, loop = lowered("preact-resnet-10", "cuda", objective)
    cast = r"stablehlo\.convert %\S+ : \(tensor<(\d+x\d+x\d+x\d+)xf32>\) -> tensor<\1xbf16>"
    kernels = [shape for shape in re.findall(cast, text) if shape[:2] in ("3x", "1x")]
    assert len(kernels) >= 12  # once before the attack, and for each gradient in the weights
    assert not [shape for shape in re.findall(cast, loop) if shape[:2] in ("3x", "1x")]


def test_norms_of_all_weights_take_one_reduction_for_each_large_leaf():
    """Of gradient, weights, displacement and new weights: four results of each, and of the last."""
    text, _ = lowered("wrn-16-1", "cuda")
    classifier = models.create("wrn-16-1", image_shape=(8, 8, 3), num_classes=10)
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0))
    large = [leaf for leaf in jax.tree.leaves(params) if leaf.size >= 1 << 14]
    assert len(large) == 4
    assert text.count(":4 = stablehlo.reduce(") == len(large) + 1


@pytest.mark.parametrize("method", ["none", "awp", "rwp", "random"])
def test_a_second_step_compiles_nothing(method):
    """Also where the step is no program of its own, as that of RWP on a CPU."""
    experiment = training.build(tiny_config("linear", width=None, method=method), devices=1)
    order = experiment.order(0)

    def step(state):
        return experiment.step(
            state,
            *experiment.on_devices(),
            order,
            experiment.key,
            batch_size=32,
            perturb_weights=method != "none",
        )[0]

    state = step(experiment.init())
    assert programs_of(lambda: step(state), anew=False) == 0
