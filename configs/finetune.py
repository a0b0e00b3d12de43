"""Fine-tuning of a trained or imported model in few epochs, with and without AWP.

    awp-jax import model.safetensors --model=wrn-28-10 --data=cifar10 --workdir=runs/imported
    awp-jax train  --config=configs/finetune.py:runs/imported,at-awp --workdir=runs/tuned
    awp-jax train  --config=configs/finetune.py:runs/imported,trades-awp --workdir=runs/tuned-trades

The argument is RUN,METHOD: a run directory, whose network, normalisation, data, norm and epsilon
are taken over, and METHOD of at, trades, mart, each with -awp. The network may have been trained
without an attack (adversarial fine-tuning) or with one.

All of the run's group `data` is taken over: its augmentation, its number of examples, and where it
was trained with more images, generated or unlabelled, also these. --config.data.extra=null
(and --config.data.extra_labels=null, where it has a file of labels) leaves them out.

Ten epochs of batches of 128; the rate rises to 0.01 in the first of them and falls along a cosine,
a slow start and a fast decay (Jeddi et al. 2020, "A simple fine-tuning is all you need", whose
own numbers are for models that were trained without an attack); gamma 0.005. Numbers and gamma are
this project's choice: the AWP paper fine-tunes for 50 epochs at a rate of 0.001, see
configs/neurips2020.py:table2,pre-training-awp.

Expected: nothing is claimed. Whether it gained anything is seen by awp-jax evaluate on both runs.
"""

import pathlib

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema
from awp_jax.training import read_config

_METHODS = tuple(f"{m}{p}" for m in ("at", "trades", "mart") for p in ("", "-awp"))


def get_config(cell: str = "") -> ConfigDict:
    """The config for one run and method, see the module's docstring.

    Raises:
        ValueError: For a method that is not one of these, or no run directory.
    """
    run, _, method = cell.rpartition(",")
    if cell and not run:
        raise ValueError(
            f"The cell is {cell!r}, but RUN,METHOD (runs/imported,at-awp) was expected."
        )
    method = checks.choice(method or "at-awp", _METHODS, "method of fine-tuning")

    config = schema.default()
    if run:
        before = schema.from_dict(read_config(pathlib.Path(run)))
        config.init_from = run
        config.data, config.model = before.data, before.model
        for key in ("norm", "epsilon", "large_epsilon", "step_size"):
            config.attack[key] = before.attack[key]
        if config.data.validation_examples == 0:  # as imported runs have it
            config.data.validation_examples = 1000
    config.epochs = 10

    config.objective.name = method.split("-")[0]
    config.weights.method = "awp" if method.endswith("-awp") else "none"
    config.weights.gamma = "0.005"

    config.optimizer.learning_rate = 0.01
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    return config
