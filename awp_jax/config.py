"""The one schema of experiment configs, and its checks.

A config holds plain values only (numbers, text, tuples), so that it can be written to
``config.json`` and overridden from the command line. Radii are text, ``"8/255"``, because fractions
are how the field states them.
"""

import difflib
from typing import Any

from ml_collections import ConfigDict, config_dict

from awp_jax import checks


def default() -> ConfigDict:
    """The schema with its defaults: AT-AWP of PreActResNet-18 on CIFAR-10 (NeurIPS 2020, Table 1).

    Returns:
        A locked ``ConfigDict``. Comments beside the values say what they mean and where they are
        from.
    """
    config = ConfigDict()
    config.seed = 0
    config.epochs = 200
    config.batch_size = 128  # of all devices together; the smaller last batch is kept

    data = config.data = ConfigDict()
    data.name = "cifar10"  # see awp_jax.data.load
    data.path = config_dict.placeholder(str)  # None: $AWP_JAX_DATA
    data.train_examples = config_dict.placeholder(int)  # None: all
    data.test_examples = config_dict.placeholder(int)
    data.validation_examples = 1000  # split off the training set
    data.crop_padding = 4  # pixels; 0 for no random crop
    data.crop_mode = "reflect"  # released train_cifar10.py; "zero" for CIFAR-100 and TRADES
    data.flip = True
    data.rotation_degrees = 0.0  # 15 for CIFAR-100

    model = config.model = ConfigDict()
    model.name = "preact-resnet-18"
    model.width = config_dict.placeholder(int)  # None: the architecture's own
    model.normalize = True  # by the data set's mean and standard deviation, inside the model
    model.dtype = "float32"  # compute dtype; parameters are always float32
    model.batch_norm_groups = 1  # 8: what PyTorch's DataParallel did on 8 GPUs
    model.activation = "relu"
    model.pni = False  # trainable noise on kernels, also at test (He et al. 2019); alpha from 0.25

    objective = config.objective = ConfigDict()
    objective.name = "at"  # natural, at, trades, mart
    objective.beta = 6.0  # TRADES
    objective.lambda_ = 5.0  # MART

    attack = config.attack = ConfigDict()  # the training attack
    attack.norm = "linf"
    attack.epsilon = "8/255"
    attack.steps = 10  # K1
    attack.step_size = "2/255"
    attack.start = config_dict.placeholder(str)  # None: the objective's own
    attack.batch_norm = config_dict.placeholder(str)  # None: the objective's own

    weights = config.weights = ConfigDict()
    weights.method = "awp"  # none, awp, random
    weights.gamma = "0.01"
    weights.steps = 1  # K2
    weights.alternations = 1  # A
    weights.size = "l2"
    weights.scope = "leaf"
    weights.start_epoch = 0

    optimizer = config.optimizer = ConfigDict()
    optimizer.learning_rate = 0.1
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.weight_decay = 5e-4  # on all parameters, at w + v

    schedule = config.schedule = ConfigDict()
    schedule.name = "piecewise"  # constant, piecewise, cosine, cyclic, linear
    schedule.milestones = (0.5, 0.75)  # fractions of all epochs
    schedule.factor = 0.1
    schedule.peak = 0.4  # cyclic: the fraction of epochs at which the rate is highest

    evaluation = config.evaluation = ConfigDict()  # during training, and the default of `evaluate`
    evaluation.steps = 20
    evaluation.step_size = config_dict.placeholder(str)  # None: that of the training attack
    evaluation.epsilon = config_dict.placeholder(str)  # None: that of the training attack
    evaluation.restarts = 1
    evaluation.batch_size = 256
    evaluation.every_epochs = 1
    evaluation.train_examples = 1000  # for the curves during training; 0 for none
    evaluation.test_examples = 1000
    evaluation.selection = "validation"  # what picks the best checkpoint: validation or test

    checkpoint = config.checkpoint = ConfigDict()
    checkpoint.every_epochs = 1
    checkpoint.keep_every_epochs = 0  # kept for good, for curves over training; 0 for none
    checkpoint.every_steps = 0  # also in the middle of an epoch; 0 for never

    logging = config.logging = ConfigDict()
    logging.every_steps = 50
    config.lock()
    return config


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown config key {key!r}.{hint}"


