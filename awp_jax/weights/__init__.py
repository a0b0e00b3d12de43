"""Perturbations of the weights: the pure functions, and their two composable shapes.

``awp`` wraps an optimiser and ``value_and_grad`` replaces ``jax.value_and_grad``; ``rwp`` and
``robust_value_and_grad``, ``random_weight_perturbation`` and ``random_value_and_grad`` are their
relatives of the same shape. All take any pytree of parameters; four kinds follow, on these data:

>>> import jax, jax.numpy as jnp, optax
>>> from awp_jax.weights import awp, value_and_grad
>>> x = jax.random.normal(jax.random.key(0), (32, 4))
>>> y = (x.sum(axis=1) > 0).astype(jnp.int32)
>>> def cross_entropy(logits):
...     return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

Plain dicts of arrays, with optax alone:

>>> keys = jax.random.split(jax.random.key(1))
>>> params = {
...     "hidden": {"kernel": jax.random.normal(keys[0], (4, 8)) / 2, "bias": jnp.zeros(8)},
...     "output": {"kernel": jax.random.normal(keys[1], (8, 2)) / 3, "bias": jnp.zeros(2)},
... }
>>> def dense(layer, inputs):
...     return inputs @ layer["kernel"] + layer["bias"][None]
>>> def loss_fn(params, x):
...     return cross_entropy(dense(params["output"], jax.nn.relu(dense(params["hidden"], x))))
>>> optimizer = awp(optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.5, 0.9)), gamma=0.01)
>>> @jax.jit
... def step(params, state, x):
...     grad_fn = lambda p: jax.grad(loss_fn)(p, x)
...     updates, state = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
...     return optax.apply_updates(params, updates), state
>>> state, before = optimizer.init(params), loss_fn(params, x)
>>> for _ in range(20):
...     params, state = step(params, state, x)
>>> bool(loss_fn(params, x) < 0.5 * before)
True

A Flax NNX model with BatchNorm: split it, and take the new statistics from w + v as ``aux``:

>>> from flax import nnx
>>> class Net(nnx.Module):
...     def __init__(self, rngs):
...         self.hidden = nnx.Linear(4, 8, rngs=rngs)
...         self.norm = nnx.BatchNorm(8, rngs=rngs)
...         self.output = nnx.Linear(8, 2, rngs=rngs)
...     def __call__(self, x):
...         return self.output(jax.nn.relu(self.norm(self.hidden(x))))
>>> graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
>>> def nnx_loss(params, rest, x):
...     model = nnx.merge(graph, params, rest, copy=True)
...     loss = cross_entropy(model(x))
...     return loss, nnx.split(model, nnx.Param, ...)[2]
>>> optimizer = optax.sgd(0.5)
>>> state = optimizer.init(params)
>>> @jax.jit
... def step(params, rest, state, x):
...     gradient_fn = value_and_grad(nnx_loss, gamma=0.01, has_aux=True)
...     (loss, rest), grads = gradient_fn(params, rest, x)
...     updates, state = optimizer.update(grads, state, params)
...     return optax.apply_updates(params, updates), rest, state, loss
>>> losses = []
>>> for _ in range(20):
...     params, rest, state, loss = step(params, rest, state, x)
...     losses.append(float(loss))
>>> losses[-1] < 0.5 * losses[0]
True

A Flax linen model; its kernels are found by their shape, or by their path:

>>> from flax import linen
>>> from awp_jax.balls import WeightBall, matching
>>> model = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(2)])
>>> variables = model.init(jax.random.key(0), x)
>>> def linen_loss(variables, x):
...     return cross_entropy(model.apply(variables, x))
>>> first_layer_only = matching("params/layers_0/kernel")
>>> ball = WeightBall(gamma=0.01, mask=first_layer_only)
>>> gradient_fn = value_and_grad(linen_loss, ball=ball)
>>> loss, grads = jax.jit(gradient_fn)(variables, x)
>>> bool(loss > linen_loss(variables, x)), grads["params"]["layers_0"]["kernel"].shape
(True, (4, 8))

A model that is itself a pytree, as in Equinox (there, give it ``eqx.filter(model, eqx.is_array)``):

>>> import dataclasses, functools
>>> @functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"],
...                    meta_fields=["scale"])
... @dataclasses.dataclass
... class Linear:
...     weight: jax.Array
...     bias: jax.Array
...     scale: float
...     def __call__(self, x):
...         return self.scale * x @ self.weight.T + self.bias[None]
>>> model = Linear(jnp.ones((2, 4)), jnp.zeros(2), scale=0.5)
>>> loss, grads = value_and_grad(lambda model: cross_entropy(model(x)), gamma=0.01)(model)
>>> type(grads).__name__, grads.weight.shape, grads.scale
('Linear', (2, 4), 0.5)
"""

from awp_jax.weights._accumulated import accumulated
from awp_jax.weights._displacement import adversarial_displacement, perturb, random_displacement
from awp_jax.weights._named import (
    RandomWeightPerturbationState as RandomWeightPerturbationState,
)
from awp_jax.weights._named import asam, awp, random_weight_perturbation, rwp, sam
from awp_jax.weights._robust import loss_range_gradient, robust_displacement
from awp_jax.weights._transform import PerturbedState, perturbed
from awp_jax.weights._value_and_grad import (
    random_value_and_grad,
    robust_value_and_grad,
    value_and_grad,
)

__all__ = [
    "PerturbedState",
    "accumulated",
    "adversarial_displacement",
    "asam",
    "awp",
    "loss_range_gradient",
    "perturb",
    "perturbed",
    "random_displacement",
    "random_value_and_grad",
    "random_weight_perturbation",
    "robust_displacement",
    "robust_value_and_grad",
    "rwp",
    "sam",
    "value_and_grad",
]
