"""What keys of a config must have in common."""

import warnings

from ml_collections import ConfigDict


def check_combinations(config: ConfigDict) -> None:
    """Refuses options that make no sense together, in one sentence."""
    if config.evaluation.selection == "validation" and config.data.validation_examples == 0:
        raise ValueError(
            "evaluation.selection is 'validation', but data.validation_examples is 0: keep some "
            "training images back, or set evaluation.selection to 'test' (which is reported)."
        )
    _check_parts(config)
    d, objective, w = config.data, config.objective, config.weights
    original = round(d.original_fraction * config.batch_size)
    both = not d.extra or 0 < original < config.batch_size
    if not (0 < d.original_fraction < 1 and both):
        raise ValueError(
            f"data.original_fraction is {d.original_fraction!r}, but a number in (0, 1) was "
            f"expected that leaves both kinds of images in a batch of {config.batch_size}."
        )
    mixes = "data.mixup" if d.mixup else "data.cutmix" if d.cutmix else ""
    soft = mixes or "objective.label_smoothing"
    shared = w.shared_backward and w.method == "awp"
    saves, at_once = config.checkpoint.every_steps, config.training.steps_per_call
    for wrong, sentence in (
        (
            0 < saves < at_once,
            f"checkpoint.every_steps is {saves}, but training.steps_per_call {at_once}, and "
            "nothing is saved in the middle of a call: choose a multiple of it, or fewer steps.",
        ),
        (
            d.name == "digits" and d.path is not None,
            f"data.path is {d.path!r}, but digits comes with scikit-learn and is read from no "
            "path: leave it out.",
        ),
        (
            bool(config.model.mean) != bool(config.model.std),
            "model.mean and model.std belong together: give both, or neither.",
        ),
        (
            d.extra_labels and not d.extra,
            "data.extra_labels is given, but data.extra is not: name the images as well.",
        ),
        (
            d.extra and mixes,
            f"{mixes} and data.extra are both on, but a mixture of original and extra images "
            "has no weight: switch one off.",
        ),
        (
            d.resize < d.image_size,
            f"data.resize is {d.resize}, but at least data.image_size was expected, of which the "
            f"centre is cut out, {d.image_size}.",
        ),
        (
            d.resized_crop and d.crop_padding,
            "data.resized_crop and data.crop_padding are both on, but an image is cropped in one "
            "way: set data.crop_padding to 0.",
        ),
        (
            d.mixup and d.cutmix,
            "data.mixup and data.cutmix are both on, but a batch is mixed in one way: switch one "
            "off.",
        ),
        (
            d.autoaugment and d.trivialaugment,
            "data.autoaugment and data.trivialaugment are both on, but an image is changed by one "
            "of them: switch one off.",
        ),
        (
            (mixes or objective.label_smoothing) and objective.name == "mart",
            f"{soft} gives an example several classes, but MART compares its probability "
            "of one class: use natural, at or trades.",
        ),
        (
            config.optimizer.name == "entropy-sgd" and w.method != "none",
            f"optimizer.name is 'entropy-sgd' and weights.method {w.method!r}, but the inner loop "
            "of Entropy-SGD perturbs the weights itself: set weights.method to 'none'.",
        ),
        (
            w.shared_backward and not shared,
            f"weights.shared_backward is of weights.method 'awp', not {w.method!r}.",
        ),
        (
            shared and objective.name != "at",
            "weights.shared_backward needs an attack that ascends what the weights ascend, so "
            f"objective.name 'at', not {objective.name!r}.",
        ),
        (
            shared and (objective.label_smoothing or objective.rotation_weight or d.extra),
            "weights.shared_backward needs an attack that ascends what the weights ascend: switch "
            "off objective.label_smoothing, objective.rotation_weight and data.extra.",
        ),
    ):
        if wrong:
            raise ValueError(sentence)
    _warn(config)


def _warn(config: ConfigDict) -> None:
    """What is allowed, but hardly meant: the first thing that people shorten are the epochs."""
    for part, used in (
        ("weights", config.weights.method != "none"),
        ("averaging", config.averaging.name != "none"),
    ):
        start = config[part].start_epoch
        if used and start >= config.epochs:
            what = "weights are never perturbed" if part == "weights" else "nothing is averaged"
            warnings.warn(
                f"{part}.start_epoch is {start}, but the run has {config.epochs} epochs, so that "
                f"{what}: shorten it as well.",
                stacklevel=2,
            )
    if config.model.dtype == "float16" and config.optimizer.loss_scale is None:
        warnings.warn(
            "model.dtype is 'float16' without a loss scale, so that small gradients become zero: "
            "set optimizer.loss_scale to 'dynamic' (with optimizer.non_finite 'skip'), or "
            "model.dtype to 'bfloat16'.",
            stacklevel=2,
        )


def _check_parts(config: ConfigDict) -> None:
    """What micro-batches and a loss scale go together with."""
    o, groups = config.optimizer, config.model.batch_norm_groups
    if o.loss_scale == "dynamic" and o.non_finite != "skip":
        raise ValueError(
            "optimizer.loss_scale is 'dynamic', which skips steps whose gradient is not finite, "
            f"but optimizer.non_finite is {o.non_finite!r}: set it to 'skip'."
        )
    if o.micro_batches == 1:
        return
    what = f"optimizer.micro_batches is {o.micro_batches}, but"
    if config.batch_size % o.micro_batches:
        raise ValueError(
            f"{what} batch_size is {config.batch_size}: a divisor of it was expected, because "
            "parts are of one size."
        )
    if groups > 1 and groups % o.micro_batches:
        raise ValueError(
            f"{what} model.batch_norm_groups is {groups}: 1 (each part has statistics of its own) "
            "or a multiple was expected."
        )
    for key, why in (
        ("rotation_weight", "the rotated images of a batch are one batch"),
        ("gradient_alignment", "its mean is over the examples that have a gradient"),
    ):
        if config.objective[key]:
            raise ValueError(
                f"{what} objective.{key} is {config.objective[key]:g}, and {why}: 1 was expected."
            )
