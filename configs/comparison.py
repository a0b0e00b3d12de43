"""AT, AT-AWP and AT-RWP side by side on few real images, in minutes on a CPU.

    for seed in 0 1 2; do for method in at at-awp at-rwp; do
        awp-jax train --config=configs/comparison.py:mnist,$method --config.seed=$seed \
                      --workdir=runs/comparison/$method-$seed
        awp-jax evaluate --workdir=runs/comparison/$method-$seed --attacks=pgd-20,apgd-ce
    done; done
    awp-jax report --workdirs=... --output=runs/comparison/report

The argument is DATA,METHOD. DATA: mnist (a multi-layer perceptron of width 256 on 1,200 images, 200
more choose the best checkpoint; Linf 0.1, 60 epochs: enough for robust overfitting). METHOD: at,
at-awp, at-rwp. What came out, with its spread over three seeds, is in
results/comparison_mnist/README.md; about a minute for a run on two cores.
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema


def get_config(cell: str = "mnist,at-awp") -> ConfigDict:
    """The config of a cell.

    Raises:
        ValueError: For an unknown cell.
    """
    data, _, method = cell.partition(",")
    checks.choice(data, ("mnist",), "data of this comparison")
    checks.choice(method, ("at", "at-awp", "at-rwp"), "method of this comparison")
    config = schema.default()
    config.epochs = 60
    config.batch_size = 100
    config.data.name = "mnist"
    config.data.train_examples = 1200
    config.data.validation_examples = 200
    config.data.test_examples = 2000
    config.data.crop_padding = 0
    config.data.flip = False
    config.model.name = "mlp"
    config.model.width = 256
    config.model.normalize = False
    config.attack.epsilon = "0.1"
    config.attack.step_size = "0.025"
    config.optimizer.learning_rate = 0.1
    config.weights.method = method.partition("-")[2] or "none"
    config.evaluation.every_epochs = 3
    config.evaluation.test_examples = 1000
    return config
