"""Robust Weight Perturbation for Adversarial Training (IJCAI 2022): Tables 1, 2; Figures 1, 2.

    awp-jax train --config=configs/ijcai2022.py:cifar10,linf,at-rwp --workdir=runs/at-rwp
    awp-jax train --config=configs/ijcai2022.py:table2,trades-rwp --workdir=runs/trades-rwp
    awp-jax evaluate --workdir=runs/at-rwp --attacks=fgsm,pgd-20,pgd-100,cw-100

The argument is DATA,NORM,METHOD for Table 1 (PreActResNet-18): DATA of cifar10, cifar100, svhn;
NORM of linf, l2; METHOD of at, at-awp, at-rwp; for the figures also at-rwp-c-C (c_min of C nats)
and at-lsc-P-Q (AWP on examples with a loss of P to below Q nats). Or it is table2,METHOD
(WideResNet-34-10; RST: WideResNet-28-10; CIFAR-10, Linf): at, trades, rst, each with -awp, -rwp.

Expected robust test accuracy (%, PGD-20, best / last of 200 epochs), Table 1:

    data, norm       AT              AT-AWP          AT-RWP
    svhn, linf       53.22 / 45.13   59.49 / 55.16   61.15 / 57.45
    svhn, l2         66.71 / 65.25   72.80 / 68.40   73.35 / 69.48
    cifar10, linf    52.32 / 45.08   55.54 / 54.64   58.55 / 58.01
    cifar10, l2      69.40 / 66.02   72.72 / 72.48   74.47 / 73.84
    cifar100, linf   27.79 / 20.95   30.89 / 30.48   31.17 / 30.64
    cifar100, l2     40.95 / 36.24   45.63 / 44.98   45.71 / 45.05

Table 2 (natural / PGD-20 / AutoAttack, best): AT 86.52 / 55.47 / 52.18, AT-AWP 85.67 / 58.57 /
53.63, AT-RWP 86.86 / 62.87 / 54.61, TRADES 84.42 / 56.05 / 52.64, TRADES-AWP 84.55 / 59.20 / 55.32,
TRADES-RWP 86.14 / 60.45 / 57.20, RST 89.88 / 62.40 / 59.71, RST-AWP 88.01 / 63.67 / 59.80, RST-RWP
88.87 / 64.11 / 60.36.

Hardware and time: not stated in the paper. AWP's authors needed 15 to 17 hours for 200 epochs of
AT and AT-AWP of PreActResNet-18 on one GPU; RWP makes up to 10 passes for the perturbation where
AWP makes one. This project has not run these 200 epochs.

Training is that of configs/neurips2020.py: the paper gives the same settings, but for SVHN, where
it says learning rate 0.1 and AWP's released code has 0.01, as here.
"""

import pathlib
import re
import runpy

from ml_collections import ConfigDict

from awp_jax import checks

# By path, because `awp-jax train` reads this file alone.
_AWP = runpy.run_path(str(pathlib.Path(__file__).with_name("neurips2020.py")))["get_config"]
_METHODS = tuple(f"{m}{p}" for m in ("at", "trades", "rst") for p in ("", "-awp", "-rwp"))
_C_MIN = re.compile(r"at-rwp-c-(\d+(?:\.\d+)?)")
_RANGE = re.compile(r"at-lsc-(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")


def get_config(cell: str = "cifar10,linf,at-rwp") -> ConfigDict:
    """The config of one cell, see the module's docstring.

    Raises:
        ValueError: For a cell that is not one of these.
    """
    *where, method = cell.split(",")
    c_min, loss_range = _C_MIN.fullmatch(method), _RANGE.fullmatch(method)
    if not (c_min or loss_range):
        checks.choice(method, _METHODS, "method of this paper")
    base = method.split("-")[0]
    perturbed = method != base
    config = _AWP(",".join([*where, f"{base}-awp" if perturbed else base]))
    if method.endswith("-rwp") or c_min:
        config.weights.method = "rwp"
        config.weights.steps = 10  # K2, section 5.1
        config.weights.scope = "global"  # released code
        config.weights.c_min = 4.0 if config.data.name == "cifar100" else 1.7  # section 5.1
    if c_min:
        config.weights.c_min = float(c_min[1])
    if loss_range:
        config.weights.loss_range = (float(loss_range[1]), float(loss_range[2]))
    # Section 5.1: 0.01 for AT-RWP, 0.005 for TRADES- and RST-RWP, as in AWP's Table 1; the paper
    # does not say another value for WideResNet.
    config.weights.gamma = "0.01" if base == "at" else "0.005"
    return config
