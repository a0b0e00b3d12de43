"""Robust overfitting on handwritten digits, and what AWP does against it: a minute or two.

    awp-jax train --config=configs/quickstart.py:at --workdir=runs/at
    awp-jax train --config=configs/quickstart.py:at-awp --workdir=runs/at-awp

Data: scikit-learn's embedded 8 x 8 digits, no download, with 30 % of the training labels drawn
anew: noise is what robust overfitting memorises. Test and validation labels are right. Linf,
epsilon 0.15, PGD-7. The README has the numbers that were measured.
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema


def get_config(method: str = "at-awp") -> ConfigDict:
    """The config of ``"at"`` or ``"at-awp"``."""
    checks.choice(method, ("at", "at-awp"), "method")
    config = schema.default()
    config.epochs = 240
    config.batch_size = 50

    config.data.name = "digits"
    config.data.train_examples = 600
    config.data.validation_examples = 100
    config.data.label_noise = 0.3
    config.data.crop_padding = 0
    config.data.flip = False  # a mirrored digit is another digit

    config.model.name = "mlp"
    config.model.width = 512
    config.model.normalize = False

    config.attack.epsilon = "0.15"
    config.attack.step_size = "0.04"
    config.attack.steps = 7

    config.schedule.milestones = (0.6, 0.85)

    config.weights.method = "none" if method == "at" else "awp"
    config.weights.gamma = "0.02"
    # From the first epoch on, one of six seeds never left chance with so large a gamma.
    config.weights.start_epoch = 20

    config.evaluation.step_size = "0.02"
    config.evaluation.every_epochs = 10
    config.evaluation.train_examples = 600
    config.evaluation.test_examples = 797
    config.evaluation.batch_size = 800
    config.checkpoint.every_epochs = 20
    return config
