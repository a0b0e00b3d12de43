"""``per_image/``: what each evaluation of a run did to each image."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

from awp_jax import checks
from awp_jax.evaluation import PerImage
from awp_jax.evaluation._per_image import read_per_image, together
from awp_jax.files import checksum
from awp_jax.runs._directory import SETS, RunDirectory
from awp_jax.runs._kept import OTHERS, SAME, read_evaluation
from awp_jax.training import WorkdirError

PER_IMAGE = "per_image"


def _files(
    folder: pathlib.Path, one: Mapping[str, Any], which: str, part: str, examples: int
) -> Any:
    """The files of one evaluation: of its settings, on these weights, on so many images."""
    identity = {name: one.get(name) for name in SAME}
    identity |= {"weights": one["checkpoints"][which]["digest"], "examples": examples}
    # Best and last are often the same weights: what one has, the other gets.
    return sorted((folder / PER_IMAGE).glob(f"*-{part}-{checksum(identity):08x}.npz")), (
        folder / PER_IMAGE / f"{which}-{part}-{checksum(identity):08x}.npz"
    )


def kept_attacks(
    folder: pathlib.Path, one: Mapping[str, Any], which: str, part: str, examples: int
) -> list[str]:
    """Names of the attacks that were measured before, with these settings, on these images."""
    found, _ = _files(folder, one, which, part, examples)
    return [str(name) for path in found[:1] for name in read_per_image(path, WorkdirError).attacks]


def keep_per_image(
    folder: pathlib.Path, one: Mapping[str, Any], which: str, part: str, found: PerImage
) -> pathlib.Path:
    """Writes what an evaluation did to each image, beside what it did before.

    Args:
        folder: Where ``evaluation.json`` lies.
        one: The evaluation, as ``evaluation.json`` will hold it; of its checkpoints ``which``.
        which: The checkpoint.
        part: The set.
        found: From ``Evaluation.per_image``.
    """
    there, path = _files(folder, one, which, part, len(found.labels))
    if there:
        path = there[0]
        with contextlib.suppress(WorkdirError):  # a damaged one is no loss of what was found now
            found = together(read_per_image(path, WorkdirError), found)
    found.save(path)
    return path


def read_kept(run: RunDirectory, which: str, part: str, attack: str | None) -> PerImage:
    """See ``Run.per_image``."""
    checks.choice(part, SETS, "set")
    evaluation = read_evaluation(run.workdir)
    every = [] if evaluation is None else [evaluation, *evaluation.get(OTHERS, [])]
    for one in every:
        measured = one["checkpoints"].get(which, {}).get(part)
        if measured is None:
            continue
        there, _ = _files(run.workdir, one, which, part, measured["clean"]["examples"])
        for path in there:
            found = read_per_image(path, WorkdirError)
            if attack is None or attack in found.attacks:
                return found
    what = f"{attack} on {which} {part}" if attack else f"{which} {part}"
    raise WorkdirError(
        f"{run.workdir / PER_IMAGE} holds nothing of {what}: run.evaluate(...) or awp-jax evaluate "
        "writes it."
    )
