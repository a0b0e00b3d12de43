"""The network of ``digits_network`` and its twin in PyTorch, trained once."""

import jax.numpy as jnp
import numpy as np
import pytest
from digits_network import Digits, as_torch, network, split_digits, to_torch, train
from jax.tree_util import Partial


@pytest.fixture(scope="session")
def digits():
    params = train()
    _, (images, labels) = split_digits()
    return Digits(params, Partial(network, params), jnp.asarray(images), jnp.asarray(labels))


@pytest.fixture(scope="session")
def torch_digits(digits):
    """``(module, images, labels)`` for peers."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # the network is too small for more
    labels = torch.from_numpy(np.array(digits.labels)).long()
    return as_torch(digits.params), to_torch(digits.images), labels
