"""Architectures by name."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from awp_jax.checks import choice
from awp_jax.models.classifier import Classifier, ImageShape
from awp_jax.models.convnext import ConvNeXt
from awp_jax.models.dm_wide_resnet import DMPreActResNet, DMWideResNet, RaWideResNet
from awp_jax.models.imagenet_resnet import ImageNetResNet
from awp_jax.models.layers import Layers, Network
from awp_jax.models.nnx_classifier import from_network
from awp_jax.models.preact_resnet import PreActResNet
from awp_jax.models.resnet import ResNet
from awp_jax.models.small_cnn import MLP, Linear, MnistCNN
from awp_jax.models.vgg import VGG
from awp_jax.models.vit import VisionTransformer
from awp_jax.models.wide_resnet import WideResNet, WideResNet34R, WideResNetA4
from awp_jax.models.xcit import XCiT


@dataclasses.dataclass(frozen=True)
class _Family:
    """Architectures of one class: the numbers in the name, and ``fixed``, are its arguments.

    ``defaults`` are of options that a caller may set.
    """

    pattern: str
    network: type[Network]
    examples: tuple[str, ...]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Blocks of each stage, channels of the first, and convolutions of a ConvStem at RobustBench.
_CONVNEXT = {
    "t": ((3, 3, 9, 3), 96, 2),
    "s": ((3, 3, 27, 3), 96, 2),
    "b": ((3, 3, 27, 3), 128, 3),
    "l": ((3, 3, 27, 3), 192, 3),
}
_VIT = {"s": (384, 6), "b": (768, 12)}  # width and heads
_XCIT = {"s": (384, 8), "m": (512, 8), "l": (768, 16)}  # likewise
_CONV_STEM = 48  # channels of its first convolution in ViT-S and ViT-B


def _convnext(size: str, stem: str = "", before: str = "") -> _Family:
    blocks, width, convolutions = _CONVNEXT[size]
    name = f"{before}convnext-{size}{stem}"
    fixed = {
        "blocks": blocks,
        "conv_stem": convolutions if stem else 0,
        "mean_sparse": bool(before),
    }
    return _Family(name, ConvNeXt, (name,), fixed, {"width": width})


def _vit(size: str, stem: str) -> _Family:
    width, heads = _VIT[size]
    name = f"vit-{size}{stem}"
    fixed = {"conv_stem": _CONV_STEM if stem else 0}
    return _Family(name, VisionTransformer, (name,), fixed, {"width": width, "heads": heads})


def _xcit(size: str, patch: int) -> _Family:
    width, heads = _XCIT[size]
    name = f"xcit-{size}12" + (f"-p{patch}" if patch != 16 else "")
    return _Family(name, XCiT, (name,), {"patch": patch}, {"width": width, "heads": heads})


_FAMILIES = (
    _Family(
        r"preact-resnet-(?P<depth>\d+)",
        PreActResNet,
        ("preact-resnet-10", "preact-resnet-18", "preact-resnet-34"),
    ),
    _Family(r"resnet-(?P<depth>\d+)", ResNet, ("resnet-10", "resnet-18", "resnet-34")),
    _Family(
        r"wrn-(?P<depth>\d+)-(?P<width>\d+)",
        WideResNet,
        ("wrn-16-1", "wrn-28-10", "wrn-34-10", "wrn-70-16"),
    ),
    _Family(
        r"dm-wrn-(?P<depth>\d+)-(?P<width>\d+)",
        DMWideResNet,
        ("dm-wrn-28-10", "dm-wrn-34-20", "dm-wrn-70-16", "dm-wrn-94-16"),
    ),
    _Family(r"ra-wrn-70-16", RaWideResNet, ("ra-wrn-70-16",)),
    _Family(
        r"mean-sparse-dm-wrn-(?P<depth>\d+)-(?P<width>\d+)",
        DMWideResNet,
        ("mean-sparse-dm-wrn-70-16", "mean-sparse-dm-wrn-94-16"),
        {"mean_sparse": True},
    ),
    _Family(
        r"mean-sparse-ra-wrn-70-16",
        RaWideResNet,
        ("mean-sparse-ra-wrn-70-16",),
        {"mean_sparse": True},
    ),
    _Family(
        r"dm-preact-resnet-(?P<depth>\d+)",
        DMPreActResNet,
        ("dm-preact-resnet-18", "dm-preact-resnet-34"),
    ),
    _Family(r"wrn-a4", WideResNetA4, ("wrn-a4",)),
    _Family(r"wrn-34-r", WideResNet34R, ("wrn-34-r",)),
    _Family(r"vgg-(?P<depth>\d+)", VGG, ("vgg-11", "vgg-13", "vgg-16", "vgg-19")),
    _Family(
        r"imagenet-resnet-(?P<depth>\d+)",
        ImageNetResNet,
        tuple(f"imagenet-resnet-{depth}" for depth in (18, 34, 50, 101, 152)),
        {"widen": 1},
    ),
    _Family(r"imagenet-wrn-(?P<depth>\d+)-(?P<widen>\d+)", ImageNetResNet, ("imagenet-wrn-50-2",)),
    *(_convnext(size, stem) for stem in ("", "-convstem") for size in _CONVNEXT),
    *(_convnext(size, before="mean-sparse-") for size in _CONVNEXT),
    *(_vit(size, stem) for stem in ("", "-convstem") for size in _VIT),
    *(_xcit(size, patch) for patch in (16, 4) for size in _XCIT),
    _Family(r"mnist-cnn", MnistCNN, ("mnist-cnn",)),
    _Family(r"mlp", MLP, ("mlp",)),
    _Family(r"linear", Linear, ("linear",)),
)


def names() -> tuple[str, ...]:
    """Names that ``create`` takes; "...wrn-<depth>-<width>" also with other numbers."""
    return tuple(name for family in _FAMILIES for name in family.examples)


def create(name: str, *, image_shape: ImageShape, num_classes: int, **options: Any) -> Classifier:
    """The classifier called ``name``.

    Every architecture takes ``activation`` (by default its own: SiLU for "dm-...", "ra-wrn-70-16"
    and "wrn-a4", exact GELU for "convnext-...", "vit-..." and "xcit-...", else ReLU),
    ``dtype``, ``batch_norm_groups``, ``axis_name``, ``mean``, ``std``, ``auxiliary`` and ``remat``,
    described at ``from_network`` (those of BatchNorm have no effect where there is none). Beside
    them:

    - "preact-resnet-10/18/34", "resnet-10/18/34", "vgg-11/13/16/19": ``width``, channels of the
      first stage (default 64).
    - "wrn-<depth>-<width>", "wrn-a4", "wrn-34-r": ``dropout`` (default 0).
    - "dm-wrn-<depth>-<width>", "ra-wrn-70-16", and both with "mean-sparse-" before: none.
    - "dm-preact-resnet-10/18/34": ``width`` (64).
    - "imagenet-resnet-18/34/50/101/152", "imagenet-wrn-<depth>-<factor>": ``width`` (64).
    - "convnext-t/s/b/l", also with "-convstem" behind or "mean-sparse-" before: ``width``, channels
      of the first stage (96, 96, 128, 192). Images of at least 32x32.
    - "vit-s/b", also with "-convstem" behind: ``width`` of the tokens (384, 768), ``heads`` (6,
      12), ``depth`` (12 blocks), ``patch`` (16), which divides height and width.
    - "xcit-s12/m12/l12" (patches of 16x16), "xcit-s12-p4/m12-p4/l12-p4" (of 4x4): ``width`` (384,
      512, 768), ``heads`` (8, 8, 16), ``depth`` (12).
    - "mnist-cnn": ``width`` (32), ``hidden`` (200), ``dropout`` (0.5).
    - "mlp": ``width`` (128), ``depth`` (2 hidden layers), ``dropout`` (0).
    - "linear": none.

    Args:
        name: see ``names``.
        image_shape: height, width, channels.
        num_classes: number of logits.
        **options: as above.

    Returns:
        The classifier.

    Raises:
        ValueError: for an unknown name or option, or a value out of range.

    Example:
        >>> import jax
        >>> from awp_jax import models
        >>> model = models.create("preact-resnet-18", image_shape=(32, 32, 3), num_classes=10)
        >>> params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        11172170
    """
    family, in_name = _parse(name)
    # Read off the signatures: an option is written down once, with its default.
    shared = _keyword_options(from_network) - {"name"}
    decided = {"mean_sparse", *in_name, *family.fixed}
    own = _keyword_options(family.network.__init__) - decided
    for option in options:
        choice(option, sorted(shared | own), f"option of {name}")
    own_options = {option: options[option] for option in options if option in own}
    shared_options = {option: options[option] for option in options if option in shared}
    if shared_options.get("activation") is None:
        shared_options["activation"] = family.network.own_activation

    def build(layers: Layers) -> Network:
        network: Any = family.network
        return network(
            layers,
            tuple(image_shape),
            num_classes,
            **in_name,
            **family.fixed,
            **{**family.defaults, **own_options},
        )

    return from_network(
        build, name=name, image_shape=image_shape, num_classes=num_classes, **shared_options
    )


def _parse(name: str) -> tuple[_Family, dict[str, int]]:
    for family in _FAMILIES:
        match = re.fullmatch(family.pattern, name)
        if match:
            return family, {key: int(value) for key, value in match.groupdict().items()}
    # Which raises, with the nearest name.
    choice(name, names(), "model")
    raise AssertionError("a pattern lacks one of its examples")


def _keyword_options(function: Any) -> set[str]:
    """Names of the keyword-only arguments, less those that ``create`` takes itself."""
    parameters = inspect.signature(function).parameters.values()
    keyword = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return keyword - {"image_shape", "num_classes"}
