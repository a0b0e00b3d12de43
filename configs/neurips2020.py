"""Adversarial Weight Perturbation Helps Robust Generalization (NeurIPS 2020): Tables 1, 2 and 3.

    awp-jax train --config=configs/neurips2020.py:cifar10,linf,at-awp --workdir=runs/at-awp
    awp-jax train --config=configs/neurips2020.py:table2,trades-awp --workdir=runs/trades-awp
    awp-jax evaluate --workdir=runs/at-awp --attacks=fgsm,pgd-20,pgd-100,cw-100

The argument is DATA,NORM,METHOD for Tables 1 and 3 (PreActResNet-18): DATA of cifar10, cifar100,
svhn; NORM of linf, l2; METHOD of at, at-awp (trades, mart and their -awp also work, as in Figure
1b, rst and rst-awp; at-l1, at-l2, at-cutout, at-mixup of Tables 4 and 5). Or it is table2,METHOD
(WideResNet-34-10, CIFAR-10, Linf): at, trades, mart; WideResNet-28-10: rst, pre-training; each with
-awp. RST needs a file of unlabelled images (--config.data.extra=FILE). Pre-training starts at
another run (--config.init_from=RUN, by default runs/pre-trained; --config.init_checkpoint=best or
last), such as that of table2,pre-trained: AT on another data set with images of the same size, an
.npz of yours (downsampled ImageNet in Hendrycks et al., ICML 2019; only the first 5 epochs and the
learning rate 0.1 are this project's choice):

    awp-jax train --config=configs/neurips2020.py:table2,pre-trained --workdir=runs/pre-trained \
                  --config.data.path=imagenet32.npz
    awp-jax train --config=configs/neurips2020.py:table2,pre-training-awp --workdir=runs/fine-tuned

Expected robust test accuracy (%, PGD-20, best / last of 200 epochs, mean of 5 runs), Table 1:

    data, norm       AT              AT-AWP
    svhn, linf       53.36 / 44.49   59.12 / 55.87
    svhn, l2         66.87 / 65.03   72.57 / 67.73
    cifar10, linf    52.79 / 44.44   55.39 / 54.73
    cifar10, l2      69.15 / 65.93   72.69 / 72.08
    cifar100, linf   27.22 / 20.82   30.71 / 30.28
    cifar100, l2     41.33 / 35.27   45.60 / 44.66

Table 2 (natural / PGD-20 / AutoAttack, best per attack): AT 86.07 / 56.10 / 52.60, AT-AWP 85.57 /
58.14 / 54.04, TRADES 84.65 / 56.33 / 53.08, TRADES-AWP 85.36 / 59.27 / 56.17, MART 84.17 / 58.56 /
51.10, MART-AWP 84.43 / 60.68 / 54.23.

Hardware and time: on the authors' GPU an epoch took 276 s (AT) and 302 s (AT-AWP) for
PreActResNet-18 on CIFAR-10, 200 epochs 15 to 17 hours; 1,639 s and 91 hours for WideResNet-34-10
AT-AWP. This project has not run these 200 epochs; it says so wherever it gives a number.

The paper picks the best checkpoint on the test set. Here 1,000 training images are kept back for
that; for the paper's way add
--config.data.validation_examples=0 --config.evaluation.selection=test.
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema

_METHODS = tuple(
    f"{m}{p}" for m in ("at", "trades", "mart", "rst", "pre-training") for p in ("", "-awp")
)
_PRE = ("pre-trained", "pre-training")
# Rice et al. 2020, as section 5.3 has them. L2 is in place of weight decay.
_REGULARISED: dict[str, dict[str, float]] = {
    "at-l1": {"regularisation.l1": 5e-6},
    "at-l2": {"regularisation.l2": 5e-3, "optimizer.weight_decay": 0.0},
    "at-cutout": {"data.cutout": 14},
    "at-mixup": {"data.mixup": 1.4},
}


def get_config(cell: str = "cifar10,linf,at-awp") -> ConfigDict:
    """The config of one cell, see the module's docstring.

    Raises:
        ValueError: For a cell that is not one of these.
    """
    parts = cell.split(",")
    table2 = parts[0] == "table2"
    if len(parts) != (2 if table2 else 3):
        raise ValueError(
            f"The cell is {cell!r}, but DATA,NORM,METHOD (cifar10,linf,at-awp) or table2,METHOD "
            "was expected."
        )
    dataset, norm = ("cifar10", "linf") if table2 else parts[:2]
    checks.choice(dataset, ("cifar10", "cifar100", "svhn"), "data set of this table")
    checks.choice(norm, ("linf", "l2"), "norm of this table")
    own = ("pre-trained",) if table2 else ()
    method = checks.choice(parts[-1], (*_METHODS, *own, *_REGULARISED), "method of this table")
    base = method.split("-awp")[0]
    # RST trains with the loss of TRADES (section 2.1), pre-training fine-tunes with AT.
    objective = {"rst": "trades", "pre-training": "at", "pre-trained": "at"}.get(
        base, base.split("-")[0]
    )

    config = schema.default()  # CIFAR-10, Linf, AT-AWP as the paper and the released code have it
    config.data.name = dataset
    config.attack.norm = norm
    if norm == "l2":
        config.attack.epsilon, config.attack.step_size = "128/255", "15/255"
    if dataset == "cifar100":  # released train_cifar100.py
        config.data.crop_mode = "zero"
        config.data.rotation_degrees = 15.0
    if dataset == "svhn":  # released train_svhn.py; the paper's text says 0.1 and augmentation
        config.optimizer.learning_rate = 0.01
        config.data.crop_padding = 0
        config.data.flip = False
        config.weights.start_epoch = 5
        if norm == "linf":
            config.attack.step_size = "1/255"

    config.objective.name = objective
    if objective in ("trades", "mart"):
        # Released TRADES-AWP: inputs are not normalised, zero padding, weights perturbed from epoch
        # 10. The paper does not state these for MART; they are taken over from TRADES.
        config.model.normalize = False
        config.data.crop_mode = "zero"
        config.weights.start_epoch = 10
    config.objective.beta = 6.0
    config.objective.lambda_ = 6.0 if table2 else 5.0  # released MART: 6 for WRN, 5 for ResNet-18

    config.weights.method = "awp" if method.endswith("-awp") else "none"
    # Section 4.4: 1e-2 for Tables 1 and 3; section 5.1: 5e-3 for Table 2. The released defaults for
    # TRADES and MART are 5e-3 everywhere.
    config.weights.gamma = "0.005" if table2 or objective != "at" else "0.01"
    if table2:
        config.model.name = "wrn-28-10" if base in ("rst", *_PRE) else "wrn-34-10"
    for key, value in _REGULARISED.get(method, {}).items():
        group, _, leaf = key.partition(".")
        config[group][leaf] = value
    if base == "rst":  # released RST: half of a batch of 256 is unlabelled; Nesterov; cosine
        config.data.extra = "tiny-images-500k.npz"
        config.batch_size = 256
        config.optimizer.nesterov = True
        config.schedule.name = "cosine"
    if base in _PRE:  # other data has no statistics of its own, and both must be the same network
        config.model.normalize = False
    if base == "pre-trained":
        config.data.name = "npz"
        config.epochs = 5
    if base == "pre-training":  # section 5.1
        config.init_from = "runs/pre-trained"
        config.epochs = 50
        config.optimizer.learning_rate = 0.001
        config.schedule.name = "constant"
    return config
