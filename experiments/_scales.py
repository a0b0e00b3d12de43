"""The sizes at which an experiment runs: smoke, trial, cpu, small and paper."""

import dataclasses
import re

from ml_collections import ConfigDict

from awp_jax import checks


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        name: ``"smoke"``, ``"trial"``, ``"cpu"``, ``"small"`` or ``"paper"``.
        one_seed: Whether one seed is run in place of the paper's number.
        examples: Of a set, for final measurements; ``None`` for all.
        examples_costly: The same for attacks of thousands of passes; ``None`` for all.
        train_examples: The same for training images.
        points: Along one axis of a 1-D landscape.
        points_2d: Along each axis of a 2-D landscape.
        examples_landscape: Training images of a landscape.
        directions: Where the paper draws ten.
        draws: Of average-case flatness; ten in the paper.
        restarts: Of worst-case flatness and of the reference loss; ten in the paper.
        percents: How far in training the checkpoints are that stay, in percent of the epochs.
        compared: Those of them that compete with best and last for the highest robustness.
        thin: Whether sweeps keep their first and last point only.
    """

    name: str
    one_seed: bool = True
    examples: int | None = None
    examples_costly: int | None = None
    train_examples: int = 10_000
    points: int = 41
    points_2d: int = 21
    examples_landscape: int = 1000
    directions: int = 10
    draws: int = 10
    restarts: int = 10
    percents: tuple[int, ...] = tuple(range(10, 101, 10))
    compared: tuple[int, ...] = (50, 60, 70, 80, 90)
    thin: bool = False

    def sweep(self, values):
        """All points of a sweep, or its first and last."""
        return (values[0], values[-1]) if self.thin else tuple(values)

    def seeds(self, of_the_paper: int) -> int:
        """How many seeds a cell has."""
        return 1 if self.one_seed else of_the_paper

    def attack(self, name: str) -> str:
        """The attack that stands for the paper's: one with fewer steps."""
        if self.name not in ("smoke", "trial"):
            return "spsa-10" if self.name == "small" and name == "spsa" else name
        known = {"spsa": "spsa-2", "autoattack": "apgd-ce-5", "feature": "feature-2"}
        plain = re.fullmatch(r"(pgd|cw)-\d+", name)
        return f"{plain[1]}-5" if plain else known.get(name.split("-")[0], name)

    def apply(self, config: ConfigDict) -> ConfigDict:
        """The config at this scale: the method stays, what costs time shrinks."""
        if self.name == "small":
            _small(config)
        if self.name == "cpu":
            _cpu(config)
        if self.name == "trial":
            _trial(config)
        if self.name == "smoke":
            _smoke(config)
        if "keep_every_epochs" in config.checkpoint:
            # With fewer than ten epochs, those that are there.
            config.checkpoint.keep_every_epochs = max(config.epochs // 10, 1)
        return config

    def epoch(self, config: ConfigDict, percent: int) -> int:
        """The epoch of a checkpoint that stays."""
        return max(config.epochs * percent // 100, 1)


SCALES = {
    "paper": Scale("paper", one_seed=False),
    "small": Scale(
        "small",
        examples=1000,
        examples_costly=200,
        train_examples=1000,
        points=21,
        points_2d=11,
        examples_landscape=500,
        restarts=3,
        compared=(70,),
    ),
    "cpu": Scale(
        "cpu",
        one_seed=False,
        examples=500,
        examples_costly=100,
        train_examples=500,
        points=9,
        points_2d=5,
        examples_landscape=100,
        directions=2,
        draws=3,
        restarts=1,
        percents=(50, 100),
        compared=(50,),
    ),
    "trial": Scale(
        "trial",
        examples=8,
        train_examples=8,
        points=3,
        points_2d=3,
        examples_landscape=8,
        directions=1,
        draws=1,
        restarts=1,
        percents=(100,),
        compared=(),
        thin=True,
    ),
    "smoke": Scale(
        "smoke",
        examples=50,
        train_examples=50,
        points=5,
        points_2d=3,
        examples_landscape=50,
        directions=2,
        draws=2,
        restarts=1,
        percents=(50, 100),
        compared=(50,),
        thin=True,
    ),
}


def scale_by_name(name: str) -> Scale:
    """The scale of that name.

    Raises:
        ValueError: For another name.
    """
    return SCALES[checks.choice(name, SCALES, "scale")]


def _later(config: ConfigDict, epochs: int) -> None:
    """Fewer epochs; what is counted in epochs shrinks along, milestones are fractions already."""
    for group in ("weights", "averaging"):
        if group in config:
            config[group].start_epoch = config[group].start_epoch * epochs // config.epochs
    config.epochs = epochs


def _small(config: ConfigDict) -> None:
    """A tenth of the images and of the epochs, a quarter of the parameters."""
    _later(config, 20)
    config.data.train_examples = 5000
    config.data.test_examples = 1000
    config.data.validation_examples = 500
    if config.model.name.startswith("wrn"):
        config.model.name = "wrn-16-2"
    elif config.model.name != "mnist-cnn":
        config.model.width = 32
    config.evaluation.train_examples = 500
    config.evaluation.batch_size = 500


def _cpu(config: ConfigDict) -> None:
    """Few images of half the height and width, and a narrow network: a run in minutes on a CPU.

    Shifts are half of the published ones in proportion: so few images must be overfitted soon.
    """
    _later(config, 40)
    config.batch_size = 50
    config.data.train_examples = 1000
    config.data.test_examples = 1000
    config.data.validation_examples = 200
    config.data.downsample = 2
    config.data.crop_padding //= 4
    config.data.cutout //= 2
    config.model.name, config.model.width = "preact-resnet-10", 12
    config.model.dtype = "float32"  # what CPUs are fast at
    config.evaluation.every_epochs = 4
    config.evaluation.train_examples = 500
    config.evaluation.test_examples = 500
    config.logging.every_steps = 10


def _trial(config: ConfigDict) -> None:
    """Everything as published, but two steps of few images: does it start, does it fit, compile?"""
    _later(config, 1)
    config.batch_size = 8
    config.data.train_examples = 16
    config.data.test_examples = config.data.validation_examples = 8
    config.evaluation.steps = 2
    config.evaluation.every_epochs = 1
    config.evaluation.batch_size = config.evaluation.train_examples = 8
    config.evaluation.test_examples = 8
    config.logging.every_steps = 1


def _smoke(config: ConfigDict) -> None:
    """Digits and a small MLP: what differs between methods stays, all else is the same.

    So cells of different tables, and of different papers, are often the same run.
    """
    _later(config, 2)
    config.batch_size = 10
    config.data.name = "digits"
    config.data.train_examples = 200
    config.data.test_examples = 100
    config.data.validation_examples = 100
    config.data.downsample = 1
    config.data.crop_mode = "reflect"
    config.data.crop_padding = 0
    config.data.flip = False
    config.data.rotation_degrees = 0.0
    if "autoaugment" in config.data:  # a policy for uint8 colour images, which digits are not
        config.data.autoaugment = False
    # RST and pre-training without their extra data are TRADES and AT.
    if config.data.get("unlabelled") or config.get("init_from"):
        config.data.unlabelled = config.init_from = None
        config.schedule.name = "piecewise"
    if "cutout" in config.data:
        config.data.cutout = min(config.data.cutout, 3)
    config.model.name = "mlp"
    config.model.width = 32
    config.model.dtype = "float32"
    config.model.normalize = False
    if config.attack.norm == "linf":
        config.attack.epsilon, config.attack.step_size = "0.05", "0.025"
    else:
        config.attack.epsilon, config.attack.step_size = "128/255", "15/255"
    config.attack.steps = min(config.attack.steps, 2)
    if float(config.weights.gamma) > 1:  # an MLP without BatchNorm does not survive it
        config.weights.gamma = "0.5"
    config.objective.beta, config.objective.lambda_ = 6.0, 5.0
    config.optimizer.learning_rate = 0.01 if config.optimizer.get("name") == "adam" else 0.2
    config.optimizer.nesterov = False
    if config.optimizer.weight_decay in (0.0, 2e-4, 5e-3):  # the papers' baselines
        config.optimizer.weight_decay = 5e-4
    if config.weights.method == "none":
        config.weights.gamma, config.weights.start_epoch = "0.01", 0
    config.schedule.milestones = (0.5, 0.75)
    config.evaluation.every_epochs = 1
    config.evaluation.epsilon = None
    config.evaluation.steps = 2
    config.evaluation.step_size = None
    config.evaluation.batch_size = 100
    config.evaluation.train_examples = 100
    config.evaluation.test_examples = 100
    config.logging.every_steps = 10
