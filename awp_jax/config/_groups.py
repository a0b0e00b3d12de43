"""Every key of a config, once: name, default, what it may hold, what it means.

The defaults are AT-AWP of PreActResNet-18 on CIFAR-10 (NeurIPS 2020, Table 1).
"""

from awp_jax.config._inputs import INPUTS
from awp_jax.config._keys import group
from awp_jax.config._kinds import RADIUS, STEP, choice, integer, mesh, optional, rules, tracked
from awp_jax.config._method import METHOD

GROUPS = (
    *INPUTS,
    *METHOD,
    group(
        "evaluation",
        "Measuring during training, and the defaults of awp-jax evaluate.",
        ("steps", 20, integer(1), "Of PGD."),
        (
            "step_size",
            None,
            optional(STEP),
            "In pixel units of [0, 1]; None: that of the training attack.",
        ),
        (
            "epsilon",
            None,
            optional(RADIUS),
            "Radius, in pixel units of [0, 1]; None: that of the training attack.",
        ),
        ("restarts", 1, integer(1), "Of PGD."),
        ("batch_size", 256, integer(1), "Images at once."),
        ("every_epochs", 1, integer(1), "How often, in epochs."),
        ("train_examples", 1000, integer(0), "For the curves during training; 0: none."),
        ("test_examples", 1000, integer(1), "For the curves during training."),
        (
            "selection",
            "validation",
            choice("validation", "test"),
            "On which images the best checkpoint is picked (and which are reported).",
        ),
    ),
    group(
        "parallel",
        "How many devices are used; the numbers stay the same, to rounding.",
        (
            "mesh",
            "data:-1",
            mesh(),
            "The devices, -1 for what is left: data:2,fsdp:4 splits weights, moments and averages "
            "among four, and batches among all eight.",
        ),
        (
            "rules",
            "",
            rules(),
            "Along which axis weights are split, as linear.kernel:0,*embed*:none, where not along "
            "the largest.",
        ),
    ),
    group(
        "training",
        "How the loop runs; the numbers stay the same, to rounding.",
        (
            "steps_per_call",
            1,
            integer(1),
            "Optimiser steps that are one compiled program; for small models on GPUs and TPUs.",
        ),
    ),
    group(
        "checkpoint",
        "What is kept of a run.",
        ("every_epochs", 1, integer(1), "How often it is saved, in epochs."),
        (
            "keep_every_epochs",
            0,
            integer(0),
            "Kept for good, for curves over training; 0: none.",
        ),
        ("every_steps", 0, integer(0), "Also in the middle of an epoch; 0: never."),
    ),
    group(
        "logging",
        "Lines of metrics.jsonl.",
        ("every_steps", 50, integer(1), "How often, in steps."),
        (
            "tracker",
            None,
            optional(tracked()),
            "A service that gets them as well, wandb:PROJECT or trackio:PROJECT; None: none.",
        ),
    ),
)
