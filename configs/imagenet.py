"""ImageNet: ResNet-50 and ConvNeXt-T against Linf 4/255, attacks of two or three steps, AWP or not.

    awp-jax train --config=configs/imagenet.py:resnet-50,at-awp --workdir=runs/resnet-50 \
                  --config.data.path=/path/to/imagenet
    awp-jax train --config=configs/imagenet.py:convnext-t,at-awp --workdir=runs/convnext-t \
                  --config.data.path=/path/to/imagenet
    awp-jax evaluate --workdir=runs/convnext-t --sets=test --examples=5000 --attacks=autoattack

The argument is MODEL,METHOD: MODEL of resnet-50, convnext-t, convnext-t-convstem; METHOD of at,
at-awp. The data is class folders, tar or array_record shards, see docs/train.md.

ResNet-50 (Salman et al., NeurIPS 2020: SGD, 90 epochs of batches of 512, rate 0.1, a tenth of it
after each 30, weight decay 1e-4, PGD-3 of steps of 2/3 epsilon). ConvNeXt-T (Singh et al., NeurIPS
2023; released run_train.sh and main.py of nmndeep/revisiting-at: AdamW, 50 epochs, rate 0.001 that
rises for 10 epochs and falls along a cosine, weight decay 0.05 on kernels alone, label smoothing
0.1, two steps of the attack, an average of the weights). Images are normalised for ResNet-50 alone.

AWP, of gamma 0.005, is this project's addition to both; neither paper has it.

Expected (%, natural / AutoAttack at 4/255, without AWP, from RobustBench and the README of
nmndeep/revisiting-at): ResNet-50 64.02 / 34.96 (Salman2020Do_R50), ConvNeXt-T-ConvStem 72.7 / 49.5
(300 epochs). This project has not trained on ImageNet.

Where this differs from the released code: the attack is PGD with steps of epsilon, where Singh et
al. have APGD of two steps; of their heavy augmentation only random resized crops, mirroring, mixup
or CutMix and random erasing are here, and only crops and mirroring are on; AdamW's second beta is
0.999, theirs 0.95; their ConvNeXt starts from weights that were trained without an attack
(--config.init_from=RUN).

Hardware and time: not stated for ResNet-50; 8 A100 for ConvNeXt. `awp-jax describe` prints memory
and operations.
"""

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema

_MODELS = ("resnet-50", "convnext-t", "convnext-t-convstem")


def get_config(cell: str = "resnet-50,at-awp") -> ConfigDict:
    """The config of one cell, see the module's docstring.

    Raises:
        ValueError: For a cell that is not one of these.
    """
    parts = cell.split(",")
    if len(parts) != 2:
        raise ValueError(f"The cell is {cell!r}, but MODEL,METHOD (resnet-50,at-awp) was expected.")
    model = checks.choice(parts[0], _MODELS, "model of this recipe")
    method = checks.choice(parts[1], ("at", "at-awp"), "method of this recipe")

    config = schema.default()
    config.batch_size = 512
    config.data.name = "imagenet"
    config.data.validation_examples = 5000
    config.data.resized_crop = 0.08
    config.data.crop_padding = 0
    config.data.workers = 8
    config.model.dtype = "bfloat16"
    config.attack.epsilon = "4/255"
    config.weights.method = "awp" if method == "at-awp" else "none"
    config.weights.gamma = "0.005"

    if model == "resnet-50":
        config.epochs = 90
        config.model.name = "imagenet-resnet-50"
        config.attack.steps, config.attack.step_size = 3, "8/765"  # 2/3 of epsilon
        config.optimizer.weight_decay = 1e-4
        config.schedule.milestones = (1 / 3, 2 / 3)
    else:
        config.epochs = 50
        config.model.name = model
        config.model.normalize = False
        config.model.remat = True
        config.objective.label_smoothing = 0.1
        config.attack.steps, config.attack.step_size = 2, "4/255"
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 0.05
        config.optimizer.decay = "kernels"
        config.schedule.name = "cosine"
        config.schedule.warmup_epochs = 10.0
        config.averaging.name = "ema"
        config.averaging.decay = 0.9999  # this project's choice

    config.evaluation.every_epochs = 5
    config.evaluation.steps = 10
    config.evaluation.batch_size = 128
    return config
