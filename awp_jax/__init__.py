"""Adversarial weight perturbation (AWP), attacks and flatness, as pure JAX functions.

weights     awp, sam, asam, rwp around any optax optimiser; value_and_grad in place of JAX's
attacks     FGSM, PGD, APGD, FAB, Square, CW, DDN, FMN, SPSA, AutoAttack on any logits_fn
balls, ascent   where both move and how; objectives: AT, TRADES, MART and what they ascend
landscape   loss along directions, average and worst-case flatness, Hessian, PAC-Bayes
data, evaluation, reporting, parallel   readers, robust accuracy, tables and figures, devices
models, interop     networks, and PyTorch checkpoints            pip install 'awp_jax[models]'
config, training, runs, the command awp-jax                      pip install 'awp_jax[train]'

They are imported when they are first used: ``import awp_jax`` is enough. Five lines of AWP:

>>> import awp_jax, jax, jax.numpy as jnp, optax
>>> params, grad_fn = {"w": jnp.ones((3, 2))}, jax.grad(lambda p: jnp.sum(p["w"] ** 2))
>>> optimizer = awp_jax.weights.awp(optax.sgd(0.1), gamma=0.005)  # outermost
>>> state = optimizer.init(params)
>>> updates, state = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)

``awp_jax.cite()`` gives the BibTeX of what this implements; README.md and docs/ show the rest.
"""

import importlib
from typing import TYPE_CHECKING

from awp_jax import citation, extras

if TYPE_CHECKING:  # what __getattr__ imports, for checkers and editors
    from awp_jax import (
        ascent,
        attacks,
        balls,
        config,
        data,
        evaluation,
        interop,
        landscape,
        models,
        objectives,
        parallel,
        reporting,
        runs,
        training,
        typing,
        weights,
    )

__version__ = "0.1.0"

__all__ = [
    "ascent",
    "attacks",
    "balls",
    "cite",
    "config",
    "data",
    "evaluation",
    "interop",
    "landscape",
    "models",
    "objectives",
    "parallel",
    "reporting",
    "runs",
    "training",
    "typing",
    "weights",
]


def cite() -> str:
    """BibTeX of this library and of the four papers whose methods it implements.

    Example:
        >>> import awp_jax
        >>> print(awp_jax.cite()[:17])
        @software{awp_jax
    """
    return citation.bibtex(__version__)


if not TYPE_CHECKING:  # or a checker would believe in any name

    def __getattr__(name):
        if name in __all__:
            return importlib.import_module(f"awp_jax.{name}")
        raise AttributeError(f"module 'awp_jax' has no attribute {name!r}")

    def __dir__():
        # help() and completion look at every name: at those that can be imported.
        there = {name for name in __all__ if extras.is_installed(f"awp_jax.{name}")}
        return sorted(there | {name for name in globals() if name.startswith("__")})
