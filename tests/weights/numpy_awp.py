"""An independent AWP in numpy, on a linear regression whose gradient is written by hand."""

import jax.numpy as jnp
import numpy as np

GAMMA, RATE, MOMENTUM, DECAY = 0.1, 0.05, 0.9, 0.5  # a decay at w instead of w + v would show


def batches(count, examples=8, seed=0):
    """Inputs ``[count, examples, 3]`` and targets ``[count, examples, 2]``."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, examples, 3)), random.normal(size=(count, examples, 2))


def first_params(seed=1):
    random = np.random.default_rng(seed)
    return {"bias": random.normal(size=2), "kernel": random.normal(size=(3, 2))}


def jax_loss(params, x, y):
    return 0.5 * jnp.mean(jnp.sum((x @ params["kernel"] + params["bias"][None] - y) ** 2, axis=1))


def gradient(params, x, y):
    residual = x @ params["kernel"] + params["bias"] - y
    return {"bias": residual.mean(0), "kernel": x.T @ residual / len(x)}


def displacement(params, x, y, *, gamma=GAMMA, steps=1, size="l2"):
    """Eqs. 10 and 15, on the kernel only."""
    norm = np.linalg.norm if size == "l2" else lambda a: np.abs(a).sum()
    w, v = params["kernel"], np.zeros((3, 2))
    for _ in range(steps):
        g = gradient({"bias": params["bias"], "kernel": w + v}, x, y)["kernel"]
        v = v + gamma / steps * norm(w) * g / norm(g)
        v = v * min(1.0, gamma * norm(w) / norm(v)) if gamma else v
    return {"bias": np.zeros(2), "kernel": v}


def add(a, b, scale=1.0):
    return {name: a[name] + scale * b[name] for name in a}


def norm(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in tree.values()))


def train(params, xs, ys, *, decay=DECAY, decay_at="perturbed", clip=None, rates=None, **options):
    """SGD with momentum and decay at w + v (eq. 11), or with the decay at w."""
    if not isinstance(decay, dict):
        decay = {name: decay for name in params}
    rates = rates or {name: RATE for name in params}
    velocity = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    gammas = options.pop("gammas", [options.pop("gamma", GAMMA)] * len(xs))
    for x, y, gamma in zip(xs, ys, gammas, strict=True):
        v = displacement(params, x, y, gamma=gamma, **options)
        perturbed = add(params, v)
        g = gradient(perturbed, x, y)
        if clip is not None:
            g = {name: leaf * min(1.0, clip / norm(g)) for name, leaf in g.items()}
        where = perturbed if decay_at == "perturbed" else params
        for name in params:
            velocity[name] = MOMENTUM * velocity[name] + g[name] + decay[name] * where[name]
        # One step from w + v, then back by v.
        stepped = {name: perturbed[name] - rates[name] * velocity[name] for name in params}
        params = add(stepped, v, -1.0)
    return params
