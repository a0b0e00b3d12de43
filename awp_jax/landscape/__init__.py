"""The loss around the weights of a model: landscapes, flatness, curvature, the weights themselves.

Everything takes the model as ``apply_fn(params, images) -> logits`` and the parameters apart from
it, so that one compiled function serves every point of weight space.
"""

from awp_jax.landscape._average_case import AverageFlatness as AverageFlatness
from awp_jax.landscape._average_case import average_flatness as average_flatness
from awp_jax.landscape._directions import adversarial_directions as adversarial_directions
from awp_jax.landscape._directions import directions as directions
from awp_jax.landscape._hessian import HessianSpectrum as HessianSpectrum
from awp_jax.landscape._hessian import hessian_spectrum as hessian_spectrum
from awp_jax.landscape._histograms import WeightHistogram as WeightHistogram
from awp_jax.landscape._histograms import weight_histograms as weight_histograms
from awp_jax.landscape._layers import kernels_and_biases as kernels_and_biases
from awp_jax.landscape._pac_bayes import RELATIVE_SIZES as RELATIVE_SIZES
from awp_jax.landscape._pac_bayes import PACBayes as PACBayes
from awp_jax.landscape._pac_bayes import pac_bayes as pac_bayes
from awp_jax.landscape._perturbed import GAMMAS as GAMMAS
from awp_jax.landscape._perturbed import WEIGHT_DRAWS as WEIGHT_DRAWS
from awp_jax.landscape._perturbed import PerturbedLoss as PerturbedLoss
from awp_jax.landscape._perturbed import perturbed_loss as perturbed_loss
from awp_jax.landscape._rescaled import rescaled as rescaled
from awp_jax.landscape._robust_loss import PGD_20 as PGD_20
from awp_jax.landscape._robust_loss import RobustLoss as RobustLoss
from awp_jax.landscape._robust_loss import robust_loss as robust_loss
from awp_jax.landscape._surface import Surface as Surface
from awp_jax.landscape._surface import axis as axis
from awp_jax.landscape._surface import surface as surface
from awp_jax.landscape._worst_case import WorstCaseFlatness as WorstCaseFlatness
from awp_jax.landscape._worst_case import worst_case_flatness as worst_case_flatness
