"""Adversarial training that also perturbs the weights, in JAX."""

__version__ = "0.1.0"
