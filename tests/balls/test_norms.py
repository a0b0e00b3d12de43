"""Norms in the stages of a GPU, computed on any device, against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.balls import _norms

SHAPES = ((3, 3, 16, 32), (512, 10), (7,), (), (1_000_003,))


def arrays_of(scale=1.0):
    rng = np.random.default_rng(0)
    return [jnp.asarray(scale * rng.standard_normal(shape), jnp.float32) for shape in SHAPES]


def exact(array, kind):
    wide = np.abs(np.float64(array))
    return wide.sum() if kind == "l1" else np.sqrt(np.square(wide).sum())


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_each_array_has_its_norm_at_any_scale(kind, scale):
    arrays = arrays_of(scale)
    powers, sums = _norms._in_stages(arrays, kind, together=False)
    found = _norms.Sizes(powers, sums if kind == "l1" else [jnp.sqrt(s) for s in sums]).norms()
    for norm, array in zip(found, arrays, strict=True):
        assert float(norm) == pytest.approx(exact(array, kind), rel=2e-6)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_together_is_one_norm(kind):
    arrays = arrays_of(1e-25)
    powers, sums = _norms._in_stages(arrays, kind, together=True)
    rest = sums if kind == "l1" else [jnp.sqrt(s) for s in sums]
    parts = [exact(array, kind) for array in arrays]
    whole = sum(parts) if kind == "l1" else np.sqrt(np.square(parts).sum())
    for norm in _norms.Sizes(powers, rest).norms():
        assert float(norm) == pytest.approx(whole, rel=2e-6)


def test_zero_and_what_is_not_finite():
    arrays = [jnp.zeros((4, 4)), jnp.zeros((0, 3)), jnp.ones(5).at[2].set(jnp.nan), jnp.ones(3)]
    powers, sums = _norms._in_stages(arrays, "l2", together=False)
    found = [float(p * jnp.sqrt(s)) for p, s in zip(powers, sums, strict=True)]
    assert found[:2] == [0.0, 0.0] and np.isnan(found[2])
    assert found[3] == pytest.approx(3**0.5)
