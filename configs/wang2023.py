"""TRADES with a million generated images (Wang et al., ICML 2023), with and without AWP.

    awp-jax train --config=configs/wang2023.py:cifar10,linf,trades --workdir=runs/wang \
                  --config.data.extra=1m.npz
    awp-jax evaluate --workdir=runs/wang --checkpoints=average --sets=test --attacks=autoattack

The argument is DATA,NORM,METHOD: DATA of cifar10, cifar100; NORM of linf, l2; METHOD of trades,
trades-awp. Wang et al. train without AWP; its gamma of 0.005 is that of Table 2 of the AWP paper.

WideResNet-28-10 with SiLU, batches of 512 of which 70 % are generated, 400 passes over 50,000
images, beta 5, label smoothing 0.1, an average of the weights of decay 0.995: what the command in
the README of the released code (wzekai99/DM-Improves-AT) and its parser's defaults say. The
generated images, 1m.npz, are linked there.

Expected test accuracy (%, natural / AutoAttack of the average), as that README has it of its
checkpoints, which saw more images (up to 50 million) for longer than the command above:

    data, norm       WRN-28-10        WRN-70-16
    cifar10, linf    92.44 / 67.31    93.25 / 70.69
    cifar10, l2      95.16 / 83.63    95.54 / 84.86
    cifar100, linf   72.58 / 38.83    75.22 / 42.67

More files are named in data.extra, separated by commas; --config.model.name=dm-wrn-70-16.

Where this differs from the released code: its OneCycleLR moves once in an epoch and the momentum
with it (0.95 to 0.85 and back), here the rate in every step and the momentum not; its bias of the
last layer decays; it picks the best epoch by PGD-40 on the margin of 1,024 training images that
stay in the training set, here by PGD-20 on 1,024 that are held out.

Hardware and time: A100s, time not stated there. This project has not run these 400 passes.
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema


def get_config(cell: str = "cifar10,linf,trades") -> ConfigDict:
    """The config of one cell, see the module's docstring.

    Raises:
        ValueError: For a cell that is not one of these.
    """
    parts = cell.split(",")
    if len(parts) != 3:
        raise ValueError(
            f"The cell is {cell!r}, but DATA,NORM,METHOD (cifar10,linf,trades) was expected."
        )
    dataset, norm, method = parts
    checks.choice(dataset, ("cifar10", "cifar100"), "data set of this recipe")
    checks.choice(norm, ("linf", "l2"), "norm of this recipe")
    checks.choice(method, ("trades", "trades-awp"), "method of this recipe")

    config = schema.default()
    config.epochs = 400
    config.batch_size = 512

    config.data.name = dataset
    config.data.extra = "1m.npz"
    config.data.original_fraction = 0.3
    config.data.validation_examples = 1024
    config.data.crop_mode = "zero"

    config.model.name = "dm-wrn-28-10"

    config.objective.name = "trades"
    config.objective.beta = 5.0
    config.objective.label_smoothing = 0.1

    config.attack.norm = norm
    config.attack.start = "uniform"
    if norm == "l2":  # steps of epsilon / 5 from 0.001 N(0, 1), gowal21uncovering/utils/trades.py
        config.attack.epsilon, config.attack.step_size = "128/255", "128/1275"
        config.attack.start = "gaussian"

    config.weights.method = "awp" if method == "trades-awp" else "none"
    config.weights.gamma = "0.005"

    config.optimizer.learning_rate = 0.2
    config.optimizer.nesterov = True
    config.optimizer.decay = "kernels"
    config.schedule.name = "one-cycle"
    config.schedule.peak = 0.025

    config.averaging.name = "ema"
    config.averaging.decay = 0.995
    config.averaging.start_epoch = 10  # 2.5 % of all, as the highest rate
    config.averaging.warmup = True

    config.evaluation.every_epochs = 10
    return config
