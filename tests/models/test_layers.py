"""Layers of our own against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.models import LayerNorm
from awp_jax.models.layers import max_pool, overlapping_max_pool

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
@pytest.mark.parametrize(
    ("pool", "window"),
    [(max_pool, (2,)), (overlapping_max_pool, (3, 2, 1))],
    ids=["2x2", "3x3"],
)
def test_max_pool_and_its_gradient_are_those_of_pytorch_also_for_equal_values(size, pool, window):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, *size, 3)).astype(np.float32)  # most windows have equal maxima
    weights = rng.normal(size=pool(x).shape).astype(np.float32)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, *window)
    (pooled * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).sum().backward()
    gradient = jax.grad(lambda x: (pool(x) * weights).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(pool(x), pooled.detach().numpy().transpose(0, 2, 3, 1))
    expected = theirs.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)  # windows add up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_layer_norm_where_the_mean_is_large(x64, dtype):
    """Statistics in float32 at least; E[x^2] - E[x]^2 would have no digit left."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(2, 3, 64))).astype(jnp.dtype(dtype))
    module = LayerNorm(64)
    weight, bias = rng.normal(size=(2, 64))
    module.scale.set_value(jnp.asarray(weight))
    module.bias.set_value(jnp.asarray(bias))
    found = module(jnp.asarray(x))
    expected = torch.nn.functional.layer_norm(
        torch.tensor(x.astype(np.float64)), (64,), torch.tensor(weight), torch.tensor(bias), 1e-6
    )
    assert found.dtype == x.dtype
    tolerance = {"float32": 1e-3, "bfloat16": 2e-2, "float64": 1e-10}[dtype]
    np.testing.assert_allclose(found.astype(np.float64), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("place", range(4))
def test_max_pool_keeps_what_is_not_a_number(place):
    x = np.ones(4, np.float32)
    x[place] = np.nan
    assert np.isnan(max_pool(jnp.asarray(x.reshape(1, 2, 2, 1)))).all()
