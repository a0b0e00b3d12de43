"""A run directory in Python's hands: what ``awp-jax`` does, from a notebook.

>>> from awp_jax import runs
>>> run = runs.open("runs/at-awp")                          # doctest: +SKIP
>>> run.evaluate(attacks=["pgd-20"], examples=512)          # doctest: +SKIP
>>> run.landscape(points=21).plot()                         # doctest: +SKIP
>>> runs.compare(["runs/at", "runs/at-awp"]).save("report")  # doctest: +SKIP
"""

from awp_jax.extras import needed_by

with needed_by("awp_jax.runs", "train"):
    from awp_jax.progress import Moment
    from awp_jax.runs._describe import Description, describe
    from awp_jax.runs._diagnose import DiagnosisSettings, RunDiagnosis
    from awp_jax.runs._directory import Model
    from awp_jax.runs._evaluate import EvaluationSettings, RunEvaluation
    from awp_jax.runs._flatness import ALSO as FLATNESS_ALSO
    from awp_jax.runs._flatness import FlatnessSettings, RunFlatness, flatness_runs, read_flatness
    from awp_jax.runs._imported import Exported, Imported, import_checkpoint, open_experiment
    from awp_jax.runs._landscape import LandscapeSettings, RunLandscape, landscape_runs
    from awp_jax.runs._report import Report, compare, landscapes_together, measured_of
    from awp_jax.runs._run import Run, open, train

__all__ = [
    "Description",
    "DiagnosisSettings",
    "EvaluationSettings",
    "Exported",
    "FLATNESS_ALSO",
    "FlatnessSettings",
    "Imported",
    "LandscapeSettings",
    "Model",
    "Moment",
    "Report",
    "Run",
    "RunDiagnosis",
    "RunEvaluation",
    "RunFlatness",
    "RunLandscape",
    "compare",
    "describe",
    "flatness_runs",
    "import_checkpoint",
    "landscape_runs",
    "landscapes_together",
    "measured_of",
    "open",
    "open_experiment",
    "read_flatness",
    "train",
]
