"""Handwritten digits: AT or AT-AWP of a narrow PreAct ResNet, about a minute on two CPU cores.

    awp-jax train --config=configs/digits_resnet.py --workdir=runs/awp
    awp-jax train --config=configs/digits_resnet.py:at --workdir=runs/at

Data: scikit-learn's embedded 8 x 8 digits, no download. Linf, epsilon 0.2, PGD-10.
Small and quick, for trying commands: in so short a training nothing overfits, and AWP costs more
than it gains (seed 0, PGD-20 on test digits: 65.0 for AT, 54.7 for AT-AWP). What AWP is for is seen
with configs/quickstart.py.
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema


def get_config(method: str = "at-awp") -> ConfigDict:
    """The config of ``"at"`` or ``"at-awp"``."""
    checks.choice(method, ("at", "at-awp"), "method")
    config = schema.default()
    config.epochs = 20
    config.batch_size = 100

    config.data.name = "digits"
    config.data.train_examples = 600
    config.data.validation_examples = 100
    config.data.crop_padding = 0
    config.data.flip = False  # a mirrored digit is another digit

    config.model.name = "preact-resnet-10"
    config.model.width = 12
    config.model.normalize = False

    config.attack.epsilon = "0.2"
    config.attack.step_size = "0.05"

    config.schedule.milestones = (0.6, 0.85)

    config.weights.method = "none" if method == "at" else "awp"
    config.weights.gamma = "0.01"

    config.evaluation.every_epochs = 4
    config.evaluation.train_examples = 200
    config.evaluation.test_examples = 200
    config.evaluation.batch_size = 200
    config.checkpoint.every_epochs = 4
    return config