def _merge(target: ConfigDict, values: Any, prefix: str) -> None:
    for key, value in values.items():
        if key not in target:
            raise ValueError(_unknown(prefix + key, [prefix + k for k in target.keys()]))
        if isinstance(target.get(key), ConfigDict):
            if not hasattr(value, "items"):
                raise ValueError(f"Config key {prefix + key!r} is a group, not a value: {value!r}.")
            _merge(target[key], value, prefix + key + ".")
            continue
        if isinstance(value, list):
            value = tuple(value)
        try:
            target[key] = value
        except TypeError:
            wanted = target.get_type(key).__name__
            raise ValueError(
                f"Config key {prefix + key!r} is {value!r}, but a value of type {wanted} was "
                "expected."
            ) from None


def from_dict(values: Any) -> ConfigDict:
    """The default config with ``values`` laid over it.

    Args:
        values: A ``ConfigDict`` or nested dict, for instance from ``config.json``.

    Returns:
        A locked config in the schema of ``default``.

    Raises:
        ValueError: For an unknown key ("did you mean") or a value of another type.
    """
    config = default()
    _merge(config, values, "")
    return config


def validate(config: ConfigDict) -> ConfigDict:
    """Checks every value that can be checked without data, before anything is compiled.

    Args:
        config: In the schema of ``default``.

    Returns:
        The same config in the schema of this version.

    Raises:
        ValueError: One sentence naming the key, the value and what was expected.

    Warns:
        UserWarning: For a radius above 1 (8 instead of 8/255).
    """
    config = from_dict(config)
    for group, key in (
        ("attack", "epsilon"),
        ("attack", "step_size"),
        ("weights", "gamma"),
        ("evaluation", "epsilon"),
        ("evaluation", "step_size"),
    ):
        if config[group][key] is not None:
            norm = "linf" if group == "weights" else config.attack.norm
            checks.radius(config[group][key], f"{group}.{key}", norm)
    for key, minimum in (
        ("epochs", 1),
        ("batch_size", 1),
        ("seed", 0),
        ("data.validation_examples", 0),
        ("data.crop_padding", 0),
        ("model.batch_norm_groups", 1),
        ("attack.steps", 0),
        ("weights.steps", 1),
        ("weights.alternations", 1),
        ("weights.start_epoch", 0),
        ("evaluation.steps", 1),
        ("evaluation.restarts", 1),
        ("evaluation.batch_size", 1),
        ("evaluation.every_epochs", 1),
        ("evaluation.train_examples", 0),
        ("evaluation.test_examples", 1),
        ("checkpoint.every_epochs", 1),
        ("checkpoint.keep_every_epochs", 0),
        ("checkpoint.every_steps", 0),
        ("logging.every_steps", 1),
    ):
        group, _, leaf = key.rpartition(".")
        checks.positive_integer((config[group] if group else config)[leaf], key, minimum)
    for key, options in (
        ("data.crop_mode", ("reflect", "zero")),
        ("objective.name", ("natural", "at", "trades", "mart")),
        ("attack.norm", ("linf", "l2", "l1")),
        ("attack.start", (None, "uniform", "gaussian", "none")),
        ("attack.batch_norm", (None, "batch", "running", "released")),
        ("weights.method", ("none", "awp", "random")),
        ("weights.size", ("l2", "l1")),
        ("weights.scope", ("leaf", "global", "filter")),
        ("schedule.name", ("constant", "piecewise", "cosine", "cyclic", "linear")),
        ("evaluation.selection", ("validation", "test")),
        ("model.dtype", ("float32", "bfloat16", "float16")),
    ):
        group, _, leaf = key.partition(".")
        if config[group][leaf] is None and None in options:
            continue
        checks.choice(config[group][leaf], [o for o in options if o is not None], key)
    optimizer = config.optimizer
    for key in ("learning_rate", "momentum", "weight_decay"):
        if not 0 <= optimizer[key] < float("inf"):
            raise ValueError(
                f"optimizer.{key} is {optimizer[key]!r}, but a finite number of at least 0 was "
                "expected."
            )
    if config.evaluation.selection == "validation" and config.data.validation_examples == 0:
        raise ValueError(
            "evaluation.selection is 'validation', but data.validation_examples is 0: keep some "
            "training images back, or set evaluation.selection to 'test' (which is reported)."
        )
    if any(not 0 <= m for m in config.schedule.milestones):
        raise ValueError(
            f"schedule.milestones is {config.schedule.milestones}, but fractions of all epochs, "
            "such as (0.5, 0.75), were expected."
        )
    return config
