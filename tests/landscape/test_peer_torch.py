"""Average-case draws and worst-case ascent against PyTorch in float64.

Only the random numbers come from JAX; what is done with them is written anew here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.attacks import PGD
from awp_jax.landscape import average_flatness, worst_case_flatness

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("x64")

EPSILON, STEP, STEPS, XI = 0.1, 0.03, 4, 0.05
ATTACK = PGD(EPSILON, steps=STEPS, step_size=STEP)
KEY = jax.random.key(7)
NAMES = ("a.bias", "a.kernel", "b.bias", "b.kernel")  # the order of JAX's leaves


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    weights = {
        "a.kernel": generator.normal(size=(4, 5)),
        "a.bias": generator.normal(size=5),
        "b.kernel": generator.normal(size=(5, 3)),
        "b.bias": np.zeros(3),  # a layer of norm zero stays where it is
    }
    images = generator.uniform(size=(6, 2, 2, 1))
    return weights, images, generator.integers(0, 3, 6)


def apply_fn(params, images):
    flat = images.reshape(images.shape[0], -1)
    hidden = jnp.tanh(flat @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"][None]


def jax_params(weights):
    tree = {"a": {}, "b": {}}
    for name, value in weights.items():
        tree[name[0]][name[2:]] = jnp.asarray(value)
    return tree


def losses(weights, images, labels):
    hidden = torch.tanh(images.reshape(len(images), -1) @ weights["a.kernel"] + weights["a.bias"])
    logits = hidden @ weights["b.kernel"] + weights["b.bias"]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def tensors(values):
    return {name: torch.tensor(np.asarray(value)) for name, value in values.items()}


def starts(domain, index, n):
    """Uniform numbers in (-1, 1) of each example, for a draw or restart."""
    key = jax.random.fold_in(KEY, domain)
    keys = [jax.random.fold_in(jax.random.fold_in(key, i), index) for i in range(n)]
    draw = [jax.random.uniform(k, (2, 2, 1), jnp.float64, -1.0, 1.0) for k in keys]
    return torch.tensor(np.stack(draw))


def gaussian(key, weights):
    keys = jax.random.split(key, 4)
    noise = {
        name: jax.random.normal(k, weights[name].shape, jnp.float64)
        for name, k in zip(NAMES, keys, strict=True)
    }
    return tensors(noise)


def on_sphere(noise, weights, radius):
    return {
        name: radius * noise[name] / noise[name].norm() * weights[name].norm() for name in NAMES
    }


def moved_images(point, gradient, clean):
    point = point + STEP * gradient.sign()
    return torch.clamp(clean + torch.clamp(point - clean, -EPSILON, EPSILON), 0, 1)


def pgd(weights, clean, labels, unit):
    point = torch.clamp(clean + EPSILON * unit, 0, 1)
    for _ in range(STEPS):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(weights, point, labels).sum(), point)
        point = moved_images(point.detach(), gradient, clean)
    return losses(weights, point, labels)


def test_average_case(problem):
    weights, images, labels = problem
    found = average_flatness(
        apply_fn,
        jax_params(weights),
        images,
        labels,
        KEY,
        attack=ATTACK,
        xi=XI,
        draws=3,
        reference_restarts=2,
        batch_size=4,
    )
    w, x, y = tensors(weights), torch.tensor(images), torch.tensor(labels)
    runs = [pgd(w, x, y, starts(0, restart, 6)) for restart in range(2)]
    reference = torch.maximum(*runs).mean()
    np.testing.assert_allclose(found.reference, reference, rtol=1e-10)
    expected = []
    for draw in range(3):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 1), draw)
        nu = on_sphere(gaussian(key, w), w, XI)
        expected.append(pgd({n: w[n] + nu[n] for n in NAMES}, x, y, starts(2, draw, 6)))
    expected = torch.stack(expected).numpy()
    np.testing.assert_allclose(found.losses, expected, rtol=1e-9)
    np.testing.assert_allclose(found.flatness, expected.mean() - reference.item(), rtol=1e-9)


def joint_ascent(w, clean, labels, unit, nu, weight_step, steps):
    point = torch.clamp(clean + EPSILON * unit, 0, 1)
    for _ in range(steps):
        point.requires_grad_()
        nu = {name: value.detach().requires_grad_() for name, value in nu.items()}
        total = losses({n: w[n] + nu[n] for n in NAMES}, point, labels).mean()
        in_point, *in_nu = torch.autograd.grad(total, [point, *(nu[n] for n in NAMES)])
        point = moved_images(point.detach(), in_point, clean)
        for name, gradient in zip(NAMES, in_nu, strict=True):
            size = w[name].norm()
            if size == 0:
                continue
            step = weight_step * size * gradient / gradient.norm()
            there = nu[name].detach() + step
            nu[name] = there * torch.clamp(XI * size / there.norm(), max=1.0)
    with torch.no_grad():
        return losses({n: w[n] + nu[n] for n in NAMES}, point, labels)


@pytest.mark.parametrize("shared", [False, True])
def test_worst_case(problem, shared):
    weights, images, labels = problem
    found = worst_case_flatness(
        apply_fn,
        jax_params(weights),
        images,
        labels,
        KEY,
        attack=ATTACK,
        xi=XI,
        weight_step=0.02,
        steps=5,
        restarts=2,
        reference_restarts=1,
        batch_size=4,
        shared_across_batches=shared,
    )
    w, x, y = tensors(weights), torch.tensor(images), torch.tensor(labels)
    groups = [range(6)] if shared else [range(4), range(4, 6)]
    expected, worst = np.zeros((2, 6)), 0.0
    for number, group in enumerate(map(list, groups)):
        for restart in range(2):
            key = jax.random.fold_in(
                jax.random.fold_in(jax.random.fold_in(KEY, 3), restart), number
            )
            direction_key, length_key = jax.random.split(key)
            length = float(jax.random.uniform(length_key, (), jnp.float64))
            noise = gaussian(direction_key, w)
            nu = on_sphere(noise, w, XI * length)
            unit = starts(4, restart, 6)[group]
            expected[restart, group] = joint_ascent(w, x[group], y[group], unit, nu, 0.02, 5)
        worst += expected[:, group].sum(axis=1).max() / 6
    reference = pgd(w, x, y, starts(0, 0, 6)).mean().item()
    np.testing.assert_allclose(found.losses, expected, rtol=1e-8)
    np.testing.assert_allclose(found.per_batch, worst - reference, rtol=1e-8)
    np.testing.assert_allclose(found.flatness, expected.max(axis=0).mean() - reference, rtol=1e-8)
