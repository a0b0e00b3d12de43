"""RobustBench's definitions in PyTorch, without what the package wants beside them.

``import robustbench`` needs a dozen packages to download weights and to attack; its model files
need PyTorch alone. So the files are imported past the package, and the tables of entries, with the
few classes beside them, are read out of the sources of the two model zoos.
"""

import ast
import importlib
import importlib.util
import pathlib
import re
import sys
import types
import warnings

import torch
from torch import nn
from torchvision_peer import has_torchvision

ARCHITECTURES = "robustbench.model_zoo.architectures"


_SPEC = importlib.util.find_spec("robustbench")
ZOO = pathlib.Path(_SPEC.origin).parent / "model_zoo" if _SPEC else None


def architecture(name):
    """A module of its architectures."""
    for part, folder in (
        ("robustbench", ZOO.parent),
        ("robustbench.model_zoo", ZOO),
        (ARCHITECTURES, ZOO / "architectures"),
    ):
        if part not in sys.modules:
            package = types.ModuleType(part)
            package.__path__ = [str(folder)]
            sys.modules[part] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of where it imports timm's registry from
        return importlib.import_module(f"{ARCHITECTURES}.{name}")


def has_timm():
    """Whether timm is there, which takes its layers from torchvision."""
    return has_torchvision() and importlib.util.find_spec("timm") is not None


def entries(data):
    """``{(norm, name): function that builds the model}`` of ``model_zoo/<data>.py``."""
    tree = ast.parse((ZOO / f"{data}.py").read_text())
    wide, dm = architecture("wide_resnet"), architecture("dm_wide_resnet")
    resnet, robust = architecture("resnet"), architecture("robust_resnet")
    known = {
        "torch": torch,
        "nn": nn,
        "robust_resnet": robust,
        "RobustWideResNet": architecture("robust_wide_resnet").RobustWideResNet,
        **vars(wide),
        **vars(resnet),
        **{name: value for name, value in vars(dm).items() if not name.startswith("_")},
    }
    if has_torchvision():
        known["get_robustarch_model"] = architecture("robustarch_wide_resnet").get_model
        known["get_sparse_model"] = _sparse_model
    if has_timm():
        known |= _timm_builders()
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            try:
                exec(compile(ast.Module([node], []), data, "exec"), known)
            except NameError:  # built on an architecture that no test asks for
                continue
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            exec(compile(ast.Module([node], []), data, "exec"), known)  # a mean, a deviation
        elif isinstance(node, ast.Assign) and node.targets[0].id in ("linf", "l2"):
            for pair in node.value.args[0].elts:
                name, settings = pair.elts[0].value, pair.elts[1]
                models = [
                    value
                    for key, value in zip(settings.keys, settings.values, strict=True)
                    if key.value == "model"
                ]
                try:
                    built = eval(compile(ast.Expression(models[0]), data, "eval"), known)
                except NameError:
                    continue
                found[node.targets[0].id, name] = built
    return found


def _timm_builders():
    """What the tables build models of timm and torchvision with, never with weights."""
    import timm
    from torchvision import models

    class WithoutWeights:
        def __init__(self, module):
            self.module = module

        def __getattr__(self, name):
            return lambda *args, pretrained=False, **kwargs: getattr(self.module, name)(
                *args, **kwargs
            )

    def create_model(name, pretrained=False):
        # The tables call XCiT otherwise than architectures/xcit.py registers it.
        architecture("xcit")
        return timm.create_model(re.sub("2020light_xcit_(.)_", r"2022light_xcit_\g<1>12_", name))

    return {
        "timm": types.SimpleNamespace(create_model=create_model),
        "pt_models": WithoutWeights(models),
        "normalize_model": architecture("utils_architectures").normalize_model,
        "get_convstem_models": architecture("convstem_models").get_convstem_models,
    }


def _sparse_model(model, dataset):
    """As ``get_sparse_model`` of sparsified_model.py, which imports timm."""
    if dataset == "imagenet-Linf":
        return architecture("sparsified_model").get_sparse_model(model, dataset)
    of_cifar100 = dataset == "cifar-100-Linf"
    if model == "ra_wrn_70_16":
        built = architecture("Meansparse_ra_wrn_70_16")
        return built.NormalizedWideResNet(
            mean=built.CIFAR10_MEAN,
            std=built.CIFAR10_STD,
            stem_width=96,
            depth=[30, 31, 10],
            stage_width=[216, 432, 864],
            groups=[1, 1, 1],
            activation_fn=nn.SiLU,
            se_ratio=0.25,
            se_activation=nn.ReLU,
            se_order=2,
        )
    if model == "wrn_94_16":
        built = architecture("Meansparse_wrn_94_16")
        return built.MeanSparse_DMWideResNet(depth=94, width=16, activation_fn=nn.SiLU)
    built = architecture("Meansparse_wrn_70_16")
    return built.DMWideResNet(
        num_classes=100 if of_cifar100 else 10,
        depth=70,
        width=16,
        activation_fn=nn.SiLU,
        mean=built.CIFAR100_MEAN if of_cifar100 else built.CIFAR10_MEAN,
        std=built.CIFAR100_STD if of_cifar100 else built.CIFAR10_STD,
    )
