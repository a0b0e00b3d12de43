"""Order of examples and batches."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awp_jax.data import epoch_order, padded_batches, steps_per_epoch


@pytest.mark.core
def test_epoch_order_is_a_permutation_that_depends_on_key_and_epoch_only():
    key = jax.random.key(3)
    first = epoch_order(key, 0, 50)
    assert first.dtype == np.int32 and sorted(first.tolist()) == list(range(50))
    expected = jax.random.permutation(jax.random.fold_in(key, 0), 50)
    np.testing.assert_array_equal(first, expected)
    jitted = jax.jit(epoch_order, static_argnums=2)
    np.testing.assert_array_equal(first, jitted(key, 0, 50))
    assert first.tolist() != epoch_order(key, 1, 50).tolist()
    assert first.tolist() != epoch_order(jax.random.key(4), 0, 50).tolist()


def test_epoch_order_is_the_same_in_x64():
    order = epoch_order(jax.random.key(0), 2, 30)
    with jax.enable_x64(True):
        wide = epoch_order(jax.random.key(0), 2, 30)
    assert wide.dtype == np.int32
    np.testing.assert_array_equal(order, wide)


@pytest.mark.parametrize(
    "key, epoch, n, message",
    [
        (jax.random.PRNGKey(0), 0, 3, "key"),
        (jax.random.split(jax.random.key(0), 2), 0, 3, "one typed key"),
        (jax.random.key(0), -1, 3, "epoch"),
        (jax.random.key(0), 0, 0, "n is 0"),
    ],
)
def test_epoch_order_refuses(key, epoch, n, message):
    with pytest.raises(ValueError, match=message):
        epoch_order(key, epoch, n)


@pytest.mark.core
def test_steps_per_epoch():
    assert steps_per_epoch(50_000, 128) == 391  # as in the AWP release
    assert steps_per_epoch(50_000, 128, keep_last=False) == 390
    assert steps_per_epoch(3, 8) == 1
    with pytest.raises(ValueError, match="batch_size 8 is more than the 3"):
        steps_per_epoch(3, 8, keep_last=False)
    for n, batch_size in ((0, 1), (1, 0), (1.5, 1), (True, 1)):
        with pytest.raises(ValueError, match="integer"):
            steps_per_epoch(n, batch_size)


@pytest.mark.core
@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_padded_batches_cover_everything_once(n, batch_size):
    batches = list(padded_batches(n, batch_size))
    assert len(batches) == steps_per_epoch(n, batch_size)
    for indices, mask in batches:
        assert indices.shape == mask.shape == (batch_size,)
        assert indices.dtype == np.int32 and mask.dtype == np.bool_
        assert not indices[~mask].any()
    assert [i for indices, mask in batches for i in indices[mask]] == list(range(n))


def test_padded_batches_refuses_at_the_call():
    with pytest.raises(ValueError, match="batch_size"):
        padded_batches(3, 0)
