"""Parameters under the names, and in the layout, of the released PyTorch models.

The names are those of the code released with AWP, TRADES, MART and RST (wide ResNet,
PreActResNet), of kuangliu's ResNet and VGG, and of TRADES' MNIST CNN. Models of other origin get
their own paths, joined by dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from awp_jax.models.classifier import Classifier, Tree
from awp_jax.models.vgg import CONVOLUTIONS

Path = tuple[str, ...]

_STAGE = re.compile(r"^layer(\d+)\.")
_STEM = re.compile(r"\b(stem|proj)\.(conv|norm)\.(\d+)$")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def leaves(tree: Tree, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Paths and leaves of a nested dict."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(dict(value), (*prefix, name))
        else:
            yield (*prefix, name), value


def nested(flat: Mapping[Path, Any]) -> Tree:
    """The nested dict of paths and leaves."""
    tree: Tree = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def torch_key(model_name: str, path: Path) -> str:
    """The name a released PyTorch model gives to the leaf at ``path``.

    Args:
        model_name: name of the architecture, as in ``awp_jax.models.names``.
        path: path in ``params`` or ``batch_stats``.

    Example:
        >>> torch_key("wrn-34-10", ("block1", "0", "shortcut", "kernel"))
        'block1.layer.0.convShortcut.weight'
    """
    *modules, leaf = path
    name = ".".join(modules)
    if "dm-preact-" in model_name:
        name = _dm_preact_module(modules)
    elif "dm-wrn-" in model_name or "ra-wrn-" in model_name:
        name = _STAGE.sub(lambda stage: f"layer.{int(stage[1]) - 1}.block.", name)
    elif model_name in ("wrn-a4", "wrn-34-r"):
        name = _shaped_module(model_name, name)
    elif model_name.startswith("preact-resnet-"):
        name = name.replace(".shortcut", ".shortcut.0")
    elif model_name.startswith("resnet-"):
        name = name.replace(".shortcut_conv", ".shortcut.0").replace(".shortcut_bn", ".shortcut.1")
    elif model_name.startswith("wrn-"):
        name = re.sub(r"^(block\d+)\.", r"\1.layer.", name).replace(".shortcut", ".convShortcut")
    elif model_name.startswith("vgg-"):
        name = _vgg_module(int(model_name.removeprefix("vgg-")), modules)
    elif model_name.endswith("-convstem"):
        name = _STEM.sub(_stem_module, name)
    elif model_name.startswith("mean-sparse-convnext-"):
        # In the places of an activation and of drop path, which each become a sequence.
        name = name.replace(".mlp.meansparse", ".mlp.act.0")
        name = name.replace(".meansparse", ".drop_path.1")
    elif model_name.startswith("xcit-"):
        name = re.sub(r"\bproj\.(conv|norm)\.(\d+)$", _patches_module, name)
    elif model_name == "mnist-cnn":
        name = f"{'feature_extractor' if name.startswith('conv') else 'classifier'}.{name}"
    return f"{name}.{_LEAVES.get(leaf, leaf)}" if name else _LEAVES.get(leaf, leaf)


def _dm_preact_module(modules: list[str]) -> str:
    """DeepMind's PreActResNet: other names for the layers of ours, and stages from 0."""
    if len(modules) < 3:  # outside the stages, a head of one's own among them
        outer = {"conv1": "conv_2d", "bn": "batchnorm", "linear": "logits"}
        return ".".join(outer.get(module, module) for module in modules)
    stage, place, layer = modules
    inner = {"bn1": "batchnorm_0", "conv1": "conv_2d_1", "bn2": "batchnorm_1", "conv2": "conv_2d_2"}
    return f"layer_{int(stage[-1]) - 1}.{place}.{inner.get(layer, layer)}"


def _shaped_module(model_name: str, name: str) -> str:
    """The two wide ResNets of Huang et al., whose files name the same modules otherwise."""
    shortcut = ".shortcut.0" if model_name == "wrn-a4" else ".convShortcut"
    name = re.sub(
        r"^block(\d+)\.", lambda stage: f"blocks.{int(stage[1]) - 1}.layer.", name
    ).replace(".shortcut", shortcut)
    outer = {"conv1": "stem_conv", "bn1": "norm1" if model_name == "wrn-a4" else "bn1"}
    return outer.get(name, name)


def _stem_module(match: re.Match[str]) -> str:
    """A ConvStem numbers convolutions, norms and activations in one sequence."""
    stem, layer, index = match.groups()
    return f"{stem}.stem.{3 * int(index) + (layer == 'norm')}"


def _patches_module(match: re.Match[str]) -> str:
    """XCiT's convolutions and norms come in pairs, with activations between."""
    layer, index = match.groups()
    return f"proj.{2 * int(index)}.{int(layer == 'norm')}"


def _vgg_module(depth: int, modules: list[str]) -> str:
    """PyTorch's VGG numbers convolutions, norms, activations and pools in one sequence."""
    if modules[0] == "classifier":
        return "classifier"
    layer, index = modules[0], int(modules[1])
    pools = 0
    passed = 0
    for repeats in CONVOLUTIONS[depth]:
        passed += repeats
        pools += passed <= index
    return f"features.{3 * index + pools + (layer == 'bn')}"


def as_released(model_name: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict under the names that ``torch_key`` gives, where its authors have others.

    XCiT's own code has "pos_embeder", and one dense layer for query, key and value of all tokens
    where timm has three, of which the query is asked for the class token alone.
    """
    if not model_name.startswith("xcit-"):
        return dict(state)
    found: dict[str, np.ndarray] = {}
    for name, value in state.items():
        name = name.replace("pos_embeder.", "pos_embed.")
        before, together, leaf = name.partition(".attn.qkv.")
        if together and "cls_attn_blocks." in before and len(value) % 3 == 0:
            for part, each in zip("qkv", np.split(value, 3), strict=True):
                found[f"{before}.attn.{part}.{leaf}"] = each
        else:
            found[name] = value
    return found


def to_torch_layout(value: np.ndarray) -> np.ndarray:
    """Convolution kernels HWIO to OIHW, dense kernels transposed, the rest as it is."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T if value.ndim == 2 else value


def from_torch_layout(value: np.ndarray) -> np.ndarray:
    """The inverse of ``to_torch_layout``."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def to_state_dict(classifier: Classifier, params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
    """The PyTorch state dict of ``params`` and ``batch_stats``, as contiguous numpy arrays.

    Args:
        classifier: the model they belong to.
        params: as its ``init`` returns them.
        batch_stats: as its ``init`` returns them.

    Returns:
        Arrays by PyTorch name, in PyTorch's layout, with the counters that a strict
        ``load_state_dict`` asks for beside the statistics of BatchNorm and of ``MeanSparse``.
    """
    state: dict[str, np.ndarray] = {}
    for path, value in (*leaves(params), *leaves(batch_stats)):
        key = torch_key(classifier.name, path)
        # Not np.ascontiguousarray, which makes a vector of a number.
        state[key] = np.array(to_torch_layout(np.asarray(value)), order="C")
        module, _, leaf = key.rpartition(".")
        sparse = any("meansparse" in part for part in path)
        if leaf == "threshold" and sparse:
            state[f"{module}.flag_update_statistics"] = np.zeros((), np.int64)
            state[f"{module}.batch_num"] = np.zeros((), np.float32)
            if "convnext" in classifier.name:
                # What its definition carries along, and does not read.
                state[f"{module}.momentum"] = np.asarray(0.1, np.float32)
                state[f"{module}.epsilon"] = np.asarray(1e-10, np.float32)
        elif leaf == "running_var" and not sparse:
            state[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return state
