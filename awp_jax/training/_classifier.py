"""The classifier of a config, and the numbers that its images are normalised by."""

import functools
from typing import Any

from ml_collections import ConfigDict

from awp_jax import data, models, objectives


def with_statistics(config: ConfigDict, train: data.Dataset) -> ConfigDict:
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


def create_classifier(config: ConfigDict, image_shape: Any, num_classes: int) -> Any:
    """The classifier of a config for images of this shape.

    Raises:
        ValueError: For an unknown model or option, or a data set without statistics when
            ``model.normalize`` is set, that ``with_statistics`` has not seen.
    """
    m = config.model
    options: dict[str, Any] = {
        "dtype": m.dtype,
        "batch_norm_groups": m.batch_norm_groups,
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
    # Sorted and hashable, because the options are the key of a cache.
    classifier = _created(m.name, shape, num_classes, tuple(sorted(options.items())))
    return models.with_parametric_noise(classifier) if m.pni else classifier


@functools.lru_cache(maxsize=32)
def _created(name: str, shape: tuple[int, int, int], classes: int, options: tuple[Any, ...]) -> Any:
    """One object for all runs of an architecture: what is compiled for one serves the others."""
    return models.create(name, image_shape=shape, num_classes=classes, **dict(options))
