"""Robust accuracy and robust loss of a checkpoint, or of any logits function."""

from awp_jax.evaluation._corruptions import CorruptionAccuracy, corruption_accuracy
from awp_jax.evaluation._diagnose import Diagnosis, diagnose
from awp_jax.evaluation._evaluate import Evaluation, evaluate
from awp_jax.evaluation._measure import Measurement, measure, measure_each
from awp_jax.evaluation._names import attack_by_name, attacks_by_name
from awp_jax.evaluation._outcomes import Outcome
from awp_jax.evaluation._partial import PartialResults
from awp_jax.evaluation._per_image import PerImage, read_per_image
from awp_jax.evaluation._predict import predict
from awp_jax.evaluation._suspicions import Check
from awp_jax.files import write_arrays

__all__ = [
    "CorruptionAccuracy",
    "Check",
    "Diagnosis",
    "Evaluation",
    "Measurement",
    "Outcome",
    "PartialResults",
    "PerImage",
    "attack_by_name",
    "attacks_by_name",
    "corruption_accuracy",
    "diagnose",
    "evaluate",
    "measure",
    "measure_each",
    "predict",
    "read_per_image",
    "write_arrays",
]
