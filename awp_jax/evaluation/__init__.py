"""Robust accuracy and robust loss of a checkpoint, or of any logits function."""

from awp_jax.evaluation._diagnose import Diagnosis as Diagnosis
from awp_jax.evaluation._diagnose import diagnose as diagnose
from awp_jax.evaluation._evaluate import Evaluation as Evaluation
from awp_jax.evaluation._evaluate import evaluate as evaluate
from awp_jax.evaluation._measure import Measurement as Measurement
from awp_jax.evaluation._measure import measure as measure
from awp_jax.evaluation._names import attack_by_name as attack_by_name
from awp_jax.evaluation._names import attacks_by_name as attacks_by_name
from awp_jax.evaluation._outcomes import Outcome as Outcome
from awp_jax.evaluation._partial import PartialResults as PartialResults
from awp_jax.evaluation._predict import predict as predict
from awp_jax.evaluation._suspicions import Check as Check
from awp_jax.files import write_arrays as write_arrays
