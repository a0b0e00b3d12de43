"""Published architectures against RobustBench's own definitions of them."""

import functools
import pathlib
import re
import unittest.mock

import jax
import numpy as np
import pytest
import torch
from longer import longer, some
from one_step import one_step_of_at_awp
from robustbench_peer import ZOO, architecture, entries, has_timm, has_torchvision
from torch import nn
from torch_models import copy_into, gap, scattered

from awp_jax import data, models
from awp_jax.interop.state_dict import leaves, to_torch_layout, torch_key

pytestmark = pytest.mark.skipif(ZOO is None, reason="needs robustbench")
SMALL = {"image_shape": (32, 32, 3), "num_classes": 5}
UNNORMALISED = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
# Counters in a state dict, and modules that are never called.
DEAD = ("num_batches_tracked", "flag_update_statistics", "batch_num", ".momentum", ".epsilon")


class SmallA4(models.WideResNetA4):
    blocks, widths = (2, 1, 1), (16, 24, 16)


class Small34R(models.WideResNet34R):
    blocks, widths = (1, 2, 1), (8, 16, 8)


class SmallRa(models.RaWideResNet):
    def __init__(self, make, image_shape, num_classes, *, mean_sparse=False):
        shape = 12, (1, 2, 1), (8, 16, 24)
        self._build(make, image_shape, num_classes, *shape, mean_sparse)


def small(network, name, **options):
    return models.from_network(
        lambda layers: network(layers, SMALL["image_shape"], SMALL["num_classes"], **options),
        name=name,
        activation=network.own_activation,
        **SMALL,
    )


def dm_wide():
    peer = architecture("dm_wide_resnet")
    return peer.DMWideResNet(5, 10, 1, activation_fn=nn.SiLU, **UNNORMALISED)


def ra_options():
    return dict(
        **UNNORMALISED,
        stem_width=12,
        depth=[1, 2, 1],
        stage_width=[8, 16, 24],
        groups=[1, 1, 1],
        activation_fn=nn.SiLU,
        se_ratio=0.25,
        se_activation=nn.ReLU,
        se_order=2,
        num_classes=5,
    )


