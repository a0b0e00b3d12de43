"""Architectures behind one contract, the ``Classifier``: pure functions of plain nested dicts."""

from awp_jax.models.adaptors import from_callable as from_callable
from awp_jax.models.adaptors import from_linen as from_linen
from awp_jax.models.batch_norm import MOMENTUM as MOMENTUM
from awp_jax.models.batch_norm import BatchNorm as BatchNorm
from awp_jax.models.classifier import Classifier as Classifier
from awp_jax.models.context import MODES as MODES
from awp_jax.models.context import Context as Context
from awp_jax.models.context import Mode as Mode
from awp_jax.models.initial import Initial as Initial
from awp_jax.models.layers import ACTIVATIONS as ACTIVATIONS
from awp_jax.models.layers import Layers as Layers
from awp_jax.models.layers import Network as Network
from awp_jax.models.nnx_classifier import from_network as from_network
from awp_jax.models.noise import noisy_kernels as noisy_kernels
from awp_jax.models.noise import with_parametric_noise as with_parametric_noise
from awp_jax.models.preact_resnet import PreActResNet as PreActResNet
from awp_jax.models.registry import create as create
from awp_jax.models.registry import names as names
from awp_jax.models.resnet import ResNet as ResNet
from awp_jax.models.small_cnn import MLP as MLP
from awp_jax.models.small_cnn import Linear as Linear
from awp_jax.models.small_cnn import MnistCNN as MnistCNN
from awp_jax.models.vgg import VGG as VGG
from awp_jax.models.wide_resnet import WideResNet as WideResNet
