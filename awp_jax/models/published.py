"""The entries of RobustBench whose weights this library can read, by their published names."""

from __future__ import annotations

from typing import NamedTuple

from awp_jax.checks import choice

# The two data sets' mean and deviation as DeepMind's model_zoo.py has them; every entry built on
# that file takes its images so, and keeps the numbers out of its weights.
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
# As architectures/xcit.py there has it.
_CIFAR100_XCIT = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_EPSILON = {"linf": "8/255", "l2": "0.5"}  # RobustBench's two threat models for small images
_EPSILON_IMAGENET = "4/255"
# Of ImageNet's, those that take images in [0, 1] as they are.
_NOT_NORMALISED = (
    "Chen2024Data_WRN_50_2",
    "Debenedetti2022Light_XCiT-S12",
    "Debenedetti2022Light_XCiT-M12",
    "Debenedetti2022Light_XCiT-L12",
    "Singh2023Revisiting_ViT-B-ConvStem",
    "Singh2023Revisiting_ConvNeXt-T-ConvStem",
    "Singh2023Revisiting_ConvNeXt-S-ConvStem",
    "Singh2023Revisiting_ConvNeXt-B-ConvStem",
    "Singh2023Revisiting_ConvNeXt-L-ConvStem",
)

# Entries by data, norm and architecture, as robustbench 1.1.1 (model_zoo/cifar10.py, cifar100.py
# and imagenet.py) builds them.
_ENTRIES = {
    ("cifar10", "linf"): {
        "wrn-28-10": (
            "Carmon2019Unlabeled",
            "Sehwag2020Hydra",
            "Wang2020Improving",
            "Hendrycks2019Using",
            "Wu2020Adversarial_extra",
            "Zhang2020Geometry",
            "Sridhar2021Robust",
            "Standard",
        ),
        "wrn-34-20": (
            "Rice2020Overfitting",
            "Cui2020Learnable_34_20",
            "Chen2021LTD_WRN34_20",
            "Chen2024Data_WRN_34_20",
        ),
        "wrn-34-10": (
            "Zhang2019Theoretically",
            "Huang2020Self",
            "Zhang2019You",
            "Zhang2020Attacks",
            "Wu2020Adversarial",
            "Sehwag2021Proxy",
            "Sitawarin2020Improving",
            "Chen2020Efficient",
            "Cui2020Learnable_34_10",
            "Addepalli2021Towards_WRN34",
            "Chen2021LTD_WRN34_10",
            "Jia2022LAS-AT_34_10",
            "Addepalli2022Efficient_WRN_34_10",
            "Cui2023Decoupled_WRN-34-10",
            "Chen2024Data_WRN_34_10",
        ),
        "dm-wrn-70-16": (
            "Gowal2020Uncovering_70_16",
            "Gowal2020Uncovering_70_16_extra",
            "Rebuffi2021Fixing_70_16_cutmix_ddpm",
            "Rebuffi2021Fixing_70_16_cutmix_extra",
            "Gowal2021Improving_70_16_ddpm_100m",
            "Pang2022Robustness_WRN70_16",
            "Wang2023Better_WRN-70-16",
        ),
        "dm-wrn-34-20": ("Gowal2020Uncovering_34_20",),
        "dm-wrn-28-10": (
            "Gowal2020Uncovering_28_10_extra",
            "Rebuffi2021Fixing_28_10_cutmix_ddpm",
            "Rade2021Helper_ddpm",
            "Gowal2021Improving_28_10_ddpm_100m",
            "Pang2022Robustness_WRN28_10",
            "Wang2023Better_WRN-28-10",
            "Xu2023Exploring_WRN-28-10",
            "Cui2023Decoupled_WRN-28-10",
        ),
        "resnet-18": (
            "Sehwag2021Proxy_R18",
            "Addepalli2021Towards_RN18",
            "Addepalli2022Efficient_RN18",
        ),
        "dm-wrn-106-16": ("Rebuffi2021Fixing_106_16_cutmix_ddpm",),
        "wrn-34-15": ("Sridhar2021Robust_34_15",),
        "dm-preact-resnet-18": (
            "Rebuffi2021Fixing_R18_ddpm",
            "Rade2021Helper_R18_extra",
            "Rade2021Helper_R18_ddpm",
            "Gowal2021Improving_R18_ddpm_100m",
        ),
        "dm-wrn-34-10": ("Rade2021Helper_extra",),
        "wrn-34-r": (
            "Huang2021Exploring",
            "Huang2021Exploring_ema",
        ),
        "wrn-70-16": ("Jia2022LAS-AT_70_16",),
        "wrn-a4": ("Huang2022Revisiting_WRN-A4",),
        "ra-wrn-70-16": ("Peng2023Robust",),
        "mean-sparse-ra-wrn-70-16": ("Amini2024MeanSparse_Ra_WRN_70_16",),
        "mean-sparse-dm-wrn-94-16": ("Amini2024MeanSparse_S-WRN-94-16",),
        "dm-wrn-94-16": ("Bartoldson2024Adversarial_WRN-94-16",),
        "dm-wrn-82-8": ("Bartoldson2024Adversarial_WRN-82-8",),
        "xcit-s12-p4": ("Debenedetti2022Light_XCiT-S12",),
        "xcit-m12-p4": ("Debenedetti2022Light_XCiT-M12",),
        "xcit-l12-p4": ("Debenedetti2022Light_XCiT-L12",),
    },
    ("cifar10", "l2"): {
        "preact-resnet-18": ("Rice2020Overfitting",),
        "wrn-28-10": (
            "Rony2019Decoupling",
            "Standard",
        ),
        "wrn-34-10": (
            "Wu2020Adversarial",
            "Sehwag2021Proxy",
            "Augustin2020Adversarial_34_10",
            "Augustin2020Adversarial_34_10_extra",
        ),
        "dm-wrn-70-16": (
            "Gowal2020Uncovering",
            "Gowal2020Uncovering_extra",
            "Rebuffi2021Fixing_70_16_cutmix_ddpm",
            "Rebuffi2021Fixing_70_16_cutmix_extra",
            "Wang2023Better_WRN-70-16",
        ),
        "resnet-18": ("Sehwag2021Proxy_R18",),
        "dm-wrn-28-10": (
            "Rebuffi2021Fixing_28_10_cutmix_ddpm",
            "Wang2023Better_WRN-28-10",
        ),
        "dm-preact-resnet-18": (
            "Rebuffi2021Fixing_R18_cutmix_ddpm",
            "Rade2021Helper_R18_ddpm",
        ),
        "mean-sparse-dm-wrn-70-16": ("Amini2024MeanSparse_S-WRN-70-16",),
    },
    ("cifar100", "linf"): {
        "dm-wrn-70-16": (
            "Gowal2020Uncovering",
            "Gowal2020Uncovering_extra",
            "Rebuffi2021Fixing_70_16_cutmix_ddpm",
            "Pang2022Robustness_WRN70_16",
            "Wang2023Better_WRN-70-16",
        ),
        "wrn-34-20": (
            "Cui2020Learnable_34_20_LBGAT6",
            "Jia2022LAS-AT_34_20",
        ),
        "wrn-34-10": (
            "Cui2020Learnable_34_10_LBGAT0",
            "Cui2020Learnable_34_10_LBGAT6",
            "Chen2020Efficient",
            "Wu2020Adversarial",
            "Sehwag2021Proxy",
            "Sitawarin2020Improving",
            "Addepalli2021Towards_WRN34",
            "Chen2021LTD_WRN34_10",
            "Jia2022LAS-AT_34_10",
            "Addepalli2022Efficient_WRN_34_10",
            "Cui2020Learnable_34_10_LBGAT9_eps_8_255",
            "Cui2023Decoupled_WRN-34-10",
            "Cui2023Decoupled_WRN-34-10_autoaug",
            "Chen2024Data_WRN_34_10",
        ),
        "wrn-28-10": ("Hendrycks2019Using",),
        "preact-resnet-18": (
            "Rice2020Overfitting",
            "Addepalli2021Towards_PARN18",
        ),
        "dm-wrn-28-10": (
            "Rebuffi2021Fixing_28_10_cutmix_ddpm",
            "Pang2022Robustness_WRN28_10",
            "Wang2023Better_WRN-28-10",
            "Cui2023Decoupled_WRN-28-10",
        ),
        "dm-preact-resnet-18": (
            "Rebuffi2021Fixing_R18_ddpm",
            "Rade2021Helper_R18_ddpm",
        ),
        "resnet-18": ("Addepalli2022Efficient_RN18",),
        "mean-sparse-dm-wrn-70-16": ("Amini2024MeanSparse_S-WRN-70-16",),
        "xcit-s12-p4": ("Debenedetti2022Light_XCiT-S12",),
        "xcit-m12-p4": ("Debenedetti2022Light_XCiT-M12",),
        "xcit-l12-p4": ("Debenedetti2022Light_XCiT-L12",),
    },
    ("imagenet", "linf"): {
        "imagenet-resnet-50": (
            "Wong2020Fast",
            "Engstrom2019Robustness",
            "Salman2020Do_R50",
            "Standard_R50",
        ),
        "imagenet-resnet-18": ("Salman2020Do_R18",),
        "imagenet-wrn-50-2": (
            "Salman2020Do_50_2",
            "Chen2024Data_WRN_50_2",
        ),
        "vit-s-convstem": ("Singh2023Revisiting_ViT-S-ConvStem",),
        "vit-b-convstem": ("Singh2023Revisiting_ViT-B-ConvStem",),
        "convnext-t-convstem": ("Singh2023Revisiting_ConvNeXt-T-ConvStem",),
        "convnext-s-convstem": ("Singh2023Revisiting_ConvNeXt-S-ConvStem",),
        "convnext-b-convstem": ("Singh2023Revisiting_ConvNeXt-B-ConvStem",),
        "convnext-l-convstem": ("Singh2023Revisiting_ConvNeXt-L-ConvStem",),
        "convnext-b": ("Liu2023Comprehensive_ConvNeXt-B",),
        "convnext-l": ("Liu2023Comprehensive_ConvNeXt-L",),
        "vit-b": ("Mo2022When_ViT-B",),
        "mean-sparse-convnext-l": ("Amini2024MeanSparse_ConvNeXt-L",),
        "xcit-s12": ("Debenedetti2022Light_XCiT-S12",),
        "xcit-m12": ("Debenedetti2022Light_XCiT-M12",),
        "xcit-l12": ("Debenedetti2022Light_XCiT-L12",),
    },
}


