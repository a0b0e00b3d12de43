"""Networks for images of ImageNet's size, against torchvision, timm and RobustBench."""

import functools
import re
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from longer import longer, some
from one_step import one_step_of_at_awp
from robustbench_peer import ZOO, architecture, has_timm, has_torchvision
from torch import nn
from torch_models import gap, relative, scattered

from awp_jax import models
from awp_jax.interop import load_torch, save_torch
from awp_jax.interop.state_dict import leaves, to_state_dict, to_torch_layout, torch_key

SMALL = {"image_shape": (32, 32, 3), "num_classes": 5}
FAST = {"xla_backend_optimization_level": 0}  # most of the time here is compilation
FULL = {"image_shape": (224, 224, 3), "num_classes": 1000}


class SmallResNet(models.ImageNetResNet):
    def __init__(
        self, make, image_shape, num_classes, *, bottlenecks, widen=1, blocks=(1, 1, 1, 1)
    ):
        self._build(make, image_shape, num_classes, blocks, 8, widen, bottlenecks)


def small(network, name, image_shape=SMALL["image_shape"], remat=False, dtype="float32", **options):
    return models.from_network(
        lambda layers: network(layers, image_shape, 5, **options),
        name=name,
        activation=network.own_activation,
        image_shape=image_shape,
        num_classes=5,
        remat=remat,
        dtype=dtype,
    )


def resnet(block, **options):
    """torchvision's, of an eighth of its width."""
    from torchvision.models import resnet as peer

    class Narrow(peer.ResNet):
        def __init__(self, block):
            super().__init__(block, [1, 1, 1, 1], **options)
            self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(8)
            self.fc = nn.Linear(64 * block.expansion, 5)

        def _make_layer(self, block, planes, blocks, **kwargs):
            self.inplanes = 8 if planes == 64 else self.inplanes
            return super()._make_layer(block, planes // 8, blocks, **kwargs)

    return Narrow(getattr(peer, block))


def convnext(blocks, width, stem=""):
    from timm.models import ConvNeXt

    widths = tuple(width * 2**i for i in range(4))
    module = ConvNeXt(depths=blocks, dims=widths, num_classes=5)
    if stem:
        module.stem = getattr(architecture("convstem_models"), stem)(width // 2)
    return module


def sparse_convnext(blocks, width):
    peer = architecture("sparsified_model")
    published = (192, 384, 768, 1536)  # it knows the widths of ConvNeXt-L's blocks alone

    def sparse(features):
        small = features in published
        return peer.MeanSparse_imagenet(features * width // 192 if small else features)

    module = convnext(blocks, width)
    peer.add_custom_layer_imagenet(module, sparse)
    return module


def vit(size, patch, conv_stem=0):
    from timm.models import VisionTransformer

    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    module = VisionTransformer(img_size=size, patch_size=patch, **sizes)
    if conv_stem:
        stem = architecture("convstem_models").ConvBlock
        module.patch_embed.proj = stem(conv_stem, 24 // conv_stem)
    return module


def xcit(size, patch):
    from timm.models import Xcit

    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}
    module = Xcit(img_size=size, tokens_norm=True, **sizes)
    forward = module.pos_embed.forward

    def in_float64(*arguments):
        # It takes its sines in float32 whatever the rest is computed in.
        with unittest.mock.patch.object(torch, "float32", torch.float64):
            return forward(*arguments)

    module.pos_embed.forward = in_float64
    if patch == 4:
        architecture("xcit").adapt_model_patches(module, 4)
    return module


BLOCKS = (1, 1, 2, 1)
VIT = {"width": 24, "heads": 3, "depth": 2}
XCIT = {"width": 24, "heads": 3, "depth": 1}
CASES = {
    "imagenet-resnet-18": (
        functools.partial(small, SmallResNet, bottlenecks=False),
        lambda: resnet("BasicBlock"),
    ),
    "imagenet-resnet-50": (
        functools.partial(small, SmallResNet, bottlenecks=True),
        lambda: resnet("Bottleneck"),
    ),
    "imagenet-wrn-50-2": (
        functools.partial(small, SmallResNet, image_shape=(30, 37, 3), bottlenecks=True, widen=2),
        lambda: resnet("Bottleneck", width_per_group=128),
    ),
    "convnext-t": (
        functools.partial(small, models.ConvNeXt, image_shape=(33, 38, 3), blocks=BLOCKS, width=8),
        lambda: convnext(BLOCKS, 8),
    ),
    "convnext-t-convstem": (
        functools.partial(small, models.ConvNeXt, blocks=BLOCKS, width=8, conv_stem=2),
        lambda: convnext(BLOCKS, 8, "ConvBlock1"),
    ),
    "convnext-b-convstem": (
        functools.partial(small, models.ConvNeXt, blocks=BLOCKS, width=8, conv_stem=3),
        lambda: convnext(BLOCKS, 8, "ConvBlock3"),
    ),
    "mean-sparse-convnext-l": (
        functools.partial(small, models.ConvNeXt, blocks=BLOCKS, width=8, mean_sparse=True),
        lambda: sparse_convnext(BLOCKS, 8),
    ),
    "vit-s": (
        functools.partial(small, models.VisionTransformer, image_shape=(32, 24, 3), patch=8, **VIT),
        lambda: vit((32, 24), 8),
    ),
    "vit-s-convstem": (
        functools.partial(small, models.VisionTransformer, conv_stem=3, **VIT),
        lambda: vit(32, 16, conv_stem=3),
    ),
    "xcit-s12": (
        functools.partial(small, models.XCiT, image_shape=(48, 32, 3), **XCIT),
        lambda: xcit((48, 32), 16),
    ),
    "xcit-s12-p4": (
        functools.partial(small, models.XCiT, image_shape=(16, 12, 3), patch=4, **XCIT),
        lambda: xcit((16, 12), 4),
    ),
}


def peer_or_skip(name):
    if not (has_torchvision() if name.startswith("imagenet-") else has_timm()):
        pytest.skip("needs torchvision, and for transformers and ConvNeXt timm")
    if re.search("convstem|p4|xcit-[ml]|sparse", name) and ZOO is None:
        pytest.skip("needs robustbench")


def has_batch_norm(name):
    return name.startswith(("imagenet-", "xcit-"))


# Where there is no BatchNorm, both modes are the same.
@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "update") for name in CASES]
    + longer(*((name, "running") for name in filter(has_batch_norm, CASES))),
)
def test_logits_gradients_and_statistics(x64, name, mode):
    peer_or_skip(name)
    ours, theirs = CASES[name]
    assert gap(ours(name=name), theirs(), mode) < 1e-9


