"""Keys: one per example, by global index."""

import jax
import numpy as np
import pytest

from awp_jax.random import check_key, example_keys, fold_keys, leaf_keys


def data(keys):
    return np.asarray(jax.random.key_data(keys))


@pytest.mark.core
def test_the_key_of_an_example_is_folded_by_its_global_index():
    key = jax.random.key(7)
    keys = example_keys(key, 3, first=10)
    expected = [jax.random.fold_in(key, index) for index in (10, 11, 12)]
    np.testing.assert_array_equal(data(keys), np.stack([data(k) for k in expected]))
    np.testing.assert_array_equal(
        data(example_keys(key, 6)),
        np.concatenate([data(example_keys(key, 2)), data(example_keys(key, 4, first=2))]),
    )


def test_first_may_be_traced():
    key = jax.random.key(7)
    traced = jax.jit(lambda first: example_keys(key, 3, first))(10)
    np.testing.assert_array_equal(data(traced), data(example_keys(key, 3, first=10)))


def test_keys_per_example_are_returned_as_they_are():
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(data(example_keys(keys, 4)), data(keys))


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_draws_from_rbg_keys_do_not_depend_on_the_batch(kind):
    def draws(keys):
        return np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys))

    key = jax.random.key(3, impl=kind)
    whole = draws(example_keys(key, 8))
    halves = [draws(example_keys(key, 4, first)) for first in (0, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert len(np.unique(whole)) == whole.size
    folded = [jax.random.fold_in(key, 1), jax.random.split(key)[0]]
    assert len({tuple(data(k).ravel()) for k in map(lambda k: example_keys(k, 2), folded)}) == 2
    own = jax.random.split(key, 4)
    np.testing.assert_array_equal(draws(example_keys(own, 4))[2:], draws(example_keys(own[2:], 2)))


def test_fold_keys_folds_each():
    keys = jax.random.split(jax.random.key(0), 2)
    expected = np.stack([data(jax.random.fold_in(k, 5)) for k in keys])
    np.testing.assert_array_equal(data(fold_keys(keys, 5)), expected)


def test_leaf_keys_differ_and_follow_the_structure():
    keys = leaf_keys(jax.random.key(0), {"a": 1.0, "b": (2.0, None, 3.0)})
    assert jax.tree.structure(keys) == jax.tree.structure({"a": 1, "b": (2, None, 3)})
    assert len({tuple(data(k)) for k in jax.tree.leaves(keys)}) == 3
    assert leaf_keys(jax.random.key(0), {}) == {}


def test_bad_keys():
    with pytest.raises(ValueError, match=r"typed key was expected: jax.random.key\(seed\)"):
        check_key(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="key is int, but a typed key"):
        check_key(0)
    with pytest.raises(ValueError, match=r"shape \(3,\), but one key, or 4 of them"):
        example_keys(jax.random.split(jax.random.key(0), 3), 4)
    with pytest.raises(ValueError, match="typed key"):
        example_keys(jax.random.PRNGKey(0), 4)
    with pytest.raises(ValueError, match="typed key"):
        leaf_keys(jax.random.PRNGKey(0), {"a": 1.0})