class Published(NamedTuple):
    """A published robust model.

    Attributes:
        name: Its name at RobustBench.
        model: The architecture, as ``create`` takes it; its activation is the published one.
        data: What it classifies: "cifar10", "cifar100" or "imagenet" (images of 224x224, but
            "Wong2020Fast" is evaluated at 288x288).
        norm: Of the ball that it was trained for: "linf" or "l2".
        epsilon: That ball's radius, "8/255", "0.5", or "4/255" for ImageNet.
        mean: Subtracted from the images; empty where there is no normalisation, or where the file
            of weights holds it (see ``awp_jax.interop.normalisation``).
        std: As ``mean``, divides them afterwards.
    """

    name: str
    model: str
    data: str
    norm: str
    epsilon: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _published(name: str, model: str, data: str, norm: str) -> Published:
    epsilon = _EPSILON_IMAGENET if data == "imagenet" else _EPSILON[norm]
    return Published(name, model, data, norm, epsilon, *_normalisation(name, model, data))


def _normalisation(name: str, model: str, data: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if data == "imagenet":
        return ((), ()) if name in _NOT_NORMALISED else _IMAGENET
    if "dm-" in model or "ra-wrn" in model:
        return _CIFAR10 if data == "cifar10" else _CIFAR100
    if "xcit-" in model:
        return _CIFAR10 if data == "cifar10" else _CIFAR100_XCIT
    if name == "Hendrycks2019Using":  # its forward pass begins with 2 x - 1
        return (0.5,) * 3, (0.5,) * 3
    return (), ()


PUBLISHED: tuple[Published, ...] = tuple(
    _published(name, model, data, norm)
    for (data, norm), models in _ENTRIES.items()
    for model, names in models.items()
    for name in names
)


def published(name: str, *, data: str | None = None, norm: str | None = None) -> Published:
    """The entry of RobustBench called ``name``.

    Args:
        name: As there, such as "Wang2023Better_WRN-28-10"; see ``PUBLISHED``.
        data: "cifar10", "cifar100" or "imagenet", where the name stands for several models; by
            default CIFAR-10's, if there is one.
        norm: "linf" or "l2", likewise; by default Linf's, if there is one.

    Returns:
        What it is.

    Raises:
        ValueError: For an unknown name, with the nearest, or one without such data or norm.

    Example:
        >>> from awp_jax import models
        >>> entry = models.published("Wang2023Better_WRN-28-10", data="cifar100")
        >>> entry.model, entry.norm, entry.epsilon
        ('dm-wrn-28-10', 'linf', '8/255')
    """
    choice(name, sorted({entry.name for entry in PUBLISHED}), "published model")
    entries = [entry for entry in PUBLISHED if entry.name == name]
    fitting = [
        entry for entry in entries if data in (None, entry.data) and norm in (None, entry.norm)
    ]
    if not fitting:
        there = ", ".join(f"{entry.data} in {entry.norm}" for entry in entries)
        asked = " in ".join(value for value in (data, norm) if value)
        raise ValueError(f"{name} is there for {there}, not for {asked}.")
    return fitting[0]
