"""A Classifier from any Flax NNX module, and from whatever a user's own function returns."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from awp_jax.models.adaptors import from_linen
from awp_jax.models.classifier import Classifier, ImageShape, Tree
from awp_jax.models.nnx_classifier import Labels


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    image_shape: ImageShape,
    num_classes: int,
    name: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Classifier:
    """A ``Classifier`` from any ``flax.nnx`` module.

    BatchNorm and dropout are switched by the attributes ``use_running_average`` and
    ``deterministic`` that Flax's own layers have, and by the argument ``train``, ``training`` or
    ``deterministic`` where the module's call takes one. Layers that draw random numbers draw them
    from the key of the pass.

    Args:
        module: maps images [batch, height, width, channels] to logits; a module, whose arrays are
            then how training starts whatever the seed, or a function ``rngs -> module``.
        image_shape: height, width, channels.
        num_classes: number of logits.
        name: name in messages; the module's class by default.
        mean: subtracted from the images, one value per channel; empty for none.
        std: divides the images afterwards, one value per channel; empty for none.

    Returns:
        The classifier. Other modules' BatchNorm takes no mask: see ``Classifier.takes_mask``.

    Raises:
        ValueError: for a module with variables other than ``nnx.Param``, ``nnx.BatchStat`` and
            random state.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from awp_jax import models
        >>> class Net(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.dense = nnx.Linear(64, 10, rngs=rngs)
        ...     def __call__(self, images):
        ...         return self.dense(images.reshape(len(images), -1))
        >>> model = models.from_nnx(Net, image_shape=(8, 8, 1), num_classes=10)
        >>> params, batch_stats = model.init(jax.random.key(0))
        >>> params["dense"]["kernel"].shape
        (64, 10)
    """
    whole = isinstance(module, nnx.Module)

    def build(key: Array) -> Any:
        return module if whole else module(nnx.Rngs(key))  # type: ignore[operator]

    abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
    name = name or type(abstract).__name__
    others: Any = nnx.split(abstract, nnx.Param, nnx.BatchStat, nnx.RngState, ...)[-1]
    strange = jax.tree.leaves(others, is_leaf=lambda v: isinstance(v, nnx.Variable))
    if strange:
        raise ValueError(
            f"{name} holds a {type(strange[0]).__name__}, but a classifier carries nnx.Param and "
            "nnx.BatchStat alone: keep what changes in training in nnx.BatchStat."
        )

    def split(network: Any) -> Any:
        return nnx.split(network, nnx.Param, nnx.BatchStat, nnx.RngState)

    graphdef, params_state, stats_state, random_state = split(abstract)
    params_labels = Labels("params", params_state)
    stats_labels = Labels("batch_stats", stats_state)
    has_dropout = bool(jax.tree.leaves(random_state))
    call_arguments = train_arguments(type(abstract).__call__)

    def init(key: Array) -> tuple[Tree, Tree]:
        _, params, batch_stats, _ = split(build(key))
        return params_labels.nested(params), stats_labels.nested(batch_stats)

    def merge(params: Tree, batch_stats: Tree, key: Array | None = None) -> Any:
        return nnx.merge(
            graphdef,
            params_labels.state(params),
            stats_labels.state(batch_stats),
            _seeded(random_state, jax.random.key(0) if key is None else key),
        )

    def forward(
        params: Tree,
        batch_stats: Tree,
        images: Array,
        *,
        mode: str,
        key: Array | None,
        mask: Array | None,
    ) -> tuple[Array, Tree]:
        if mask is not None and batch_stats:
            raise ValueError(f"BatchNorm of {name} takes no mask.")
        if key is not None and key.ndim:
            raise ValueError(f"{name} takes one key for the whole batch.")
        learns = mode != "running"
        dropout = learns and has_dropout and key is not None
        network = nnx.view(
            merge(params, batch_stats, key),
            raise_if_not_found=False,
            use_running_average=not learns,
            deterministic=not dropout,
        )
        logits = network(images, **call_arguments(learns, dropout))
        return logits, stats_labels.nested(nnx.state(network, nnx.BatchStat))

    return Classifier(
        name=name,
        num_classes=num_classes,
        image_shape=image_shape,
        init_fn=init,
        forward_fn=forward,
        nnx_fn=merge,
        has_dropout=has_dropout,
        takes_mask=not stats_labels.paths,
        mean=mean,
        std=std,
    )


def _seeded(state: nnx.State, key: Array) -> nnx.State:
    """Random state that begins at ``key``: every stream with a key of its own, counts at zero."""
    leaves, treedef = jax.tree.flatten(state)
    fresh = [
        jax.random.fold_in(key, place)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, fresh)


def train_arguments(function: Callable[..., Any]) -> Callable[[bool, bool], dict[str, Any]]:
    """How a module's call is told to train: the arguments that its signature names.

    Args:
        function: The call.

    Returns:
        ``(use_batch_statistics, dropout) -> keyword arguments``.
    """
    names = inspect.signature(function).parameters

    def arguments(use_batch_statistics: bool, dropout: bool) -> dict[str, Any]:
        # One flag for both follows the statistics, as everywhere in Flax's examples.
        alone = "use_running_average" not in names
        values = {
            "train": use_batch_statistics,
            "training": use_batch_statistics,
            "is_training": use_batch_statistics,
            "use_running_average": not use_batch_statistics,
            "deterministic": not (use_batch_statistics if alone else dropout),
        }
        return {name: value for name, value in values.items() if name in names}

    return arguments


def as_classifier(
    model: Any,
    *,
    image_shape: ImageShape,
    num_classes: int,
    name: str,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Classifier:
    """What a user's own function returned, as a ``Classifier``.

    Args:
        model: A ``Classifier``, an ``nnx.Module``, a function ``rngs -> nnx.Module`` or a
            ``linen.Module``.
        image_shape: height, width, channels.
        num_classes: number of logits.
        name: name in messages.
        mean: see ``from_nnx``; not for a ``Classifier``, which has its own.
        std: as ``mean``.

    Raises:
        ValueError: for anything else, or logits of another shape.
    """
    sizes: dict[str, Any] = {"image_shape": image_shape, "num_classes": num_classes}
    linen = sys.modules.get("flax.linen")
    if isinstance(model, Classifier):
        found = model
    elif linen is not None and isinstance(model, linen.Module):
        found = _linen(model, **sizes, name=name, mean=mean, std=std)
    elif isinstance(model, nnx.Module) or inspect.isfunction(model):
        found = from_nnx(model, **sizes, name=name, mean=mean, std=std)
    else:
        raise ValueError(
            f"{name} gave a {type(model).__name__}, but an awp_jax.models.Classifier, a flax "
            "nnx.Module or linen.Module was expected."
        )
    _check_logits(found, image_shape, num_classes, name)
    return found


def _linen(module: Any, **options: Any) -> Classifier:
    call_arguments = train_arguments(type(module).__call__)
    plain = from_linen(module, call_arguments=call_arguments, **options)
    key, image = jax.random.key(0), jnp.zeros((2, *plain.image_shape))
    variables = jax.eval_shape(plain.init, key)

    def trained(rngs: Any) -> Any:
        return jax.eval_shape(
            lambda p, s, x: module.apply(
                {"params": p, "batch_stats": s},
                x,
                **call_arguments(True, True),
                mutable=["batch_stats"],
                rngs=rngs,
            ),
            *variables,
            image,
        )

    try:  # a linen module does not say whether it draws; it fails without what it draws from
        trained(None)
    except sys.modules["flax"].errors.InvalidRngError:
        return from_linen(module, call_arguments=call_arguments, has_dropout=True, **options)
    return plain


def _check_logits(model: Classifier, shape: ImageShape, classes: int, name: str) -> None:
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    if (tuple(model.image_shape), model.num_classes) != (tuple(shape), classes):
        raise ValueError(
            f"{name} is of images {tuple(model.image_shape)} in {model.num_classes} classes, but "
            f"the data has images {tuple(shape)} in {classes}."
        )

    def logits(key: Array, images: Array) -> Any:
        options: dict[str, Any] = {"key": key} if model.is_random else {}
        return model.apply(*model.init(key), images, mode="running", **options)[0]

    found = jax.eval_shape(logits, jax.random.key(0), images)
    if getattr(found, "shape", None) != (2, classes):
        raise ValueError(
            f"{name} maps 2 images to {found}, but logits of shape (2, {classes}) were expected."
        )
