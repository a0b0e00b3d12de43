"""Another run, on which attacks are crafted."""

import pathlib
from typing import Any, NamedTuple

from jax.tree_util import Partial

from awp_jax.runs._directory import RunDirectory
from awp_jax.training import BEST, LAST, CheckpointError, TrainState


class Surrogate(NamedTuple):
    """A model to craft attacks on.

    Attributes:
        name: Of its run directory.
        logits_fn: ``images -> logits``, or ``(images, key) -> logits`` where ``is_random``.
        is_random: Whether it is randomised.
        identity: Plain values that say which weights these are.
    """

    name: str
    logits_fn: Partial
    is_random: bool
    identity: dict[str, Any]


def open_surrogate(
    workdir: str,
    which: str | None,
    target: RunDirectory,
    devices: int | None = None,
) -> Surrogate:
    """Opens a run to craft attacks on.

    Args:
        workdir: Its run directory.
        which: ``"best"`` or ``"last"``; ``None``: the best, where there is one.
        target: The run that is judged; the architecture and the normalisation may differ.
        devices: Use the first so many; ``None`` for all. It computes in what the target does, or
            where that is its own, in its own.

    Raises:
        ValueError: When its images or classes are not the target's, it is no run, or has no such
            checkpoint.
    """
    other = RunDirectory(workdir, devices=devices, dtype=target.dtype)
    ours, theirs = target.experiment.classifier, other.experiment.classifier
    for what, mine, its in (
        ("images", "x".join(map(str, ours.image_shape)), "x".join(map(str, theirs.image_shape))),
        ("classes", ours.num_classes, theirs.num_classes),
    ):
        if mine != its:
            raise ValueError(
                f"surrogate {workdir} is for {what} {its}, but {target.workdir} for {mine}: "
                "images crafted on it do not fit."
            )
    which, (state, info) = _restored(other, which)
    identity = {
        "run": pathlib.Path(workdir).name,
        "checkpoint": which,
        "step": info["step"],
        "digest": info.get("digest"),
        "data": other.experiment.config.data.name,
        "model": other.experiment.config.model.to_json(),
    }
    return Surrogate(
        pathlib.Path(workdir).resolve().name, other.logits_fn(state), theirs.is_random, identity
    )


def _restored(
    run: RunDirectory, which: str | None
) -> tuple[str, tuple[TrainState, dict[str, Any]]]:
    if which is not None:
        return which, run.restore(which)
    try:
        return BEST, run.restore(BEST)
    except CheckpointError:
        return LAST, run.restore(LAST)