def timm_module(name):
    import timm

    return timm.create_model(name, pretrained=False)


def torchvision_module(name):
    from torchvision import models as peer

    return getattr(peer, name)()


def conv_stem_module(name):
    return architecture("convstem_models").get_convstem_models(name)


def xcit_module(name):
    architecture("xcit")  # which registers it
    return timm_module(name)


# What each is elsewhere, and how many parameters its publication counts.
PEERS = {
    "imagenet-resnet-18": (torchvision_module, "resnet18", 11_689_512),
    "imagenet-resnet-34": (torchvision_module, "resnet34", 21_797_672),
    "imagenet-resnet-50": (torchvision_module, "resnet50", 25_557_032),
    "imagenet-resnet-101": (torchvision_module, "resnet101", 44_549_160),
    "imagenet-resnet-152": (torchvision_module, "resnet152", 60_192_808),
    "imagenet-wrn-50-2": (torchvision_module, "wide_resnet50_2", 68_883_240),
    "convnext-t": (timm_module, "convnext_tiny", 28_589_128),
    "convnext-s": (timm_module, "convnext_small", 50_223_688),
    "convnext-b": (timm_module, "convnext_base", 88_591_464),
    "convnext-l": (timm_module, "convnext_large", 197_767_336),
    "convnext-t-convstem": (conv_stem_module, "convnext_t_cvst", None),
    "convnext-s-convstem": (conv_stem_module, "convnext_s_cvst", None),
    "convnext-b-convstem": (conv_stem_module, "convnext_b_cvst", None),
    "convnext-l-convstem": (conv_stem_module, "convnext_l_cvst", None),
    "vit-s": (timm_module, "vit_small_patch16_224", 22_050_664),
    "vit-b": (timm_module, "vit_base_patch16_224", 86_567_656),
    "xcit-s12": (timm_module, "xcit_small_12_p16_224", 26_253_304),
    "xcit-m12": (xcit_module, "debenedetti2022light_xcit_m12_imagenet_linf", None),
    "xcit-l12": (xcit_module, "debenedetti2022light_xcit_l12_imagenet_linf", None),
    "vit-s-convstem": (conv_stem_module, "vit_s_cvst", None),
    "vit-b-convstem": (conv_stem_module, "vit_b_cvst", None),
}


# Those of other depths and widths are named and shaped as these.
SMALLEST = {n for n in PEERS if not re.search(r"-(34|101|152|[bl])(-|$)|convnext-s|-[ml]12", n)}


@pytest.mark.parametrize("name", some(PEERS, SMALLEST))
def test_names_shapes_and_number_of_parameters(name):
    build, their_name, count = PEERS[name]
    classifier = models.create(name, **FULL)
    params, batch_stats = jax.eval_shape(classifier.init, jax.random.key(0))
    assert count in (None, sum(leaf.size for leaf in jax.tree.leaves(params)))
    peer_or_skip(name)
    with torch.device("meta"):
        module = build(their_name)
    expected = {
        key.removeprefix("model."): tuple(tensor.shape)
        for key, tensor in module.state_dict().items()
        if not key.endswith("num_batches_tracked") and not key.startswith("normalize.")
    }
    assert expected == {
        torch_key(name, path): to_torch_layout(np.empty(leaf.shape, np.bool_)).shape
        for path, leaf in (*leaves(params), *leaves(batch_stats))
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("imagenet-resnet-50", {"blocks": (1, 1)}),
        ("convnext-t", {"blocks": (1, 1)}),
        ("vit-s-convstem", {"depth": 1}),
        ("xcit-s12", {}),
    ],
)
def test_a_step_of_at_awp(name, options):
    """Every parameter moves, and every statistic."""
    classifier = CASES[name][0](name=name, **options)
    # Not as they start: behind a layer scale of 1e-6 nothing moves by a digit of float32.
    start = jax.tree.map(np.float32, scattered(classifier))
    # What shifts the scores of all tokens alike: its gradient is zero but for rounding.
    no_effect = [("attn", "k", "bias")]
    (_, before), after = one_step_of_at_awp(classifier, start, no_effect)
    for (path, old), (_, new) in zip(leaves(before), leaves(after.batch_stats), strict=True):
        assert (old != new).any(), path


