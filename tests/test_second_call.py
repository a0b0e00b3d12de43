"""Outside jit too, what was called before with such arrays compiles nothing anew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import programs_of
from jax.tree_util import Partial

from awp_jax import attacks, evaluation, landscape, weights
from awp_jax.balls import WeightBall

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
IMAGES = jnp.asarray(RANDOM.uniform(size=(6, 3, 3, 1)), jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(0, 4, 6))
PARAMS = {
    "kernel": jnp.asarray(RANDOM.normal(size=(9, 4)), jnp.float32),
    "bias": jnp.zeros(4),
}


def apply_fn(params, images):
    return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]


LOGITS_FN = Partial(apply_fn, PARAMS)


def losses_fn(params):
    logits = apply_fn(params, IMAGES)
    found = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    return found, found


def loss_fn(params):
    return losses_fn(params)[0].mean()


def gradient(params):
    return jax.grad(loss_fn)(params)


def updated(optimizer, **extra):
    state = optimizer.init(PARAMS)
    return lambda: optimizer.update(gradient(PARAMS), state, PARAMS, **extra)


SMALL = {"steps": 3}
CALLS = {
    "perturb": lambda: weights.perturb(PARAMS, gradient(PARAMS), gamma=0.1),
    "awp": updated(weights.awp(optax.sgd(0.1)), grad_fn=gradient),
    "awp, filter": updated(
        weights.awp(optax.sgd(0.1), ball=WeightBall(0.1, scope="filter")), grad_fn=gradient
    ),
    "sam": updated(weights.sam(optax.sgd(0.1)), grad_fn=gradient),
    "asam": updated(weights.asam(optax.sgd(0.1)), grad_fn=gradient),
    "rwp": updated(
        weights.rwp(optax.sgd(0.1), gamma=0.1, c_min=1e9, steps=3),
        grad_fn=gradient,
        losses_fn=losses_fn,
    ),
    "random": updated(
        weights.random_weight_perturbation(optax.sgd(0.1), gamma=0.1, key=KEY), grad_fn=gradient
    ),
    "value_and_grad": functools.partial(weights.value_and_grad(loss_fn, gamma=0.1), PARAMS),
    **{
        name: functools.partial(attack, LOGITS_FN, KEY, IMAGES, LABELS)
        for name, attack in {
            "pgd": attacks.PGD(0.1, steps=3),
            "apgd": attacks.APGD(0.1, **SMALL),
            "fab": attacks.FAB(0.1, **SMALL),
            "square": attacks.Square(0.1, **SMALL),
            "spsa": attacks.SPSA(0.1, steps=2, samples=4),
            "ddn": attacks.DDN(**SMALL),
        }.items()
    },
    "evaluate": lambda: evaluation.evaluate(
        LOGITS_FN, KEY, IMAGES, LABELS, {"pgd": attacks.PGD(0.1, steps=2)}, batch_size=3
    ),
    "flatness": lambda: landscape.average_flatness(
        apply_fn, PARAMS, IMAGES, LABELS, KEY, attack=None, xi=0.1, draws=2, batch_size=3
    ),
    "hessian": lambda: landscape.hessian_trace(
        apply_fn, PARAMS, IMAGES, LABELS, KEY, draws=2, batch_size=3
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_compiles_nothing(name):
    CALLS[name]()
    assert programs_of(CALLS[name], anew=False) == 0
