"""AT, AT-AWP and their relatives side by side: on few MNIST images in minutes, and on CIFAR-10.

    for seed in 0 1 2; do for method in at at-awp at-rwp; do
        awp-jax train --config=configs/comparison.py:mnist,$method --config.seed=$seed \
                      --workdir=runs/comparison/$method-$seed
        awp-jax evaluate --workdir=runs/comparison/$method-$seed --attacks=pgd-20,apgd-ce
    done; done
    awp-jax report --workdir=... --output=runs/comparison/report

The argument is DATA,METHOD. With DATA mnist (a multi-layer perceptron of width 256 on 1,200 images,
200 more choose the best checkpoint; Linf 0.1, 60 epochs: enough for robust overfitting) METHOD is
at, at-awp or at-rwp; what came out, with its spread over three seeds, is in
results/comparison_mnist/README.md; about a minute for a run on two cores.

With DATA cifar10 METHOD can also be trades and trades-awp: PreActResNet-18 on all of CIFAR-10 as in
configs/neurips2020.py and configs/ijcai2022.py, with 60 epochs in place of 200 and bfloat16
compute: enough for robust overfitting. After the papers' 200 epochs (PGD-20, best / last): AT 52.79
/ 44.44, AT-AWP 55.39 / 54.73, AT-RWP 58.55 / 58.01. A step of AT-AWP costs 29 GFLOP per image, so
60 epochs are 87 PFLOP; not timed on a GPU yet. Training, attacks, landscapes and tables:

    python -m experiments.run comparison.cifar10 --scale=paper --workdir=runs/comparison
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema

_METHODS = {
    "mnist": ("at", "at-awp", "at-rwp"),
    "cifar10": ("at", "at-awp", "at-rwp", "trades", "trades-awp"),
}


def get_config(cell: str = "mnist,at-awp") -> ConfigDict:
    """The config of a cell.

    Raises:
        ValueError: For an unknown cell.
    """
    data, _, method = cell.partition(",")
    checks.choice(data, _METHODS, "data of this comparison")
    checks.choice(method, _METHODS[data], "method of this comparison")
    return _mnist(method) if data == "mnist" else _cifar10(method)


def _cifar10(method: str) -> ConfigDict:
    # By path, because `awp-jax train` reads this file alone; it has AWP's methods as well.
    papers = runpy.run_path(str(pathlib.Path(__file__).with_name("ijcai2022.py")))["get_config"]
    config = papers(f"cifar10,linf,{method}")
    config.weights.start_epoch = config.weights.start_epoch * 60 // config.epochs
    config.epochs = 60
    config.model.dtype = "bfloat16"
    return config


def _mnist(method: str) -> ConfigDict:
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
