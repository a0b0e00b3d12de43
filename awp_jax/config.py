"""The one schema of experiment configs, and its checks.

A config holds plain values only (numbers, text, tuples), so that it can be written to
``config.json`` and overridden from the command line. Radii are text, ``"8/255"``, because fractions
are how the field states them.
"""

import difflib
import math
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
    config.init_from = config_dict.placeholder(str)  # a run directory; None: fresh parameters
    config.init_checkpoint = "best"  # of init_from: best, last, average

    data = config.data = ConfigDict()
    data.name = "cifar10"  # see awp_jax.data.load
    data.path = config_dict.placeholder(str)  # None: $AWP_JAX_DATA
    data.train_examples = config_dict.placeholder(int)  # None: all
    data.test_examples = config_dict.placeholder(int)
    data.validation_examples = 1000  # split off the training set
    data.downsample = 1  # average blocks of n x n pixels, for small studies
    data.device_megabytes = 2048  # larger sets stay on the host; changes no number
    data.crop_padding = 4  # pixels; 0 for no random crop
    data.crop_mode = "reflect"  # released train_cifar10.py; "zero" for CIFAR-100 and TRADES
    data.flip = True
    data.rotation_degrees = 0.0  # 15 for CIFAR-100
    data.autoaugment = False  # the CIFAR-10 policy
    data.cutout = 0  # pixels; 14 in the NeurIPS paper
    data.mixup = 0.0  # alpha; 1.4 there
    data.label_noise = 0.0  # share of training labels drawn anew
    data.unlabelled = config_dict.placeholder(str)  # RST: a file of images, see docs/methods.md
    data.pseudo_labels = config_dict.placeholder(str)  # None: those beside the images
    data.labelled_fraction = 0.5  # of a batch; RST: 128 of 256
    data.unlabelled_weight = 1.0  # lambda

    model = config.model = ConfigDict()
    model.name = "preact-resnet-18"
    model.width = config_dict.placeholder(int)  # None: the architecture's own
    model.normalize = True  # by the data set's mean and standard deviation, inside the model
    model.dtype = "float32"  # compute dtype; parameters are always float32
    model.batch_norm_groups = 1  # 8: what PyTorch's DataParallel does on 8 GPUs
    model.activation = "relu"
    model.remat = False  # less memory: the backward pass computes residual blocks again
    model.pni = False  # trainable noise on kernels, also at test (He et al. 2019); alpha from 0.25

    objective = config.objective = ConfigDict()
    objective.name = "at"  # natural, at, trades, mart
    objective.beta = 6.0  # TRADES
    objective.lambda_ = 5.0  # MART
    objective.label_smoothing = 0.0
    objective.rotation_weight = 0.0  # self-supervision; 0.5 in Hendrycks et al. 2019

    attack = config.attack = ConfigDict()  # the training attack
    attack.norm = "linf"
    attack.epsilon = "8/255"
    attack.steps = 10  # K1
    attack.step_size = "2/255"
    attack.start = config_dict.placeholder(str)  # None: the objective's own
    attack.batch_norm = config_dict.placeholder(str)  # None: the objective's own
    attack.early_stop = config_dict.placeholder(int)  # tau of friendly adversarial training

    weights = config.weights = ConfigDict()
    weights.method = "awp"  # none, awp, rwp, random
    weights.gamma = "0.01"
    weights.steps = config_dict.placeholder(int)  # K2; None: 10 for rwp, else 1
    weights.alternations = 1  # A
    weights.size = "l2"
    weights.scope = config_dict.placeholder(str)  # None: global for rwp, else leaf
    weights.start_epoch = 0
    weights.c_min = 1.7  # rwp; 4.0 for CIFAR-100
    weights.loss_range = ()  # awp on examples with p <= cross-entropy < q only; () for all
    weights.shared_backward = False  # awp from the backward pass of the last PGD step

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "sgd"  # sgd, adam, entropy-sgd
    optimizer.learning_rate = 0.1
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.weight_decay = 5e-4  # on all parameters, at w + v
    optimizer.non_finite = "stop"  # or "skip": steps whose loss or gradient is not finite
    optimizer.inner_steps = 20  # this and all below: Entropy-SGD
    optimizer.inner_learning_rate = 0.1
    optimizer.inner_gamma = 0.03  # of a public reproduction, not of the paper's text
    optimizer.inner_gamma_growth = 0.001
    optimizer.inner_noise = 1e-4
    optimizer.inner_averaging = 0.75

    regularisation = config.regularisation = ConfigDict()  # of kernels only
    regularisation.l1 = 0.0  # 5e-6 in the NeurIPS paper
    regularisation.l2 = 0.0  # 5e-3 there, with optimizer.weight_decay 0
    regularisation.clip = 0.0  # largest absolute weight; 0 for no clipping

    averaging = config.averaging = ConfigDict()  # of the weights
    averaging.name = "none"  # none, swa, ema
    averaging.start_epoch = 0
    averaging.decay = 0.999  # ema

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
        ("data.downsample", 1),
        ("data.crop_padding", 0),
        ("data.device_megabytes", 0),
        ("data.cutout", 0),
        ("model.batch_norm_groups", 1),
        ("attack.steps", 0),
        ("weights.steps", 1),
        ("attack.early_stop", 0),
        ("optimizer.inner_steps", 1),
        ("averaging.start_epoch", 0),
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
        value = (config[group] if group else config)[leaf]
        if value is not None or key not in ("weights.steps", "attack.early_stop"):
            checks.positive_integer(value, key, minimum)
    for key, options in (
        ("init_checkpoint", ("best", "last", "average")),
        ("data.crop_mode", ("reflect", "zero")),
        ("objective.name", ("natural", "at", "trades", "mart")),
        ("attack.norm", ("linf", "l2", "l1")),
        ("attack.start", (None, "uniform", "gaussian", "none")),
        ("attack.batch_norm", (None, "batch", "running", "released")),
        ("weights.method", ("none", "awp", "rwp", "random")),
        ("weights.size", ("l2", "l1")),
        ("weights.scope", (None, "leaf", "global", "filter")),
        ("optimizer.name", ("sgd", "adam", "entropy-sgd")),
        ("optimizer.non_finite", ("stop", "skip")),
        ("averaging.name", ("none", "swa", "ema")),
        ("schedule.name", ("constant", "piecewise", "cosine", "cyclic", "linear")),
        ("evaluation.selection", ("validation", "test")),
        ("model.dtype", ("float32", "bfloat16", "float16")),
    ):
        group, _, leaf = key.rpartition(".")
        value = (config[group] if group else config)[leaf]
        if value is None and None in options:
            continue
        checks.choice(value, [o for o in options if o is not None], key)
    for key, most in (
        *((f"optimizer.{name}", math.inf) for name in ("learning_rate", "momentum")),
        *((f"optimizer.{name}", math.inf) for name in ("weight_decay", "inner_learning_rate")),
        *((f"optimizer.{name}", math.inf) for name in ("inner_gamma", "inner_gamma_growth")),
        ("optimizer.inner_noise", math.inf),
        ("optimizer.inner_averaging", 1),
        *((f"regularisation.{name}", math.inf) for name in ("l1", "l2", "clip")),
        ("objective.rotation_weight", math.inf),
        ("objective.label_smoothing", 1),
        ("data.mixup", math.inf),
        ("data.unlabelled_weight", math.inf),
        ("data.label_noise", 1),
        ("averaging.decay", 1),
    ):
        group, _, leaf = key.partition(".")
        if not 0 <= config[group][leaf] < most:
            limit = "a finite number of at least 0" if most == math.inf else "a number in [0, 1)"
            raise ValueError(f"{key} is {config[group][leaf]!r}, but {limit} was expected.")
    if config.evaluation.selection == "validation" and config.data.validation_examples == 0:
        raise ValueError(
            "evaluation.selection is 'validation', but data.validation_examples is 0: keep some "
            "training images back, or set evaluation.selection to 'test' (which is reported)."
        )
    for m in config.schedule.milestones:
        if isinstance(m, bool) or not isinstance(m, int | float) or not 0 <= m <= 1:
            raise ValueError(
                f"schedule.milestones is {config.schedule.milestones}, but fractions of all epochs "
                "from 0 to 1, such as (0.5, 0.75), were expected."
            )
    _check_combinations(config)
    return config


