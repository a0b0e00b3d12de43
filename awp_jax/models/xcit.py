"""XCiT, whose attention is between channels (El-Nouby et al., https://arxiv.org/abs/2106.09681).

timm's definition, with its names (timm/models/xcit.py): patches by four 3x3 convolutions with
BatchNorm, positions from sines and cosines, attention between the channels of each head, two
depthwise 3x3 convolutions between pixels, and two blocks in which the class token alone attends.
Debenedetti et al. 2022 (https://arxiv.org/abs/2209.07399) trained S12, M12 and L12 robustly, for
small images with patches of 4x4. For 1000 classes XCiT-S12 has 26,253,304 parameters, at any size
of images. Dropout and drop path (stochastic depth) are left out: they are for training alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from awp_jax.checks import positive_integer
from awp_jax.models.context import Context
from awp_jax.models.feed_forward import START, FeedForward
from awp_jax.models.initial import ONES, normal
from awp_jax.models.layer_norm import along_last
from awp_jax.models.layers import Layers, Network
from awp_jax.models.vit import behind_token, check_patches

# Strides of the four convolutions; for 4x4 as RobustBench changes those of 16x16.
_STRIDES = {16: (2, 2, 2, 2), 4: (1, 1, 2, 2)}
_FREQUENCIES = 32  # of the positions along each axis


class ConvPatches(nnx.Module):
    """Four 3x3 convolutions with BatchNorm, and the activation between."""

    def __init__(self, make: Layers, channels: int, width: int, patch: int):
        widths = (channels, width // 8, width // 4, width // 2, width)
        sizes = zip(widths[:-1], widths[1:], _STRIDES[patch], strict=True)
        self.activation = make.activate()
        self.conv = nnx.List(
            [make.conv(inputs, outputs, 3, stride=s, padding=1) for inputs, outputs, s in sizes]
        )
        self.norm = nnx.List([make.batch_norm(outputs) for outputs in widths[1:]])

    def __call__(self, x: Array, context: Context) -> Array:
        for index, (conv, norm) in enumerate(zip(self.conv, self.norm, strict=True)):
            x = norm(conv(self.activation(x) if index else x), context)
        return x


class PatchEmbedding(nnx.Module):
    """Holds the convolutions under timm's name."""

    def __init__(self, make: Layers, channels: int, width: int, patch: int):
        self.proj = ConvPatches(make, channels, width, patch)


class FourierPositions(nnx.Module):
    """One vector for each place: a dense layer on sines and cosines of its row and column."""

    def __init__(self, make: Layers, width: int):
        self.token_projection = make.conv(2 * _FREQUENCIES, width, 1, bias=True)

    def __call__(self, x: Array) -> Array:
        """[1, height, width, channels], of the height and width of ``x``."""
        rows, columns = (_waves(size) for size in x.shape[1:3])
        shape = (len(rows), len(columns), _FREQUENCIES)
        rows = np.broadcast_to(rows[:, None], shape)
        columns = np.broadcast_to(columns[None], shape)
        waves = np.concatenate([rows, columns], axis=-1)[None]
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return self.token_projection(jnp.asarray(waves, dtype)).astype(x.dtype)


def _waves(size: int) -> np.ndarray:
    """Sine and cosine in turns, [size, frequencies], of places that end at one whole turn."""
    places = 2 * np.pi * np.arange(1, size + 1) / (size + 1e-6)
    exponents = 2 * (np.arange(_FREQUENCIES) // 2) / _FREQUENCIES
    angles = places[:, None] / 10_000.0 ** exponents[None]
    return np.where(np.arange(_FREQUENCIES)[None] % 2 == 0, np.sin(angles), np.cos(angles))


class ChannelAttention(nnx.Module):
    """Every channel of a head takes a weighted mean of the head's channels' values.

    Weights are a softmax of cosines between channels, over all places, times a temperature.
    """

    def __init__(self, make: Layers, width: int, heads: int):
        self.heads = heads
        self.temperature = nnx.Param(jnp.ones((heads, 1, 1), jnp.float32), initial=ONES)
        self.qkv = make.dense(width, 3 * width, **START)
        self.proj = make.dense(width, width, **START)

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, channels]."""
        batch, *_, width = x.shape
        qkv = self.qkv(x).reshape(batch, -1, 3, self.heads, width // self.heads)
        query, key, value = _normalised(qkv[:, :, 0]), _normalised(qkv[:, :, 1]), qkv[:, :, 2]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum("bnhd,bnhe->bhde", query, key, preferred_element_type=wide)
        scores = scores * self.temperature[...].astype(wide)[None]
        weights = jax.nn.softmax(scores).astype(x.dtype)
        return self.proj(jnp.einsum("bhde,bnhe->bnhd", weights, value).reshape(x.shape))


def _normalised(x: Array) -> Array:
    """[batch, places, heads, channels], of length 1 over the places."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # PyTorch's smallest length is 1e-12.
    squares = jnp.maximum(jnp.square(wide).sum(1, keepdims=True), 1e-24)
    return (wide * lax.rsqrt(squares)).astype(x.dtype)


class LocalInteraction(nnx.Module):
    """Depthwise 3x3 convolution, activation, BatchNorm, depthwise 3x3 convolution."""

    def __init__(self, make: Layers, width: int):
        self.activation = make.activate()
        self.conv1 = make.conv(width, width, 3, padding=1, groups=width, bias=True)
        self.bn = make.batch_norm(width)
        self.conv2 = make.conv(width, width, 3, padding=1, groups=width, bias=True)

    def __call__(self, x: Array, context: Context) -> Array:
        return self.conv2(self.bn(self.activation(self.conv1(x)), context))