@pytest.mark.parametrize("name", CASES)
def test_state_dict_out_and_in(tmp_path, name):
    classifier = CASES[name][0](name=name)
    params, batch_stats = jax.tree.map(np.float32, scattered(classifier))
    save_torch(tmp_path / "c.pt", classifier, params, batch_stats)
    back = load_torch(tmp_path / "c.pt", classifier)
    jax.tree.map(np.testing.assert_array_equal, back, (params, batch_stats))


def test_the_names_of_the_authors_of_xcit(tmp_path):
    classifier = CASES["xcit-s12"][0](name="xcit-s12")
    params, batch_stats = jax.tree.map(np.float32, scattered(classifier))
    state = to_state_dict(classifier, params, batch_stats)
    for leaf in ("weight", "bias"):
        for block in range(2):
            name = f"cls_attn_blocks.{block}.attn"
            parts = [state.pop(f"{name}.{part}.{leaf}") for part in "qkv"]
            state[f"{name}.qkv.{leaf}"] = np.concatenate(parts)
        state[f"pos_embeder.token_projection.{leaf}"] = state.pop(
            f"pos_embed.token_projection.{leaf}"
        )
    tensors = {f"module.{name}": torch.tensor(value) for name, value in state.items()}
    torch.save({"model": tensors}, tmp_path / "c.pth.tar")
    back = load_torch(tmp_path / "c.pth.tar", classifier)
    jax.tree.map(np.testing.assert_array_equal, back, (params, batch_stats))


@pytest.mark.parametrize("name", ["imagenet-resnet-50", "convnext-t", "vit-s-convstem"])
def test_rematerialisation_and_bfloat16(name):
    """The first changes no number, the second few digits and no dtype."""
    ours = CASES[name][0]
    plain = ours(name=name)
    params, batch_stats = jax.tree.map(np.float32, scattered(plain))
    images = np.random.default_rng(0).uniform(size=(4, *plain.image_shape)).astype(np.float32)

    def logits(classifier, params):
        return classifier.apply(params, batch_stats, images, mode="running")[0]

    def squares(classifier, params):
        return jnp.square(logits(classifier, params)).sum()

    compiled = functools.partial(jax.jit, static_argnums=0, compiler_options=FAST)
    gradient, forward = compiled(jax.grad(squares, 1)), compiled(logits)
    expected = jax.device_get(gradient(plain, params))
    assert relative(gradient(ours(name=name, remat=True), params), expected) < 1e-5
    half = forward(ours(name=name, dtype="bfloat16"), params)
    assert half.dtype == jnp.float32
    assert 1e-5 < relative(half, np.asarray(forward(plain, params))) < 0.05


def deviation(values, expected):
    values = np.asarray(values).ravel()
    np.testing.assert_allclose(values.std(), expected, rtol=6 / np.sqrt(values.size))
    np.testing.assert_allclose(values.mean(), 0, atol=6 * expected / np.sqrt(values.size))


def test_they_start_as_released():
    def init(name, **options):
        return jax.jit(models.create(name, **SMALL, **options).init)(jax.random.key(0))[0]

    found = init("vit-s-convstem", width=48, heads=3, depth=1)
    deviation(found["blocks"]["0"]["attn"]["qkv"]["kernel"], 0.02)
    deviation(found["head"]["kernel"], 0.02)
    deviation(found["pos_embed"], 0.02)
    deviation(found["cls_token"], 1e-6)
    deviation(found["patch_embed"]["proj"]["conv"]["2"]["kernel"], (9 * 96 * 3) ** -0.5)
    assert not np.any(found["blocks"]["0"]["mlp"]["fc1"]["bias"])
    found = init("convnext-t", width=8)
    deviation(found["stages"]["0"]["blocks"]["0"]["conv_dw"]["kernel"], 0.02)
    deviation(found["stem"]["0"]["kernel"], 0.02)
    np.testing.assert_allclose(found["stages"]["3"]["blocks"]["0"]["gamma"], 1e-6)
    found = init("imagenet-resnet-50", width=8)
    deviation(found["layer2"]["1"]["conv2"]["kernel"], (2 / (9 * 16)) ** 0.5)