def usual_momentum(module):
    """PyTorch's momentum, where the release trained with another."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1
    return module


CASES = {
    "dm-wrn-10-1": (lambda: models.create("dm-wrn-10-1", **SMALL), dm_wide),
    "wrn-a4": (
        lambda: small(SmallA4, "wrn-a4"),
        lambda: architecture("robust_resnet").PreActResNet(
            5, (16, 16, 24, 16), (2, 1, 1), activations=("SiLU",) * 3, use_init=False
        ),
    ),
    "wrn-34-r": (
        lambda: small(Small34R, "wrn-34-r"),
        lambda: architecture("robust_wide_resnet").RobustWideResNet(5, [16, 8, 16, 8], [1, 2, 1]),
    ),
    "mean-sparse-dm-wrn-10-1": (
        lambda: models.create("mean-sparse-dm-wrn-10-1", **SMALL),
        lambda: architecture("Meansparse_wrn_94_16").MeanSparse_DMWideResNet(
            5, 10, 1, activation_fn=nn.SiLU, **UNNORMALISED
        ),
    ),
    "ra-wrn-70-16": (
        lambda: small(SmallRa, "ra-wrn-70-16"),
        lambda: usual_momentum(
            architecture("robustarch_wide_resnet").NormalizedWideResNet(**ra_options())
        ),
    ),
    "mean-sparse-ra-wrn-70-16": (
        lambda: small(SmallRa, "mean-sparse-ra-wrn-70-16", mean_sparse=True),
        lambda: usual_momentum(
            architecture("Meansparse_ra_wrn_70_16").NormalizedWideResNet(**ra_options())
        ),
    ),
}


@pytest.mark.parametrize("mode", ["update", *longer("running")])
@pytest.mark.parametrize("name", CASES)
def test_logits_gradients_and_statistics(x64, name, mode):
    if "ra-wrn" in name and not has_torchvision():
        pytest.skip("needs torchvision")
    ours, theirs = CASES[name]
    assert gap(ours(), theirs(), mode) < 1e-9


@pytest.mark.parametrize(
    ("name", "build"),
    [
        (
            "dm-preact-resnet-18",
            lambda: architecture("dm_wide_resnet").DMPreActResNet(
                5, 18, activation_fn=nn.SiLU, **UNNORMALISED
            ),
        ),
        (
            "preact-resnet-10",
            lambda: architecture("resnet").PreActResNet(
                architecture("resnet").PreActBlockV2, [1, 1, 1, 1], 5, bn_before_fc=True
            ),
        ),
        (
            "resnet-10",
            lambda: architecture("resnet").ResNet(
                architecture("resnet").BasicBlock, [1, 1, 1, 1], 5
            ),
        ),
    ],
)
def test_logits_of_full_width(name, build):
    classifier = models.create(name, **SMALL)
    params, batch_stats = jax.tree.map(np.float32, scattered(classifier))
    module = copy_into(build(), classifier, params, batch_stats).eval()
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()
    found = jax.jit(functools.partial(classifier.apply, mode="running"))(
        params, batch_stats, images
    )[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@functools.lru_cache
def expected_shapes(name, data_name):
    sizes = data.published_sizes(data_name).test
    shape = sizes.images.shape[1:]
    classifier = models.create(name, image_shape=shape, num_classes=sizes.num_classes)
    variables = jax.eval_shape(classifier.init, jax.random.key(0))
    return {
        torch_key(name, path): to_torch_layout(np.empty(leaf.shape, np.bool_)).shape
        for tree in variables
        for path, leaf in leaves(tree)
    }


built = functools.lru_cache(entries)


@pytest.mark.parametrize("entry", models.PUBLISHED, ids=lambda e: f"{e.data}-{e.norm}-{e.name}")
def test_entry_is_as_robustbench_builds_it(entry):
    """Every name and shape of its state dict, its classes and its normalisation."""
    if re.search("ra-wrn|mean-sparse", entry.model) and not has_torchvision():
        pytest.skip("needs torchvision")
    if (entry.data == "imagenet" or "xcit" in entry.model) and not has_timm():
        pytest.skip("needs torchvision and timm")

    def on_cpu(name):
        original = getattr(torch, name)
        return unittest.mock.patch(
            f"torch.{name}", lambda *a, **k: original(*a, **{**k, "device": "cpu"})
        )

    # Shapes alone, and the numbers of the normalisation.
    with torch.device("meta"), on_cpu("tensor"), on_cpu("as_tensor"):
        module = built(entry.data)[entry.norm, entry.name]()
    normalises = module
    if hasattr(module, "normalize") and hasattr(module, "model"):
        normalises, module = module.normalize, module.model
    found = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith(DEAD) and "sub_block1." not in name
    }
    in_file = {name for name in found if name in ("mu", "sigma")}
    assert {name: found[name] for name in found.keys() - in_file} == expected_shapes(
        entry.model, entry.data
    )
    if entry.mean and hasattr(normalises, "mean"):
        np.testing.assert_allclose(normalises.mean.flatten(), entry.mean)
        np.testing.assert_allclose(normalises.std.flatten(), entry.std)
    else:
        assert bool(entry.mean) == (entry.name == "Hendrycks2019Using")
        assert not hasattr(normalises, "mean")
    assert not (entry.mean and in_file)


@pytest.mark.parametrize("name", some(CASES, set(CASES) - {"mean-sparse-ra-wrn-70-16"}))
def test_a_step_of_at_awp(name):
    """Every parameter moves, and every statistic of BatchNorm."""
    (_, batch_stats), after = one_step_of_at_awp(CASES[name][0]())
    # MeanSparse stays as it was, BatchNorm moves
    for (path, old), (_, new) in zip(leaves(batch_stats), leaves(after.batch_stats), strict=True):
        assert (old == new).all() == any("meansparse" in part for part in path), path


PEERS = {
    "wrn-34-r": "RobustWideResNet",
    "wrn-a4": "robust_resnet.PreActResNet",
    "wrn-": "WideResNet",
    "dm-wrn-": "DMWideResNet",
    "dm-preact-resnet-": "DMPreActResNet",
    "ra-wrn-": "NormalizedWideResNet",
    "mean-sparse-convnext-": "timm.ConvNeXt, sparsified_model",
    "mean-sparse-ra": "Meansparse_ra_wrn_70_16.NormalizedWideResNet",
    "mean-sparse-dm": "MeanSparse_DMWideResNet",
    "preact-resnet-": "PreActResNet",
    "resnet-": "ResNet",
    "imagenet-": "torchvision.ResNet",
    "convnext-": "timm.ConvNeXt",
    "vit-": "timm.VisionTransformer",
    "xcit-": "timm.Xcit",
}


def row(entry):
    """The row of ``docs/models.md``."""
    statistics = (".running_mean", ".running_var", ".threshold")
    parameters = sum(
        int(np.prod(shape))
        for name, shape in expected_shapes(entry.model, entry.data).items()
        if not name.endswith(statistics)
    )
    peer = next(peer for begin, peer in PEERS.items() if entry.model.startswith(begin))
    return (
        f"| {entry.name} | {entry.data}, {entry.norm} {entry.epsilon} | `{entry.model}` "
        f"| {parameters:,} | `{peer}{' with ConvStem' if 'convstem' in entry.model else ''}` |"
    )


def test_the_table_of_entries_is_that_of_the_code():
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "models.md"
    written = [line for line in page.read_text().splitlines() if re.match(r"\| [A-Z]\w+", line)]
    assert written == [row(entry) for entry in models.PUBLISHED]


def test_the_numbers_of_entries_and_names_are_those_of_the_code():
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "robustbench.md"
    whole = " ".join(page.read_text().split())
    names = {entry.name for entry in models.PUBLISHED}
    assert f"{len(models.PUBLISHED)} entries of RobustBench are known under {len(names)}" in whole
