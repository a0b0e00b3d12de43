"""Training: the step, its state and schedules, the loop, checkpoints."""

from awp_jax.extras import needed_by

with needed_by("awp_jax.training", "train"):
    from awp_jax.files import StorageError, write_json
    from awp_jax.training._attack import TrainingAttack
    from awp_jax.training._averaging import averaging_rate, estimate_batch_stats
    from awp_jax.training._batch import augmentation_keys
    from awp_jax.training._checkpoints import (
        AVERAGE,
        BEST,
        KEPT,
        LAST,
        CheckpointError,
        Checkpoints,
    )
    from awp_jax.training._classifier import create_classifier
    from awp_jax.training._configured import (
        evaluation_attack,
        objective_of,
        training_attack,
        weight_perturbation,
    )
    from awp_jax.training._experiment import Experiment, build
    from awp_jax.training._feed import Feed
    from awp_jax.training._initial import initial_state
    from awp_jax.training._loop import train
    from awp_jax.training._optimizers import EntropySGDState, entropy_sgd
    from awp_jax.training._outcome import NonFiniteError, Outcome
    from awp_jax.training._own_batches import OwnBatches
    from awp_jax.training._records import (
        CONFIG,
        WorkdirError,
        absolute_paths,
        plain,
        read_config,
        read_metrics,
    )
    from awp_jax.training._regularisation import Regularisation
    from awp_jax.training._restore import checkpoint_names, kept_epochs, restore
    from awp_jax.training._schedules import schedule
    from awp_jax.training._state import TrainState, digest, init_state
    from awp_jax.training._step import make_train_step
    from awp_jax.training._teacher import teacher_of, with_teacher
    from awp_jax.training._weights import Ascent, WeightPerturbation

__all__ = [
    "AVERAGE",
    "Ascent",
    "BEST",
    "CONFIG",
    "CheckpointError",
    "Checkpoints",
    "EntropySGDState",
    "Experiment",
    "Feed",
    "KEPT",
    "LAST",
    "NonFiniteError",
    "Outcome",
    "OwnBatches",
    "Regularisation",
    "StorageError",
    "TrainState",
    "TrainingAttack",
    "WeightPerturbation",
    "WorkdirError",
    "absolute_paths",
    "augmentation_keys",
    "averaging_rate",
    "build",
    "checkpoint_names",
    "create_classifier",
    "digest",
    "entropy_sgd",
    "estimate_batch_stats",
    "evaluation_attack",
    "init_state",
    "initial_state",
    "kept_epochs",
    "make_train_step",
    "objective_of",
    "plain",
    "read_config",
    "read_metrics",
    "restore",
    "schedule",
    "teacher_of",
    "train",
    "training_attack",
    "weight_perturbation",
    "with_teacher",
    "write_json",
]
