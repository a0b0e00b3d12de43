"""The fixed model that an objective learns from: a checkpoint of another run."""

import dataclasses
import pathlib
from typing import Any

import jax

from awp_jax import data, parallel
from awp_jax.config import from_dict
from awp_jax.training._experiment import Experiment, build
from awp_jax.training._initial import restored
from awp_jax.training._records import read_config
from awp_jax.training._state import digest


def with_teacher(student: Experiment) -> Experiment:
    """``student`` with the teacher that ``objective.teacher`` names, where it names one.

    Its weights are leaves, on every device of the student's mesh. It computes in what it was
    trained in, on its running statistics.

    Args:
        student: What the config of the run stands for.

    Returns:
        The same, ready to ``step``.

    Raises:
        ValueError: In one sentence, when there is no such run, its checkpoint is damaged, it is for
            other images or classes, or it is randomised.
    """
    workdir = student.config.objective.teacher
    if not workdir:
        return student
    path, what = pathlib.Path(workdir), f"objective.teacher is {workdir}, but"
    teacher = teacher_of(student)
    found = teacher.classifier
    try:
        state = restored(path, teacher, student.config.objective.teacher_checkpoint)
    except ValueError as error:
        raise ValueError(f"{what} a run to learn from was expected there: {error}") from None
    logits_fn = found.logits_fn(state.params, state.batch_stats)
    everywhere = jax.device_put(logits_fn, parallel.replicated(student.mesh))
    return dataclasses.replace(student, teacher=everywhere)


def teacher_of(student: Experiment) -> Experiment:
    """What the config of the teacher stands for, without its weights.

    Args:
        student: One whose ``objective.teacher`` names a run directory.

    Raises:
        ValueError: In one sentence, when there is no such run, it is for other images or classes,
            or it is randomised.
    """
    workdir = student.config.objective.teacher
    what = f"objective.teacher is {workdir}, but"
    try:
        config = from_dict(read_config(pathlib.Path(workdir)))
        ours, theirs = student.config.data, config.data
        # Of the same data set it need not be read twice: only sizes count here.
        same = (ours.name, ours.downsample) == (theirs.name, theirs.downsample)
        same &= ours.path == theirs.path or data.published_sizes(ours.name, 0) is not None
        teacher = build(config, student.splits if same else None, devices=student.mesh.size)
    except ValueError as error:
        raise ValueError(f"{what} a run to learn from was expected there: {error}") from None
    found, expected = teacher.classifier, student.classifier
    if _sizes(found) != _sizes(expected):
        raise ValueError(
            f"{what} it is a model of {_sizes(found)}, and one of {_sizes(expected)} was expected."
        )
    if found.is_random:
        raise ValueError(f"{what} its model {found.name} draws noise: a fixed one was expected.")
    return teacher


def mark_of(experiment: Experiment) -> dict[str, str]:
    """What checkpoints of a student say of its teacher: a digest of its weights and statistics.

    Returns:
        ``{"teacher": eight hexadecimal digits}``; ``{}`` where there is none.
    """
    if experiment.teacher is None:
        return {}
    return {"teacher": f"{int(digest(experiment.teacher)):08x}"}


def check_same(mark: dict[str, str], info: dict[str, Any], workdir: str | None) -> None:
    """Refuses to go on with another teacher than the run began with.

    Args:
        mark: Of the teacher that is there now, from ``mark_of``.
        info: Beside the arrays of the student's checkpoint; of earlier versions without a mark.
        workdir: Where the teacher is.

    Raises:
        ValueError: In one sentence, when they differ.
    """
    then, now = info.get("teacher"), mark.get("teacher")
    if then and then != now:
        raise ValueError(
            f"objective.teacher is {workdir}, whose weights have the digest {now}, but this run "
            f"has learnt from weights of the digest {then}: put that checkpoint back, or begin a "
            "new run in another --workdir."
        )


def _sizes(classifier: Any) -> str:
    shape = "x".join(str(side) for side in classifier.image_shape)
    return f"{shape} images and {classifier.num_classes} classes"