class XCiTBlock(nnx.Module):
    """Attention between channels, local interaction, dense layers; a layer scale on each."""

    def __init__(self, make: Layers, width: int, heads: int):
        self.norm1 = make.layer_norm(width)
        self.attn = ChannelAttention(make, width, heads)
        self.norm3 = make.layer_norm(width)
        self.local_mp = LocalInteraction(make, width)
        self.norm2 = make.layer_norm(width)
        self.mlp = FeedForward(make, width)
        self.gamma1, self.gamma2, self.gamma3 = (_layer_scale(width) for _ in range(3))

    def __call__(self, x: Array, context: Context) -> Array:
        x = x + _scaled(self.gamma1, self.attn(self.norm1(x)))
        x = x + _scaled(self.gamma3, self.local_mp(self.norm3(x), context))
        return x + _scaled(self.gamma2, self.mlp(self.norm2(x)))


class ClassAttention(nnx.Module):
    """What the first token takes of the values of all tokens."""

    def __init__(self, make: Layers, width: int, heads: int):
        self.heads = heads
        self.q = make.dense(width, width, **START)
        self.k = make.dense(width, width, **START)
        self.v = make.dense(width, width, **START)
        self.proj = make.dense(width, width, **START)

    def __call__(self, x: Array) -> Array:
        """[batch, tokens, width] to [batch, 1, width]."""
        batch, tokens, width = x.shape
        head = width // self.heads
        query = self.q(x[:, 0]).reshape(batch, self.heads, head) * head**-0.5
        key = self.k(x).reshape(batch, tokens, self.heads, head)
        value = self.v(x).reshape(batch, tokens, self.heads, head)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum("bhd,bkhd->bhk", query, key, preferred_element_type=wide)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        return self.proj(jnp.einsum("bhk,bkhd->bhd", weights, value).reshape(batch, 1, width))


class ClassAttentionBlock(nnx.Module):
    """Attention of the class token and dense layers on it, on LayerNorms of all tokens."""

    def __init__(self, make: Layers, width: int, heads: int):
        self.norm1 = make.layer_norm(width)
        self.attn = ClassAttention(make, width, heads)
        self.norm2 = make.layer_norm(width)
        self.mlp = FeedForward(make, width)
        self.gamma1, self.gamma2 = _layer_scale(width), _layer_scale(width)

    def __call__(self, x: Array, context: Context) -> Array:
        normalised = self.norm1(x)
        attended = jnp.concatenate([self.attn(normalised), normalised[:, 1:]], axis=1)
        x = self.norm2(x + _scaled(self.gamma1, attended))
        token = _scaled(self.gamma2, self.mlp(x[:, :1]))
        # As released: what the dense layers leave alone counts twice.
        return x + jnp.concatenate([token, x[:, 1:]], axis=1)


class XCiT(Network):
    """An XCiT that classifies by its class token.

    Args:
        make: makes the layers.
        image_shape: height, width (both multiples of ``patch``), channels.
        num_classes: number of logits.
        width: of the tokens, a multiple of 8 and of ``heads``.
        heads: of attention.
        depth: number of blocks, before the two of the class token.
        patch: height and width of the patches in pixels, 16 or 4.
    """

    own_activation = "gelu"

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int = 384,
        heads: int = 8,
        depth: int = 12,
        patch: int = 16,
    ):
        if patch not in _STRIDES:
            raise ValueError(f"XCiT has patches of 16 or 4 pixels, got {patch}.")
        for value, what in ((width, "width"), (heads, "heads"), (depth, "depth")):
            positive_integer(value, what)
        if width % heads or width % 8:
            raise ValueError(
                f"width must be a multiple of 8 and of the {heads} heads, got {width}."
            )
        check_patches(image_shape, patch)
        self.patch_embed = PatchEmbedding(make, image_shape[-1], width, patch)
        token = jnp.zeros((1, 1, width), jnp.float32)
        self.cls_token = nnx.Param(token, initial=normal(0.02**2))
        self.pos_embed = FourierPositions(make, width)
        self.blocks = nnx.List([XCiTBlock(make, width, heads) for _ in range(depth)])
        self.cls_attn_blocks = nnx.List([ClassAttentionBlock(make, width, heads) for _ in range(2)])
        self.norm = make.layer_norm(width)
        self.head = make.dense(width, num_classes, classifies=True, **START)

    def features(self, images: Array, context: Context) -> Array:
        x = self.patch_embed.proj(images, context)
        x = x + self.pos_embed(x)
        for block in self.blocks:
            x = self.run(block, x, context)
        x = behind_token(self.cls_token, x.reshape(x.shape[0], -1, x.shape[-1]))
        for last in self.cls_attn_blocks:
            x = self.run(last, x, context)
        return self.norm(x[:, 0])

    def classify(self, features: Array, context: Context) -> Array:
        return self.head(features)


def _layer_scale(width: int) -> nnx.Param:
    # 1 at the start, as timm has for all networks of 12 blocks.
    return nnx.Param(jnp.ones((width,), jnp.float32), initial=ONES)


def _scaled(gamma: nnx.Param, x: Array) -> Array:
    return along_last(gamma, x) * x