def _check_combinations(config: ConfigDict) -> None:
    """Refuses options that make no sense together."""
    d, objective, w = config.data, config.objective, config.weights
    labelled = round(d.labelled_fraction * config.batch_size)
    both = not d.unlabelled or 0 < labelled < config.batch_size
    if not (0 < d.labelled_fraction < 1 and both):
        raise ValueError(
            f"data.labelled_fraction is {d.labelled_fraction!r}, but a number in (0, 1) was "
            f"expected that leaves both kinds of images in a batch of {config.batch_size}."
        )
    soft = "data.mixup" if d.mixup else "objective.label_smoothing"
    shared = w.shared_backward and w.method == "awp"
    for wrong, sentence in (
        (
            d.pseudo_labels and not d.unlabelled,
            "data.pseudo_labels is given, but data.unlabelled is not: name the images as well.",
        ),
        (
            d.unlabelled and d.mixup,
            "data.mixup and data.unlabelled are both on, but a mixture of labelled and unlabelled "
            "images has no weight: switch one off.",
        ),
        (
            (d.mixup or objective.label_smoothing) and objective.name == "mart",
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
            shared and (objective.label_smoothing or objective.rotation_weight or d.unlabelled),
            "weights.shared_backward needs an attack that ascends what the weights ascend: switch "
            "off objective.label_smoothing, objective.rotation_weight and data.unlabelled.",
        ),
    ):
        if wrong:
            raise ValueError(sentence)
