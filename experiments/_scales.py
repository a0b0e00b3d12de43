"""The sizes at which an experiment runs: smoke, trial, cpu, small and paper."""

import dataclasses
import json
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        one_seed: Whether one seed is run in place of the paper's number.
        examples: Of a set, for final measurements; ``None`` for all. ``examples_costly``: for
            attacks of thousands of passes; ``train_examples``: of training images.
        points: Along one axis of a 1-D landscape; ``points_2d``: along each of a 2-D one.
        examples_landscape: Images of a landscape.
        directions: Where the paper draws ten.
        draws: Of average-case flatness; ten in the paper.
        restarts: Of worst-case flatness and of the reference loss; ten in the paper.
        percents: How far in training the checkpoints are that stay, in percent of the epochs.
        compared: Those of them that compete with best and last for the highest robustness.
        thin: Whether sweeps keep their first and last point only.
        differs: From the paper's settings: what its results are never without.
        config: Values of the config by their keys; what depends on others is in ``apply``.
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
    differs: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def sweep(self, values):
        """All points of a sweep, or its first and last."""
        return (values[0], values[-1]) if self.thin else tuple(values)

    def seeds(self, of_the_paper: int) -> int:
        """How many seeds a cell has."""
        return 1 if self.one_seed else of_the_paper

    def percents_in(self, low: int = 0, high: int = 100) -> list[str]:
        """Checkpoints that stay, from above ``low`` to ``high`` percent of the epochs."""
        return [f"{p}%" for p in self.percents if low < p <= high]

    def steps(self, of_the_paper: int) -> int:
        """Attack steps of what is measured around the weights."""
        return 2 if self.name in ("smoke", "trial") else of_the_paper

    def attack(self, name: str) -> str:
        """The attack that stands for the paper's: one with fewer steps."""
        if self.name not in ("smoke", "trial"):
            return "spsa-10" if self.name == "small" and name == "spsa" else name
        known = {"spsa": "spsa-2", "autoattack": "apgd-ce-5", "feature": "feature-2"}
        plain = re.fullmatch(r"(pgd|cw)-\d+", name)
        return f"{plain[1]}-5" if plain else known.get(name.split("-")[0], name)

    def apply(self, config: ConfigDict) -> ConfigDict:
        """The config at this scale: the method stays, what costs time shrinks."""
        published, model = config.epochs, config.model.name
        config.update_from_flattened_dict(self.config)
        # What is counted in epochs shrinks along; milestones are fractions already.
        for group in (config.weights, config.averaging):
            group.start_epoch = group.start_epoch * config.epochs // published
        if self.name == "small":  # a quarter of the parameters
            if model.startswith("wrn"):
                config.model.name = "wrn-16-2"
            elif model != "mnist-cnn":
                config.model.width = 32
        if self.name == "cpu":  # half in proportion: so few images must be overfitted soon
            config.data.crop_padding //= 4
            config.data.cutout //= 2
        if self.name == "smoke":
            _smoke(config)
        # With fewer than ten epochs, those that are there.
        config.checkpoint.keep_every_epochs = max(config.epochs // 10, 1)
        return config


def _smoke(config: ConfigDict) -> None:
    """What differs between methods stays, all else is the same on digits and a small MLP.

    So cells of different tables, and of different papers, are often the same run.
    """
    config.data.cutout = min(config.data.cutout, 3)
    if config.data.extra or config.init_from:
        # RST and pre-training without their extra data are TRADES and AT.
        config.data.extra = config.init_from = None
        config.schedule.name = "piecewise"
    radius = ("0.05", "0.025") if config.attack.norm == "linf" else ("128/255", "15/255")
    config.attack.epsilon, config.attack.step_size = radius
    config.attack.steps = min(config.attack.steps, 2)
    if float(config.weights.gamma) > 1:  # an MLP without BatchNorm does not survive it
        config.weights.gamma = "0.5"
    if config.weights.method == "none":
        config.weights.gamma, config.weights.start_epoch = "0.01", 0
    config.optimizer.learning_rate = 0.01 if config.optimizer.name == "adam" else 0.2
    if config.optimizer.weight_decay in (0.0, 2e-4, 5e-3):  # the papers' baselines
        config.optimizer.weight_decay = 5e-4


def _scale(name: str, fields: dict[str, Any]) -> Scale:
    tuples = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return Scale(name, **(fields | tuples))


_PATH = pathlib.Path(__file__).parent / "values" / "scales.json"
SCALES = {name: _scale(name, fields) for name, fields in json.loads(_PATH.read_text()).items()}
