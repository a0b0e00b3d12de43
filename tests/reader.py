"""Who reads the README: what they have already, and the examples they paste."""

import re

# A model, its loss, and images.
READER = """
import jax, jax.numpy as jnp, optax
images = jax.random.uniform(jax.random.key(1), (6, 4, 4, 1))
labels = jnp.arange(6) % 3
params = {"kernel": jax.random.normal(jax.random.key(2), (16, 3))}
def logits_fn(x, params=params):
    return x.reshape(len(x), -1) @ params["kernel"]
def loss_fn(params, images, labels):
    logits = logits_fn(images, params)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
"""


def python_blocks(text):
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
