"""Adversarial training by attacks of one step, with and without AWP.

    awp-jax train --config=configs/fast.py:cifar10,n-fgsm --workdir=runs/n-fgsm
    awp-jax train --config=configs/fast.py:cifar10,n-fgsm-awp --workdir=runs/n-fgsm-awp
    awp-jax train --config=configs/fast.py:cifar10,free --workdir=runs/free
    awp-jax evaluate --workdir=runs/n-fgsm --sets=test --attacks=pgd-50 --restarts=10

The argument is DATA,METHOD: DATA of cifar10, cifar100, svhn; METHOD of n-fgsm (de Jorge et al.,
NeurIPS 2022: noise of twice epsilon, no projection), fgsm-rs (Wong et al., ICLR 2020: noise of
epsilon, a step of 1.25 epsilon, projected), free (Shafahi et al., NeurIPS 2019: each batch for 8
steps, whose gradient perturbs its images too), each with -awp. All are short forms of attack.name.

PreActResNet-18, 30 epochs of batches of 128, a rate that rises to 0.2 in the first half and falls
to 0 in the second, as the defaults of N-FGSM's released train.py (pdejorge/N-FGSM); for SVHN 0.05,
highest at two fifths, and an epsilon that grows over the first 5 epochs. Free: 11 epochs of 8 times
as many steps, and a highest rate of 0.04, as the defaults of train_free.py of Wong et al. (CIFAR10
of locuslab/fast_adversarial). AWP is not part of these papers: gamma 0.005 is this project's
choice, as is free on SVHN.

Expected: de Jorge et al. and Wong et al. show FGSM-RS at 8/255 near or beyond catastrophic
overfitting (robust accuracy falls to 0 within an epoch) and N-FGSM without it; watch the robust
accuracy of metrics.jsonl. With one step for the attack and one for the descent, a step costs about
a fifth of one with PGD-10, and one of free half of that. This project has not run the 30 epochs.
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema

_METHODS = tuple(f"{m}{p}" for m in ("n-fgsm", "fgsm-rs", "free") for p in ("", "-awp"))


def get_config(cell: str = "cifar10,n-fgsm") -> ConfigDict:
    """The config of one cell, see the module's docstring.

    Raises:
        ValueError: For a cell that is not one of these.
    """
    parts = cell.split(",")
    if len(parts) != 2:
        raise ValueError(f"The cell is {cell!r}, but DATA,METHOD (cifar10,n-fgsm) was expected.")
    dataset, method = parts
    checks.choice(dataset, ("cifar10", "cifar100", "svhn"), "data set of this recipe")
    checks.choice(method, _METHODS, "method of this recipe")

    config = schema.default()
    config.epochs = 30
    config.data.name = dataset
    config.data.crop_mode = "zero"
    config.attack.name = method.removesuffix("-awp")
    config.weights.method = "awp" if method.endswith("-awp") else "none"
    config.weights.gamma = "0.005"
    config.optimizer.learning_rate = 0.2
    config.schedule.name = "cyclic"
    config.schedule.peak = 0.5
    if dataset == "svhn":
        config.data.flip = False
        config.optimizer.learning_rate = 0.05
        config.schedule.peak = 0.4
        config.attack.warmup_epochs = 5.0
    if config.attack.name == "free":
        config.epochs, config.attack.replays = 11, 8
        config.optimizer.learning_rate = 0.04
    return config
