"""Parametric noise injection: trainable Gaussian noise on the kernels of a classifier."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from awp_jax import streams
from awp_jax.models.classifier import Classifier, Tree

NETWORK, NOISE = "network", "noise"


def noisy_kernels(network: Tree, noise: Tree, key: Array) -> Tree:
    """The parameters of one random pass: ``w_l + alpha_l * std(w_l) * N(0, 1)``.

    He et al. (CVPR 2019), eqs. 1 and 2. The deviation is that of the entries of the kernel, over
    their number, and is a constant for the gradient: so ``dL/dw_l`` is that of the noisy kernel and
    ``dL/dalpha_l = std(w_l) * <dL/d(noisy w_l), draw>``.

    Args:
        network: nested dict of parameters.
        noise: ``alpha_l``, scalars, at the paths of the kernels (tensors of two axes or more).
        key: one typed PRNG key.

    Returns:
        Parameters as ``network``; biases and BatchNorm are as they were.
    """
    leaves = list(_kernels(network, noise))
    sizes, dtype = [leaf.size for leaf in leaves], jnp.result_type(*leaves)
    # One draw for all layers: a generator for each takes XLA several times longer to compile.
    drawn = iter(jnp.split(jax.random.normal(key, (sum(sizes),), dtype), np.cumsum(sizes)[:-1]))

    def walk(values: Tree, alphas: Tree) -> Tree:
        found = {}
        for name, value in sorted(values.items()):
            if name not in alphas:
                found[name] = value
            elif isinstance(value, dict):
                found[name] = walk(value, alphas[name])
            else:
                draw = next(drawn).reshape(value.shape).astype(value.dtype)
                deviation = jax.lax.stop_gradient(jnp.std(value))
                found[name] = value + alphas[name] * deviation * draw
        return found

    return walk(network, noise)


def _kernels(network: Tree, noise: Tree):
    """Kernels that have an alpha, in the order of their names, as ``jit`` would have them."""
    for name, value in sorted(network.items()):
        if name in noise and isinstance(value, dict):
            yield from _kernels(value, noise[name])
        elif name in noise:
            yield value


def _alphas(network: Tree, alpha: float) -> Tree:
    found: Tree = {}
    for name, value in network.items():
        # Branches without a kernel are left out, so that `noise` names what is drawn.
        if isinstance(value, dict):
            inside = _alphas(value, alpha)
            if inside:
                found[name] = inside
        elif jnp.ndim(value) > 1:
            found[name] = jnp.asarray(alpha, value.dtype)
    return found


def with_parametric_noise(classifier: Classifier, alpha: float = 0.25) -> Classifier:
    """A classifier whose kernels are drawn anew at every pass, in training and at test (PNI).

    He et al., "Parametric Noise Injection", CVPR 2019 (https://arxiv.org/abs/1811.09310), on
    weights (PNI-W), with one ``alpha`` per layer; the "PNI" of Table 1 of the first version of AWP
    (https://arxiv.org/abs/2004.05884). One draw serves the whole batch, as in the paper: the key
    is one for the batch, never one per example, and results depend on how examples are cut into
    batches. Only the expectation over keys does not.

    Args:
        classifier: any deterministic classifier.
        alpha: first value of every ``alpha_l`` (0.25 in the paper), relative to the deviation of
            the layer's entries.

    Returns:
        A ``Classifier`` with ``is_random``: ``params`` is ``{"network": ..., "noise": ...}``,
        and ``apply`` needs a key in every mode, as does its ``logits_fn(images, key)``. The
        ``alpha_l`` are trained like any parameter; they have no axes, so AWP leaves them alone.

    Raises:
        ValueError: for a classifier that is random already, or an alpha that is not finite.
    """
    if classifier.is_random:
        raise ValueError(f"{classifier.name} is a randomised model already.")
    if not jnp.isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}, but a finite number was expected.")

    def init(key: Array) -> tuple[Tree, Tree]:
        network, batch_stats = classifier.init_fn(key)
        return {NETWORK: network, NOISE: _alphas(network, alpha)}, batch_stats

    def forward(
        params: Tree,
        batch_stats: Tree,
        images: Array,
        *,
        mode: str,
        key: Array,
        mask: Array | None,
    ) -> tuple[Array, Tree]:
        if key.ndim:
            raise ValueError(
                f"{classifier.name} with noise draws its kernels once for a batch: give one key, "
                f"not {key.shape[0]}."
            )
        # A number of its own is folded in: dropout may draw from the key itself.
        network = noisy_kernels(
            params[NETWORK], params[NOISE], jax.random.fold_in(key, streams.PASS_KERNEL_NOISE)
        )
        inner_key = key if classifier.has_dropout else None
        return classifier.forward_fn(
            network, batch_stats, images, mode=mode, key=inner_key, mask=mask
        )

    return dataclasses.replace(
        classifier,
        name=f"{classifier.name}-pni",
        init_fn=init,
        forward_fn=forward,
        features_fn=None,
        cast_fn=None,  # noise is added to kernels as they are
        is_random=True,
    )
