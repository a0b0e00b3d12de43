"""Revisiting Loss Landscape for Adversarial Robustness, the first version of AWP (arXiv 2020).

    awp-jax train --config=configs/arxiv_v1.py:mnist,at-awp --workdir=runs/mnist-at-awp
    awp-jax train --config=configs/arxiv_v1.py:cifar10,at-awp --workdir=runs/v1-at-awp
    awp-jax evaluate --workdir=runs/mnist-at-awp --attacks=fgsm,pgd-20,cw-100

The argument is DATA,METHOD. DATA: mnist (4-layer CNN, epsilon 0.3, Table 2), cifar10 (ResNet-18,
section 4.1 and Table 1), cifar10-wrn (WideResNet-34-10, Table 2). METHOD: at, trades, mart, rst,
each with -awp (the paper writes Madry+, TRADES+, MART+, RST+); at-random (random weight
perturbation) and at-pni (parametric noise injection, evaluated with --eot=20) for Table 1. RST
needs a file of unlabelled images (--config.data.extra=FILE).

Expected accuracy (%), Table 2:

    MNIST         natural   FGSM    PGD-20   CW-inf
    at            99.11     97.17   94.62    94.25
    at-awp        99.25     97.30   97.02    94.58
    trades        99.23     96.67   94.58    94.03
    trades-awp    98.87     97.03   96.88    95.10
    mart          98.74     97.87   96.48    96.10
    mart-awp      98.87     97.98   96.54    96.50

Table 1, CIFAR-10, ResNet-18, PGD-20: at 46.36, at-awp 51.19, at-random 46.50, at-pni 42.73 by the
average gradient. Table 3 (transfer) is `awp-jax evaluate --surrogate=RUN`: surrogates are a
naturally trained WideResNet-28-10, and on MNIST an independently trained copy.

Hardware and time: not stated in the paper. This project has not run these schedules in full.

MNIST batch size, weight decay and the training attack are not stated in the paper; the released
TRADES code gives 128, none, and 40 steps of 0.01. Test attacks: PGD with step epsilon / 10 on MNIST
and for Table 2 (section 4.2), 0.01 on CIFAR-10 with ResNet-18 (section 4.1).
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema

_METHODS = tuple(f"{m}{p}" for m in ("at", "trades", "mart", "rst") for p in ("", "-awp"))


def get_config(cell: str = "cifar10,at-awp") -> ConfigDict:
    """The config of one cell, see the module's docstring.

    Raises:
        ValueError: For a cell that is not one of these.
    """
    parts = cell.split(",")
    if len(parts) != 2:
        raise ValueError(f"The cell is {cell!r}, but DATA,METHOD (mnist,at-awp) was expected.")
    dataset = checks.choice(parts[0], ("mnist", "cifar10", "cifar10-wrn"), "data of this paper")
    method = checks.choice(parts[1], (*_METHODS, "at-random", "at-pni"), "method of this paper")

    config = schema.default()
    base, _, addition = method.partition("-")
    config.objective.name = "trades" if base == "rst" else base
    config.weights.method = addition if addition in ("awp", "random") else "none"
    config.model.pni = addition == "pni"
    config.weights.gamma = "0.005"
    if base == "rst":
        config.data.extra = "tiny-images-500k.npz"
    if dataset == "mnist":
        config.data.name = "mnist"
        config.data.crop_padding = 0
        config.data.flip = False
        config.model.name = "mnist-cnn"
        config.model.normalize = False
        config.epochs = 50
        config.schedule.milestones = (0.4, 0.8)  # epochs 20 and 40
        config.optimizer.learning_rate = 0.01
        config.optimizer.weight_decay = 0.0
        config.attack.epsilon = "0.3"
        config.attack.steps = 40
        config.attack.step_size = "0.01"
        config.evaluation.step_size = "0.03"
        config.objective.beta = 1.0  # released train_trades_mnist.py
        return config
    config.data.crop_mode = "zero"
    config.model.name = "wrn-34-10" if dataset == "cifar10-wrn" else "resnet-18"
    config.model.normalize = False
    config.epochs = 100
    config.schedule.milestones = (0.75, 0.9)  # epochs 75 and 90
    config.optimizer.weight_decay = 2e-4
    config.attack.step_size = "0.007"
    # Section 4.1, and section 4.2: epsilon / 10.
    config.evaluation.step_size = "8/2550" if dataset == "cifar10-wrn" else "0.01"
    config.objective.lambda_ = 6.0 if dataset == "cifar10-wrn" else 5.0
    return config
