"""The one interface through which everything else sees a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from awp_jax.checks import choice, positive_integer
from awp_jax.models.context import MODES
from awp_jax.random import check_key

Tree = dict[str, Any]
ImageShape = tuple[int, int, int]
InitFn = Callable[[Array], tuple[Tree, Tree]]
ForwardFn = Callable[..., tuple[Array, Tree]]
FeaturesFn = Callable[[Tree, Tree, Array], Array]


def check_sizes(image_shape: ImageShape, num_classes: int) -> ImageShape:
    """The image shape as a tuple of integers, or ValueError."""
    positive_integer(num_classes, "num_classes")
    shape = tuple(image_shape)
    if len(shape) != 3:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}.")
    height, width, channels = (positive_integer(size, "a size of image_shape") for size in shape)
    return height, width, channels


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """An architecture bound to pure functions of its parameters.

    Made by ``create``, ``from_network``, ``from_linen`` or ``from_callable``. It holds no arrays,
    is hashable, and equals only itself, so it can be a static argument of ``jax.jit``.

    Parameters and BatchNorm statistics are plain nested dicts with string keys; ``batch_stats`` is
    ``{}`` where there is no BatchNorm. Dtypes follow the parameters: cast them to float64 and
    everything is computed in float64.

    Attributes:
        name: name of the architecture, as in ``names``.
        num_classes: number of logits.
        image_shape: height, width, channels.
        init_fn: ``init_fn(key) -> (params, batch_stats)``.
        forward_fn: ``forward_fn(params, batch_stats, images, *, mode, key, mask)``, which returns
            ``(logits, new_batch_stats)``, without the checks that ``apply`` makes.
        features_fn: ``features_fn(params, batch_stats, images) -> features``, or ``None``.
        auxiliary_fn: as ``forward_fn`` without mask, for a second head; ``None`` without one.
        nnx_fn: ``nnx_fn(params, batch_stats)`` is the network as a Flax NNX module; ``None`` where
            it is none.
        has_dropout: whether ``apply`` with mode "update" needs a key.
        is_random: whether every pass draws from a key, also at test (see
            ``with_parametric_noise``).
        mean: subtracted from the images, one value per channel; empty for none.
        std: divides the images afterwards, one value per channel; empty for none.
        axis_name: mapped axis over which BatchNorm takes its statistics; ``None`` for none.
        takes_mask: whether BatchNorm can leave padding out; where not, the trainer does not fill
            up the smaller last batch of an epoch, and compiles a step for it.
    """

    name: str
    num_classes: int
    image_shape: ImageShape
    init_fn: InitFn = dataclasses.field(repr=False)
    forward_fn: ForwardFn = dataclasses.field(repr=False)
    features_fn: FeaturesFn | None = dataclasses.field(default=None, repr=False)
    auxiliary_fn: ForwardFn | None = dataclasses.field(default=None, repr=False)
    nnx_fn: Callable[[Tree, Tree], Any] | None = dataclasses.field(default=None, repr=False)
    cast_fn: Callable[[Tree], Tree] | None = dataclasses.field(default=None, repr=False)
    has_dropout: bool = False
    is_random: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    axis_name: str | None = None
    takes_mask: bool = True

    def __post_init__(self):
        shape = check_sizes(self.image_shape, self.num_classes)
        object.__setattr__(self, "image_shape", shape)
        for what in ("mean", "std"):
            # Plain numbers: a classifier holds no arrays.
            values = tuple(float(value) for value in getattr(self, what) or ())
            if values and len(values) != shape[-1]:
                raise ValueError(
                    f"{what} needs one value per channel ({shape[-1]}), got {len(values)}."
                )
            object.__setattr__(self, what, values)
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}.")

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """Fresh parameters and BatchNorm statistics.

        Args:
            key: typed PRNG key, ``jax.random.key(seed)``.

        Returns:
            ``(params, batch_stats)``, nested dicts of float32 arrays. Works under ``jax.jit`` and
            ``jax.eval_shape``.
        """
        return self.init_fn(key)

    def apply(
        self,
        params: Tree,
        batch_stats: Tree,
        images: Array,
        *,
        mode: str,
        key: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, Tree]:
        """Logits of ``images``, and the BatchNorm statistics afterwards.

        Args:
            params: as ``init`` returns them.
            batch_stats: as ``init`` returns them.
            images: floating [batch, height, width, channels] in [0, 1].
            mode: "running" uses the running statistics and no dropout; "batch" uses those of the
                batch and returns ``batch_stats`` as they came; "update" uses those of the batch and
                moves the running ones.
            key: for dropout and for randomised models: a typed PRNG key, folded by the position of
                the example in the batch, or one per example (shape [batch]). Without it "batch"
                has no dropout.
            mask: bool [batch], the examples that count for BatchNorm statistics (False for
                padding); ``None`` for all.

        Returns:
            ``(logits, new_batch_stats)``; logits are [batch, num_classes] in the parameters' dtype.

        Raises:
            ValueError: for an unknown mode, a wrong shape or dtype, or no key where the model is
                randomised, or has dropout and the mode is "update".
        """
        choice(mode, MODES, "mode")
        self._check_images(images)
        batch = images.shape[0]
        if mask is not None and (mask.shape != (batch,) or mask.dtype != jnp.bool_):
            raise ValueError(f"mask must be bool [{batch}], got {mask.dtype} {list(mask.shape)}.")
        if key is not None:
            check_key(key)
        if key is not None and key.shape not in ((), (batch,)):
            raise ValueError(
                f"key must be one typed key or [{batch}] of them, got shape {list(key.shape)}."
            )
        if self.is_random and key is None:
            raise ValueError(f"{self.name} is randomised: every pass needs a key.")
        if mode == "update" and self.has_dropout and key is None:
            raise ValueError(f'{self.name} has dropout: mode "update" needs a key.')
        # Normalised in the parameters' dtype; layers go over to their compute dtype themselves.
        dtype = _dtype(params)
        logits, new_batch_stats = self.forward_fn(
            params, batch_stats, self._normalise(images, dtype), mode=mode, key=key, mask=mask
        )
        # Whatever the model's function has done to them: only "update" moves statistics.
        if mode != "update":
            new_batch_stats = batch_stats
        # Losses and margins are differences of logits, and are taken in the wider dtype.
        return logits.astype(dtype), new_batch_stats

    def in_compute_dtype(self, params: Tree) -> Tree:
        """Parameters as the layers compute with them: the same numbers from ``apply``.

        What each layer would cast in every pass is cast once: for loops that leave the parameters
        alone, from which XLA does not move a cast.

        Args:
            params: as ``init`` returns them.

        Returns:
            The same tree; where nothing is cast, ``params`` itself.
        """
        return params if self.cast_fn is None else self.cast_fn(params)

    def features(self, params: Tree, batch_stats: Tree, images: Array) -> Array:
        """Penultimate features of ``images``, in mode "running".

        Args:
            params: as ``init`` returns them.
            batch_stats: as ``init`` returns them.
            images: floating [batch, height, width, channels] in [0, 1].

        Returns:
            [batch, d] in the parameters' dtype.

        Raises:
            ValueError: for a wrong shape or dtype, or when the model was given no features.
        """
        self._check_images(images)
        if self.features_fn is None:
            raise ValueError(f"{self.name} was made without a function for its features.")
        dtype = _dtype(params)
        images = self._normalise(images, dtype)
        return self.features_fn(params, batch_stats, images).astype(dtype)

    def auxiliary(
        self,
        params: Tree,
        batch_stats: Tree,
        images: Array,
        *,
        mode: str,
        key: Array | None = None,
    ) -> tuple[Array, Tree]:
        """Logits of the auxiliary head (``create(..., auxiliary=n)``), as ``apply``.

        Args:
            params: as ``init`` returns them.
            batch_stats: as ``init`` returns them.
            images: floating [batch, height, width, channels] in [0, 1].
            mode: see ``apply``.
            key: for dropout, see ``apply``.

        Returns:
            ``(logits, new_batch_stats)``; logits are [batch, n] in the parameters' dtype.

        Raises:
            ValueError: for an unknown mode, a wrong shape or dtype, or when there is no such head.
        """
        choice(mode, MODES, "mode")
        self._check_images(images)
        if self.auxiliary_fn is None:
            raise ValueError(f"{self.name} was made without an auxiliary head.")
        dtype = _dtype(params)
        logits, new_batch_stats = self.auxiliary_fn(
            params, batch_stats, self._normalise(images, dtype), mode=mode, key=key
        )
        return logits.astype(dtype), new_batch_stats if mode == "update" else batch_stats

    def as_nnx(self, params: Tree, batch_stats: Tree) -> Any:
        """The network with these weights as a Flax NNX module: ``module(images) -> logits``.

        It runs on running statistics and without dropout, on images that are normalised already:
        ``(images - mean) / std`` where the classifier has a mean.

        Args:
            params: as ``init`` returns them.
            batch_stats: as ``init`` returns them.

        Raises:
            ValueError: for an architecture that is no NNX module, and for parametric noise.
        """
        if self.nnx_fn is None or self.is_random:
            raise ValueError(f"{self.name} is no Flax NNX module.")
        return self.nnx_fn(params, batch_stats)

    def logits_fn(
        self, params: Tree, batch_stats: Tree, mode: str = "running"
    ) -> jax.tree_util.Partial:
        """What an attack needs: a function of images alone.

        The result is itself a pytree with ``params`` and ``batch_stats`` as leaves: it passes
        through ``jax.jit`` as an argument, and other parameters of the same model do not compile
        again.

        Args:
            params: as ``init`` returns them.
            batch_stats: as ``init`` returns them.
            mode: "running" or "batch", see ``apply``.

        Returns:
            ``logits_fn(images, key=None) -> logits``; the key is for dropout in mode "batch", and
            needed by randomised models.

        Raises:
            ValueError: for another mode.
        """
        choice(mode, ("running", "batch"), "mode")
        # What is static compares by value, and what is trained are leaves: one compilation for all.
        return jax.tree_util.Partial(_LogitsFunction(self, mode), params, batch_stats)

    def apply_fn(self, batch_stats: Tree) -> jax.tree_util.Partial:
        """What an analysis of the weights needs: a function of parameters and images.

        Args:
            batch_stats: as ``init`` returns them; the running statistics are used as they are.

        Returns:
            ``apply_fn(params, images) -> logits``, a pytree with ``batch_stats`` as leaves.
        """
        return jax.tree_util.Partial(_ApplyFunction(self), batch_stats)

    def _check_images(self, images: Array) -> None:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"{self.name} takes images of shape [batch, {expected}], got {list(images.shape)}."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floating, in [0, 1], got {images.dtype}.")

    def _normalise(self, images: Array, dtype: Any) -> Array:
        per_channel = (1, 1, 1, -1)
        # Normalisation belongs to the model: attacks and balls see pixels in [0, 1].
        images = jnp.asarray(images).astype(dtype)
        if self.mean:
            images = images - jnp.asarray(self.mean, dtype).reshape(per_channel)
        if self.std:
            images = images / jnp.asarray(self.std, dtype).reshape(per_channel)
        return images


@dataclasses.dataclass(frozen=True)
class _LogitsFunction:
    """The static part of ``logits_fn``: compares by value, so that ``jax.jit`` finds its cache."""

    classifier: Classifier
    mode: str

    def __call__(
        self, params: Tree, batch_stats: Tree, images: Array, key: Array | None = None
    ) -> Array:
        return self.classifier.apply(params, batch_stats, images, mode=self.mode, key=key)[0]

    @property
    def features_fn(self) -> Callable[[Tree, Tree, Array], Array] | None:
        """The features, called like the logits: what the feature attack looks for."""
        # None and no function that fails: the attack asks first, and says what is missing.
        known = self.classifier.features_fn is not None
        return _FeaturesFunction(self.classifier) if known else None


@dataclasses.dataclass(frozen=True)
class _FeaturesFunction:
    """As ``_LogitsFunction``, for the features."""

    classifier: Classifier

    def __call__(self, params: Tree, batch_stats: Tree, images: Array) -> Array:
        return self.classifier.features(params, batch_stats, images)


@dataclasses.dataclass(frozen=True)
class _ApplyFunction:
    """The static part of ``apply_fn``."""

    classifier: Classifier

    # Statistics first, because a Partial binds its arguments from the left.
    def __call__(self, batch_stats: Tree, params: Tree, images: Array) -> Array:
        return self.classifier.apply(params, batch_stats, images, mode="running")[0]


def _dtype(params: Tree) -> Any:
    """The common dtype of the parameters."""
    leaves = jax.tree.leaves(params)
    return jnp.result_type(*leaves) if leaves else jnp.dtype(jnp.float32)
