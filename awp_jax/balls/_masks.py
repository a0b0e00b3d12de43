"""Which weights a perturbation moves: masks by shape, by name, or as they are."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.pytrees import is_function
from awp_jax.typing import Params

# What people leave out in practice, in the names of linen, NNX, Equinox, Haiku and timm.
EMBEDDINGS = ("*embed*", "*wte*", "*wpe*", "*token*", "*position*")
NORMALISATIONS = ("*norm*", "*bn[0-9]*", "*/bn/*", "*ln_*", "*/ln/*", "*/ln[0-9]*", "*scale")
BIASES = ("*bias", "*/b")


# Learnt positions, also relative ones, and learnt tokens, in the names of timm and linen.
_POSITIONS = re.compile(r"(^|_)(pos|positions?|positional|posemb[a-z]*)(_|$)")
_TOKENS = re.compile(r"(^|_)tokens?$")


def path_name(path: tuple[Any, ...]) -> str:
    """A path as text: ``"hidden/kernel"``. The value inside a Flax NNX variable has no name."""
    last = path[-1] if path else None
    if len(path) > 1 and isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def kernels_only(params: Params) -> Any:
    """The default mask of AWP: convolution and dense kernels.

    The released code moves what has more than one axis (csdongxian/AWP, ``utils_awp.py``), which
    in PyTorch leaves BatchNorm and all biases alone. Here a bias may have several axes (that of
    Equinox's convolutions has three, that of attention in Flax two), so names count too: leaves
    called bias, scale or offset stay, and so do learnt positions and tokens (``pos_embed``,
    ``position_embeddings/embedding``, ``cls_token``), which are no kernels although they have
    several axes; those called kernel, weight or w move when they have more than one axis; others
    need two axes, or more of which two are longer than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import kernels_only
        >>> kernels_only({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
        {'dense': {'bias': False, 'kernel': True}}
    """
    return _mapped(_is_kernel, params)


def _is_kernel(name: str, leaf: Any) -> bool:
    shape, (*modules, last) = jnp.shape(leaf), name.lower().split("/")
    if len(shape) < 2 or last in ("bias", "scale", "offset"):
        return False
    # A table of words may be called tokens, too; what is learnt for all inputs begins with a 1.
    if _POSITIONS.search(last) or (shape[0] == 1 and _TOKENS.search(last)):
        return False
    # A table that a module of its own looks positions up in.
    if modules and last in ("embedding", "weight") and _POSITIONS.search(modules[-1]):
        return False
    named = last in ("kernel", "weight", "w")
    return named or len(shape) == 2 or sum(length > 1 for length in shape) > 1


def everything(params: Params) -> Any:
    """The mask of SAM: every leaf, biases and normalisation too.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import everything
        >>> everything({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
        {'bias': True, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: True, params)


def matching(*patterns: str) -> Callable[[Any], Any]:
    """A mask of the leaves whose path fits one of some shell patterns.

    Args:
        *patterns: Such as ``"encoder/*/kernel"``; ``*`` goes across slashes, capitals count. A path
            is what ``jax.tree_util.keystr(path, simple=True, separator="/")`` gives.

    Returns:
        A function from parameters to a pytree of bools, for ``WeightBall(mask=...)``. It raises
        ``ValueError`` where a pattern fits no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import matching
        >>> matching("head/*")({"body": jnp.ones(2), "head": {"kernel": jnp.ones((2, 2))}})
        {'body': False, 'head': {'kernel': True}}
    """
    _check_patterns(patterns)

    def mask(params: Params) -> Any:
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                few = ", ".join(names[:5])
                raise ValueError(
                    f"The mask {pattern!r} fits none of {len(names)} leaves: {few} ..."
                )
        return _mapped(lambda name, _: _fits(name, patterns), params)

    return mask


def kernels_without(*patterns: str) -> Callable[[Any], Any]:
    """``kernels_only``, less the leaves whose path fits one of some shell patterns.

    Args:
        *patterns: As in ``matching``; ``EMBEDDINGS``, ``NORMALISATIONS`` and ``BIASES`` hold those
            for what people leave out: ``kernels_without(*EMBEDDINGS, "head/*")``. A pattern may fit
            nothing, and small letters in it stand for capitals too.

    Returns:
        A function from parameters to a pytree of bools, for ``WeightBall(mask=...)``.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.balls import EMBEDDINGS, kernels_without
        >>> weights = {"Embed_0": jnp.ones((9, 4)), "Dense_0": jnp.ones((4, 2))}
        >>> kernels_without(*EMBEDDINGS)(weights)
        {'Dense_0': True, 'Embed_0': False}
    """
    _check_patterns(patterns)

    def mask(params: Params) -> Any:
        return _mapped(
            lambda name, leaf: _is_kernel(name, leaf) and not _fits(name.lower(), patterns), params
        )

    return mask


def _check_patterns(patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"A pattern is {pattern!r}, but text such as 'head/*' was expected: give several "
                "as matching(*patterns)."
            )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _mapped(function: Callable[[str, Any], bool], params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), params
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Mask:
    """A pytree of bools, or a prefix of one, as a constant that ``jit`` can compare.

    Attributes:
        structure: Of the pytree.
        keep: Its leaves.
    """

    structure: Any
    keep: tuple[bool, ...]

    def __call__(self, params: Params) -> Any:
        """The mask as a pytree; ``params`` only have to fit."""
        del params
        return jax.tree.unflatten(self.structure, self.keep)


def as_mask(mask: Any) -> Callable[[Any], Any]:
    """A mask in any of its forms as a function from the parameters to a pytree of bools.

    Args:
        mask: ``None`` for ``kernels_only``, a function, a shell pattern or several of them, or a
            pytree of bools.

    Raises:
        ValueError: For anything else.
    """
    if mask is None:
        return kernels_only
    leaves, structure = jax.tree.flatten(mask)
    bools = bool(leaves) and all(isinstance(leaf, bool | np.bool_) for leaf in leaves)
    # A tree of bools may be callable too: a module of Equinox.
    if not bools and (is_function(mask) or isinstance(mask, Mask)):
        return mask
    patterns = (mask,) if isinstance(mask, str) else mask
    if isinstance(patterns, tuple | list) and patterns and isinstance(patterns[0], str):
        return matching(*patterns)
    for leaf in leaves:
        if not isinstance(leaf, bool | np.bool_):
            raise ValueError(
                f"mask holds {leaf!r}, but a pytree of True and False, a function from the "
                "parameters to one, or a pattern of paths was expected."
            )
    return Mask(structure, tuple(bool(leaf) for leaf in leaves))
