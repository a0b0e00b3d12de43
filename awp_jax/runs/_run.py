"""A run in Python's hands: what the command line does, as methods."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ml_collections import ConfigDict

from awp_jax import checks
from awp_jax import config as schema
from awp_jax.compilation import use_compilation_cache
from awp_jax.evaluation import PerImage
from awp_jax.parts import Parts, record
from awp_jax.progress import Show
from awp_jax.runs import _landscape
from awp_jax.runs._diagnose import DiagnosisSettings, RunDiagnosis, diagnose_run
from awp_jax.runs._directory import RunDirectory
from awp_jax.runs._evaluate import EvaluationSettings, RunEvaluation, evaluate_run
from awp_jax.runs._flatness import FlatnessSettings, RunFlatness, flatness_runs
from awp_jax.runs._imported import Exported, export_run
from awp_jax.runs._per_image import read_kept
from awp_jax.runs._report import Report, compare
from awp_jax.training import BEST
from awp_jax.training import train as run_training

_Settings = TypeVar("_Settings")


def settings_of(kind: Callable[..., _Settings], given: _Settings | None, fields: Any) -> _Settings:
    """Settings as given, or made of their fields.

    Raises:
        ValueError: For both together, or a field that is none ("did you mean").
    """
    if given is not None:
        if fields:
            raise ValueError(
                f"Settings and {', '.join(fields)} were both given: give one of them, or "
                "dataclasses.replace(settings, ...)."
            )
        return given
    for name in fields:
        checks.choice(name, kind.__dataclass_fields__, "setting")  # type: ignore[attr-defined]
    return kind(**fields)


class Run(RunDirectory):
    """A run directory, opened: ``awp_jax.runs.open`` makes it.

    Nothing but ``config.json`` is read before it is asked for. What is measured is kept in the
    directory, as by the command line, and a call that was stopped goes on when it is made again.
    Settings are given by their fields, ``run.evaluate(attacks=["pgd-20"])``, or as a whole.
    """

    def evaluate(
        self,
        settings: EvaluationSettings | None = None,
        *,
        folder: str | pathlib.Path | None = None,
        progress: Show = "auto",
        **fields: Any,
    ) -> RunEvaluation:
        """Accuracy and loss of checkpoints, clean and attacked; see ``EvaluationSettings``.

        With ``folder`` the run's directory is only read: what is kept, is kept there.
        """
        chosen = settings_of(EvaluationSettings, settings, fields)
        return evaluate_run(self, chosen, folder=folder, progress=progress)

    def per_image(
        self, which: str = BEST, part: str = "test", attack: str | None = None
    ) -> PerImage:
        """What ``evaluate`` did to each image: predictions, losses, what broke it first.

        Args:
            which: The checkpoint.
            part: ``"train"``, ``"validation"`` or ``"test"``.
            attack: One that has to be among the attacks; ``None`` for any.

        Returns:
            That of the first evaluation in ``evaluation.json`` (the widest) that has it, with all
            attacks that were measured with its settings on the same images and weights.

        Raises:
            WorkdirError: When nothing is kept of it.
            ValueError: For another set.
        """
        return read_kept(self, which, part, attack)

    def landscape(
        self,
        settings: _landscape.LandscapeSettings | None = None,
        *,
        progress: Show = "auto",
        **fields: Any,
    ) -> _landscape.RunLandscape:
        """The loss along directions around checkpoints; see ``LandscapeSettings``."""
        chosen = settings_of(_landscape.LandscapeSettings, settings, fields)
        return _landscape.landscape_runs([self], chosen, progress=progress)[0]

    def flatness(
        self,
        settings: FlatnessSettings | None = None,
        *,
        progress: Show = "auto",
        **fields: Any,
    ) -> RunFlatness:
        """Average- and worst-case flatness of checkpoints; see ``FlatnessSettings``."""
        chosen = settings_of(FlatnessSettings, settings, fields)
        return flatness_runs([self], chosen, progress=progress)[0]

    def diagnose(
        self,
        settings: DiagnosisSettings | None = None,
        *,
        progress: Show = "auto",
        **fields: Any,
    ) -> RunDiagnosis:
        """Whether the robust accuracy can be trusted; see ``DiagnosisSettings``."""
        chosen = settings_of(DiagnosisSettings, settings, fields)
        return diagnose_run(self, chosen, progress=progress)

    def report(self) -> Report:
        """Tables and figures of this run; ``awp_jax.runs.compare`` puts several side by side."""
        return compare([self.workdir])

    def export(self, path: str | pathlib.Path, which: str = BEST) -> Exported:
        """Writes a checkpoint as a PyTorch state dict: ``.pt``, ``.pth`` or ``.safetensors``."""
        return export_run(self, path, which)


def open(
    workdir: str | pathlib.Path,
    *,
    devices: int | None = None,
    dtype: str | None = "float32",
    data_path: str | None = None,
    **given: Any,
) -> Run:
    """Opens a run directory.

    Args:
        workdir: As given to ``train`` or ``awp-jax train``.
        devices: Use the first so many; ``None`` for all.
        dtype: What the model computes in; ``None`` for what it was trained in. Models are judged in
            float32: rounding to bfloat16 hides what attacks would find.
        data_path: Where the data is now, in place of ``data.path``.
        **given: ``model=``, ``data=``, ... as given to ``train``: needed again only where they can
            be imported from no module.

    Returns:
        A ``Run``; neither data nor checkpoints are read yet.

    Raises:
        WorkdirError: When it is no run directory.
        ValueError: When its config does not fit this version.
    """
    use_compilation_cache()
    return Run(workdir, _parts(given), devices=devices, dtype=dtype, data_path=data_path)


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    max_steps: int | None = None,
    devices: int | None = None,
    progress: Show = "auto",
    extend: bool = False,
    batches: Iterable[Any] | None = None,
    **given: Any,
) -> Run:
    """Trains as ``config`` says, in ``workdir``; a started run goes on where it was.

    Args:
        config: In the schema of ``awp_jax.config.default``.
        workdir: The run directory, made when it is not there.
        max_steps: Stop and save after this many optimiser steps.
        devices: Use the first so many; ``None`` for all.
        progress: See ``awp_jax.progress.Progress``.
        extend: Go on with a finished run whose config has fewer epochs.
        batches: An iterator of your own to train on, see ``awp_jax.training.OwnBatches``.
        **given: Parts of your own, in place of what the config's names find: ``model``,
            ``objective``, ``attack``, ``weights``, ``optimizer``, ``data``, see
            ``awp_jax.parts.Parts`` and docs/own.md. ``config.json`` names them; one that can be
            imported from no module (a lambda, a class of a notebook) must be given to ``open``
            again.

    Returns:
        The run, opened.

    Raises:
        ValueError: As ``awp_jax.training.train``.
    """
    found = _parts(given)
    use_compilation_cache()
    run_training(
        record(schema.from_dict(config), found),
        workdir,
        max_steps=max_steps,
        devices=devices,
        progress=progress,
        extend=extend,
        given=found,
        batches=batches,
    )
    return open(workdir, devices=devices, **given)


def _parts(given: dict[str, Any]) -> Parts:
    for name in given:
        checks.choice(name, Parts._fields, "argument")
    return Parts(**given)
