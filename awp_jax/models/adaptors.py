"""Classifiers from models that are not this package's: Flax linen modules and plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from awp_jax.models.classifier import Classifier, FeaturesFn, ImageShape, InitFn, Tree


def _train_argument(use_batch_statistics: bool, dropout: bool) -> dict[str, Any]:
    del dropout
    return {"train": use_batch_statistics}


def from_linen(
    module: Any,
    *,
    image_shape: ImageShape,
    num_classes: int,
    name: str | None = None,
    call_arguments: Callable[[bool, bool], dict[str, Any]] = _train_argument,
    features_method: str | Callable | None = None,
    has_dropout: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    axis_name: str | None = None,
) -> Classifier:
    """A ``Classifier`` from a ``flax.linen`` module.

    Args:
        module: maps images [batch, height, width, channels] to logits; its collections are "params"
            and, with BatchNorm, "batch_stats".
        image_shape: height, width, channels.
        num_classes: number of logits.
        name: name in messages; the module's class by default.
        call_arguments: ``call_arguments(use_batch_statistics, dropout)`` gives the keyword
            arguments of the module's call. By default ``{"train": use_batch_statistics}``; a module
            that takes none needs ``lambda *_: {}``.
        features_method: method that maps images to features [batch, d], called with the same
            keyword arguments; ``None`` when there is none.
        has_dropout: whether the module draws from the "dropout" stream when it trains.
        mean: subtracted from the images, one value per channel; empty for none.
        std: divides the images afterwards, one value per channel; empty for none.
        axis_name: mapped axis that its BatchNorm was told of, if any; see
            ``awp_jax.training.make_train_step``.

    Returns:
        The classifier. A linen module has no place for a mask: with BatchNorm and a mode that uses
        batch statistics, giving one raises ValueError. With ``has_dropout`` and the default
        ``call_arguments``, mode "batch" needs a key as well, one flag switching both. ``init``
        raises ValueError for a module with other collections.
    """
    name = name or type(module).__name__

    def init(key: Array) -> tuple[Tree, Tree]:
        # For their shape alone, and in evaluation mode, in which no stream of dropout is asked for.
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = module.init(key, images, **call_arguments(False, False))
        others = sorted(set(variables) - {"params", "batch_stats"})
        if others:
            raise ValueError(
                f"{name} has the collections {', '.join(map(repr, others))}, but a classifier "
                'carries "params" and "batch_stats" alone: keep what changes in training in '
                '"batch_stats", and constants in fields of the module.'
            )
        # Modules without parameters or without BatchNorm have no such collection.
        return variables.get("params", {}), variables.get("batch_stats", {})

    def forward(
        params: Tree,
        batch_stats: Tree,
        images: Array,
        *,
        mode: str,
        key: Array | None,
        mask: Array | None,
    ) -> tuple[Array, Tree]:
        variables = {"params": params, "batch_stats": batch_stats}
        if mode == "running":
            return module.apply(variables, images, **call_arguments(False, False)), batch_stats
        # Without BatchNorm padding touches nobody, and the mask may be forgotten.
        if mask is not None and batch_stats:
            raise ValueError(f"{name} is a linen module, whose BatchNorm takes no mask.")
        dropout = has_dropout and key is not None
        arguments = call_arguments(True, dropout)
        # One flag for batch statistics and dropout: the first would bring the second along.
        if has_dropout and key is None and arguments == call_arguments(True, True):
            raise ValueError(f'{name} has dropout that mode "{mode}" cannot turn off: give a key.')
        if key is not None and key.ndim:
            raise ValueError(f"{name} is a linen module, which takes one key for the whole batch.")
        logits, changed = module.apply(
            variables,
            images,
            **arguments,
            # In mode "batch" too, where BatchNorm insists on writing; `Classifier.apply` drops it.
            mutable=["batch_stats"],
            rngs={"dropout": key} if dropout else None,
        )
        return logits, changed.get("batch_stats", batch_stats)

    def features(params: Tree, batch_stats: Tree, images: Array) -> Array:
        variables = {"params": params, "batch_stats": batch_stats}
        arguments = call_arguments(False, False)
        return module.apply(variables, images, **arguments, method=features_method)

    return Classifier(
        name=name,
        num_classes=num_classes,
        image_shape=image_shape,
        init_fn=init,
        forward_fn=forward,
        features_fn=None if features_method is None else features,
        has_dropout=has_dropout,
        takes_mask=False,
        mean=mean,
        std=std,
        axis_name=axis_name,
    )


def from_callable(
    apply_fn: Callable[..., Any],
    init_fn: Callable[[Array], Any],
    *,
    image_shape: ImageShape,
    num_classes: int,
    name: str = "callable",
    stateful: bool = False,
    features_fn: Callable[..., Array] | None = None,
    has_dropout: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    axis_name: str | None = None,
) -> Classifier:
    """A ``Classifier`` from plain functions.

    Args:
        apply_fn: ``apply_fn(params, images) -> logits``; with ``stateful=True`` the whole contract,
            ``apply_fn(params, batch_stats, images, *, mode, key, mask) -> (logits,
            new_batch_stats)``.
        init_fn: ``init_fn(key) -> params``; with ``stateful=True``, ``-> (params, batch_stats)``.
        image_shape: height, width, channels.
        num_classes: number of logits.
        name: name in messages.
        stateful: which of the two forms the functions have.
        features_fn: ``features_fn(params, images) -> features`` of shape [batch, d], or with
            ``stateful=True``, ``features_fn(params, batch_stats, images)``; ``None`` when there is
            none.
        has_dropout: whether mode "update" needs a key; only with ``stateful=True``.
        mean: subtracted from the images, one value per channel; empty for none.
        std: divides the images afterwards, one value per channel; empty for none.
        axis_name: mapped axis that its BatchNorm was told of, if any; see
            ``awp_jax.training.make_train_step``.

    Returns:
        The classifier.

    Raises:
        ValueError: for ``has_dropout`` without ``stateful``.
    """
    if has_dropout and not stateful:
        raise ValueError("has_dropout needs stateful=True: apply_fn(params, images) gets no key.")

    def init(key: Array) -> tuple[Tree, Tree]:
        return init_fn(key), {}

    # Mode, key and mask say nothing to a function without statistics and dropout.
    def forward(params: Tree, batch_stats: Tree, images: Array, **_: Any) -> tuple[Array, Tree]:
        return apply_fn(params, images), batch_stats

    def features(params: Tree, batch_stats: Tree, images: Array) -> Array:
        assert features_fn is not None
        return features_fn(params, images)

    stateless_features: FeaturesFn | None = None if features_fn is None else features
    chosen_init: InitFn = init_fn if stateful else init
    return Classifier(
        name=name,
        num_classes=num_classes,
        image_shape=image_shape,
        init_fn=chosen_init,
        forward_fn=apply_fn if stateful else forward,
        features_fn=features_fn if stateful else stateless_features,
        has_dropout=has_dropout,
        mean=mean,
        std=std,
        axis_name=axis_name,
    )
