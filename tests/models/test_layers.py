"""Layers of our own against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.models.layers import max_pool

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_max_pool_and_its_gradient_are_those_of_pytorch_also_for_equal_values(size):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, *size, 3)).astype(np.float32)  # most windows have equal maxima
    weights = rng.normal(size=(2, size[0] // 2, size[1] // 2, 3)).astype(np.float32)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, 2)
    (pooled * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).sum().backward()
    gradient = jax.grad(lambda x: (max_pool(x) * weights).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(max_pool(x), pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("place", range(4))
def test_max_pool_keeps_what_is_not_a_number(place):
    x = np.ones(4, np.float32)
    x[place] = np.nan
    assert np.isnan(max_pool(jnp.asarray(x.reshape(1, 2, 2, 1)))).all()
