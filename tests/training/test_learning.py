"""Real images: adversarial training with AWP learns, on CPU and in about a minute each."""

import pytest

from awp_jax import config as schema
from awp_jax import data, training

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def config_for(model, **attack):
    config = schema.default()
    config.epochs = 1
    config.batch_size = 32
    config.data.validation_examples = 200
    config.model.name = model
    config.model.normalize = False
    config.attack.update(attack)
    config.weights.gamma = "0.005"
    config.schedule.name = "cyclic"
    config.evaluation.test_examples = 200
    config.evaluation.train_examples = 0
    config.evaluation.batch_size = 100
    return config


def robust_test_accuracy(config, splits, workdir):
    training.train(config, workdir, splits=splits, progress=None)
    last = [r for r in training.read_metrics(workdir) if r["kind"] == "evaluation"][-1]
    return last["test"]["robust_accuracy"]


def test_mnist_cnn_learns(data_root, tmp_path):
    """Chance is 0.1; the images are attacked by PGD-20 within 0.1."""
    config = config_for("mnist-cnn", epsilon="0.1", step_size="0.03", steps=5)
    config.data.name = "mnist"
    config.model.width = 8  # a tenth of the work
    config.data.crop_padding = 0
    config.data.flip = False
    config.optimizer.learning_rate = 0.05
    splits = data.load(
        "mnist", path=data_root / "mnist", train_examples=4000, validation_examples=200
    )
    assert robust_test_accuracy(config, splits, tmp_path) > 0.6
