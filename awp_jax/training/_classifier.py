"""The classifier of a config, and the numbers that its images are normalised by."""

import dataclasses
import functools
import inspect
from typing import Any

from ml_collections import ConfigDict

from awp_jax import data, models, objectives, parts


def with_statistics(config: ConfigDict, train: data.Dataset | data.StoredImages) -> ConfigDict:
    """The config with ``model.mean`` and ``model.std``, where no publication has them.

    They go into ``config.json``, so that the model stays what it was where the images change.

    Args:
        config: A validated config, which is changed in place.
        train: The training images, of which they are measured.

    Raises:
        DataError: When they are needed and a channel is constant.
    """
    m = config.model
    if m.normalize and not (m.mean or m.std or data.has_statistics(config.data.name)):
        m.mean, m.std = data.measured_statistics(train)
    return config


def create_classifier(
    config: ConfigDict,
    image_shape: Any,
    num_classes: int,
    given: parts.Parts = parts.NONE,
    *,
    micro_batches: int = 1,
) -> Any:
    """The classifier of a config for images of this shape.

    Args:
        config: A validated config.
        image_shape: Height, width, channels.
        num_classes: Number of classes.
        given: What was given as objects, see ``awp_jax.parts``.
        micro_batches: Into how many parts a batch is cut that it sees one at a time: each has its
            share of the BatchNorm groups, or one group.

    Raises:
        ValueError: For an unknown model or option, or a data set without statistics when
            ``model.normalize`` is set, that ``with_statistics`` has not seen.
    """
    m = config.model
    options: dict[str, Any] = {
        "dtype": m.dtype,
        "batch_norm_groups": max(m.batch_norm_groups // micro_batches, 1),
        "activation": m.activation,
        "remat": m.remat,
    }
    if config.objective.rotation_weight:
        options["auxiliary"] = objectives.ROTATIONS
    if m.width is not None:
        options["width"] = m.width
    if m.normalize:
        published = () if m.mean and m.std else data.statistics(config.data.name)
        found = published or (tuple(m.mean), tuple(m.std))
        one_for_all = [v * image_shape[-1] if len(v) == 1 else v for v in found]
        options["mean"], options["std"] = one_for_all
    height, width, channels = image_shape
    shape = (height, width, channels)
    own = parts.own(config, "model", given)
    # Sorted and hashable, because the options are the key of a cache.
    key = (shape, num_classes, tuple(sorted(options.items())))
    classifier = _created(m.name, *key) if own is None else _own(own, m.name, *key)
    return models.with_parametric_noise(classifier) if m.pni else classifier


@functools.lru_cache(maxsize=32)
def _created(name: str, shape: tuple[int, int, int], classes: int, options: tuple[Any, ...]) -> Any:
    """One object for all runs of an architecture: what is compiled for one serves the others."""
    return models.create(name, image_shape=shape, num_classes=classes, **dict(options))


# Of options that a user's own function does not take: what they must be, to have no effect.
_NO_EFFECT = {
    "dtype": "float32",
    "batch_norm_groups": 1,
    "activation": None,
    "remat": False,
    "width": None,
    "auxiliary": None,
}


NAMES = ("image_shape", "num_classes")


# By identity of the function: what is compiled for one run of it serves the others.
@functools.lru_cache(maxsize=32)
def _own(
    own: Any, name: str, shape: tuple[int, int, int], classes: int, options: tuple[Any, ...]
) -> Any:
    """The classifier that a user's own function makes, or that was given as it is."""
    given = dict(options)
    normal = {key: given.pop(key, ()) for key in ("mean", "std")}
    what = f"model.name {name!r}"
    if inspect.isroutine(own) or inspect.isclass(own) or isinstance(own, functools.partial):
        made = functools.partial(
            parts.call, own, what, shape, classes, names=NAMES, defaults=_NO_EFFECT
        )
        if "rngs" in parts.signature_of(own).parameters:  # drawn anew for every seed
            own = lambda rngs: made(options={**given, "rngs": rngs})  # noqa: E731
        else:
            own = made(options=given)
    found = models.as_classifier(own, image_shape=shape, num_classes=classes, name=name, **normal)
    if found is own and not found.mean:  # normalised as every other model of a config
        return dataclasses.replace(found, **normal)
    return found
