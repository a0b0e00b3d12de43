"""Vision transformer (Dosovitskiy et al., https://arxiv.org/abs/2010.11929).

timm's definition, with its names (timm/models/vision_transformer.py): class token, learnt position
embedding, LayerNorm with epsilon 1e-6 before attention and dense layers, exact GELU. For 1000
classes at 224x224 ViT-S/16 has 22,050,664 parameters (as DeiT-S), ViT-B/16 86,567,656. Dropout
and drop path (stochastic depth) are left out: they are for training alone, and the published
robust models do without dropout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from awp_jax.checks import positive_integer
from awp_jax.models.context import Context
from awp_jax.models.conv_stem import ConvStem
from awp_jax.models.feed_forward import START, FeedForward
from awp_jax.models.initial import Initial, normal
from awp_jax.models.layers import Layers, Network


class Attention(nnx.Module):
    """Every token takes a weighted mean of all tokens' values, in each of several heads."""

    def __init__(self, make: Layers, width: int, heads: int):
        self.heads = heads
        self.qkv = make.dense(width, 3 * width, **START)
        self.proj = make.dense(width, width, **START)

    def __call__(self, x: Array) -> Array:
        """[batch, tokens, width]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        query = query * query.shape[-1] ** -0.5
        # Written out: jax.nn.dot_product_attention takes its softmax in float32 at most. Scores in
        # float32 or wider, as what they are exponents of is.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.proj(out.reshape(batch, tokens, width))


class ViTBlock(nnx.Module):
    """Attention, then two dense layers, each on a LayerNorm of what it adds to."""

    def __init__(self, make: Layers, width: int, heads: int):
        self.norm1 = make.layer_norm(width)
        self.attn = Attention(make, width, heads)
        self.norm2 = make.layer_norm(width)
        self.mlp = FeedForward(make, width)

    def __call__(self, x: Array, context: Context) -> Array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nnx.Module):
    """One vector for each patch: by one convolution, or by a ``ConvStem``."""

    def __init__(self, make: Layers, channels: int, width: int, patch: int, conv_stem: int):
        if conv_stem:
            widths = (channels, *(conv_stem * 2**i for i in range(patch.bit_length() - 1)))
            strides = (2,) * (len(widths) - 1)
            self.proj: nnx.Module = ConvStem(make, widths, strides, last=width)
        else:
            self.proj = make.conv(channels, width, patch, stride=patch, bias=True)

    def __call__(self, images: Array) -> Array:
        """[batch, height, width, channels] to [batch, patches, width]."""
        x = self.proj(images)
        return x.reshape(x.shape[0], -1, x.shape[-1])


def check_patches(image_shape: tuple[int, int, int], patch: int) -> None:
    """ValueError for images that patches of this side do not fill."""
    if image_shape[0] % patch or image_shape[1] % patch:
        raise ValueError(
            f"Height and width must be multiples of the patch, {patch}, got shape {image_shape}."
        )


def behind_token(token: nnx.Variable, x: Array) -> Array:
    """[batch, tokens, width] behind the class token, [1, 1, width]."""
    first = jnp.broadcast_to(token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
    return jnp.concatenate([first, x], axis=1)


class VisionTransformer(Network):
    """A vision transformer that classifies by its class token.

    Args:
        make: makes the layers.
        image_shape: height, width (both multiples of ``patch``), channels.
        num_classes: number of logits.
        width: of the tokens.
        heads: of attention, a divisor of ``width``.
        depth: number of blocks.
        patch: height and width of the patches, in pixels.
        conv_stem: channels of the first convolution of a ``ConvStem`` in place of patches, doubled
            by each of the next, which halve the image until patches are pixels (``patch`` is then
            a power of two); 0 for none. Singh et al. have 48 for S and B.
    """

    own_activation = "gelu"

    def __init__(
        self,
        make: Layers,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int = 384,
        heads: int = 6,
        depth: int = 12,
        patch: int = 16,
        conv_stem: int = 0,
    ):
        for value, what in ((width, "width"), (heads, "heads"), (depth, "depth"), (patch, "patch")):
            positive_integer(value, what)
        if width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, got {width}.")
        check_patches(image_shape, patch)
        if conv_stem and (patch < 2 or patch & (patch - 1)):
            raise ValueError(f"patch must be a power of two with a ConvStem, got {patch}.")
        patches = (image_shape[0] // patch) * (image_shape[1] // patch)
        self.patch_embed = PatchEmbedding(make, image_shape[-1], width, patch, conv_stem)
        # As released: the token all but zero, positions as kernels.
        self.cls_token = _parameter((1, 1, width), normal(1e-6**2))
        self.pos_embed = _parameter((1, 1 + patches, width), normal(0.02**2))
        self.blocks = nnx.List([ViTBlock(make, width, heads) for _ in range(depth)])
        self.norm = make.layer_norm(width)
        self.head = make.dense(width, num_classes, classifies=True, **START)

    def features(self, images: Array, context: Context) -> Array:
        x = behind_token(self.cls_token, self.patch_embed(images))
        x = x + self.pos_embed[...].astype(x.dtype)
        for block in self.blocks:
            x = self.run(block, x, context)
        # LayerNorm acts on each token alone, and one is wanted.
        return self.norm(x[:, 0])

    def classify(self, features: Array, context: Context) -> Array:
        return self.head(features)


def _parameter(shape: tuple[int, ...], initial: Initial) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), initial=initial)
