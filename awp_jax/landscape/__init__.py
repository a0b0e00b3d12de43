"""The loss around the weights of a model: landscapes, flatness, curvature, the weights themselves.

Everything takes the model as ``apply_fn(params, images) -> logits`` and the parameters apart from
it, so that one compiled function serves every point of weight space.
"""

from awp_jax.landscape._average_case import AverageFlatness, average_flatness
from awp_jax.landscape._directions import adversarial_directions, directions
from awp_jax.landscape._hessian import HessianSpectrum, hessian_spectrum
from awp_jax.landscape._hessian_density import (
    HessianDensity,
    HessianTrace,
    hessian_density,
    hessian_trace,
)
from awp_jax.landscape._histograms import WeightHistogram, weight_histograms
from awp_jax.landscape._layers import kernels_and_biases
from awp_jax.landscape._pac_bayes import RELATIVE_SIZES, PACBayes, pac_bayes
from awp_jax.landscape._perturbed import GAMMAS, WEIGHT_DRAWS, PerturbedLoss, perturbed_loss
from awp_jax.landscape._rescaled import rescaled
from awp_jax.landscape._robust_loss import PGD_20, RobustLoss, robust_loss
from awp_jax.landscape._surface import Surface, axis, surface
from awp_jax.landscape._worst_case import WorstCaseFlatness, worst_case_flatness

__all__ = [
    "AverageFlatness",
    "GAMMAS",
    "HessianDensity",
    "HessianSpectrum",
    "HessianTrace",
    "PACBayes",
    "PGD_20",
    "PerturbedLoss",
    "RELATIVE_SIZES",
    "RobustLoss",
    "Surface",
    "WEIGHT_DRAWS",
    "WeightHistogram",
    "WorstCaseFlatness",
    "adversarial_directions",
    "average_flatness",
    "axis",
    "directions",
    "hessian_density",
    "hessian_spectrum",
    "hessian_trace",
    "kernels_and_biases",
    "pac_bayes",
    "perturbed_loss",
    "rescaled",
    "robust_loss",
    "surface",
    "weight_histograms",
    "worst_case_flatness",
]
