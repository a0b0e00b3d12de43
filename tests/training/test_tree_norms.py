"""Norms of several trees by one reduction for each leaf, as on a GPU, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax.training import _norms

SHAPES = {
    "kernel": (3, 3, 64, 64),
    "odd": (20_011,),
    "small": {"scale": (64,), "one": (), "no": (0,)},
}


def tree_of(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@pytest.mark.parametrize("way", [_norms._together, _norms._apart, _norms.norms])
def test_each_tree_has_its_norm(way):
    trees = [tree_of(seed) for seed in range(3)]
    found = jax.jit(way)(*trees)
    assert len(found) == 3
    for norm, tree in zip(found, trees, strict=True):
        squares = [np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(tree)]
        assert float(norm) == pytest.approx(np.sqrt(sum(squares)), rel=1e-6)


@pytest.mark.parametrize("place", ["kernel", "odd", "small"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_is_finite_only_where_everything_is(place, value):
    tree = tree_of(0)
    tree[place] = jax.tree.map(
        lambda leaf: leaf.at[..., -1:].set(value) if leaf.ndim else leaf, tree[place]
    )
    found, other = _norms._together(tree, tree_of(1))
    assert not np.isfinite(found) and np.isfinite(other)


def test_no_leaves_have_norm_zero():
    assert [float(norm) for norm in _norms._together({}, {})] == [0.0, 0.0]
    assert [float(norm) for norm in _norms.norms({})] == [0.0]
