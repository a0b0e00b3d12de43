"""Training: the step, its state and schedules, the loop, checkpoints."""

from awp_jax.training._checkpoints import BEST as BEST
from awp_jax.training._checkpoints import LAST as LAST
from awp_jax.training._checkpoints import CheckpointError as CheckpointError
from awp_jax.training._checkpoints import Checkpoints as Checkpoints
from awp_jax.training._experiment import Experiment as Experiment
from awp_jax.training._experiment import build as build
from awp_jax.training._experiment import create_classifier as create_classifier
from awp_jax.training._experiment import evaluation_attack as evaluation_attack
from awp_jax.training._experiment import subset as subset
from awp_jax.training._loop import NonFiniteError as NonFiniteError
from awp_jax.training._loop import Outcome as Outcome
from awp_jax.training._loop import train as train
from awp_jax.training._records import WorkdirError as WorkdirError
from awp_jax.training._records import read_config as read_config
from awp_jax.training._records import read_metrics as read_metrics
from awp_jax.training._records import write_json as write_json
from awp_jax.training._run import Run as Run
from awp_jax.training._run import open_run as open_run
from awp_jax.training._schedules import schedule as schedule
from awp_jax.training._state import TrainState as TrainState
from awp_jax.training._state import digest as digest
from awp_jax.training._state import init_state as init_state
from awp_jax.training._step import TrainingAttack as TrainingAttack
from awp_jax.training._step import WeightPerturbation as WeightPerturbation
from awp_jax.training._step import augmentation_keys as augmentation_keys
from awp_jax.training._step import make_train_step as make_train_step
