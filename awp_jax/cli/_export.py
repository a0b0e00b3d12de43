"""``awp-jax export``."""

import pathlib
import shlex
from collections.abc import Sequence

from awp_jax.cli._flags import Command, required
from awp_jax.cli._import import open_experiment
from awp_jax.config import from_dict
from awp_jax.interop import save_torch
from awp_jax.training import Run, read_config


def main(argv: Sequence[str]) -> int:
    """Exports; returns the exit status."""
    command = Command(
        "export",
        "Writes a run's model as a PyTorch state dict, named as in the released models, so that\n"
        "it loads into them with a strict load_state_dict.",
    )
    command.string("workdir", None, "the run directory")
    command.string("output", None, "the file to write: .pt, .pth or .safetensors")
    command.string("checkpoint", "best", "which: best, last")
    values = command.parse(argv)
    workdir = pathlib.Path(required(values, "workdir"))
    print(export(workdir, required(values, "output"), required(values, "checkpoint")))
    return 0


def export(workdir: pathlib.Path, output: str, which: str = "best") -> str:
    """Writes a run's model as a PyTorch state dict.

    Args:
        workdir: The run directory; its data need not be there.
        output: Ends in ``.pt``, ``.pth`` or ``.safetensors``.
        which: ``"best"`` or ``"last"``.

    Returns:
        What was done, as text for a person.

    Raises:
        ValueError: For a directory that is no run, a missing checkpoint, or another suffix.
    """
    experiment, _ = open_experiment(from_dict(read_config(workdir)))
    state, info = Run(workdir, experiment).restore(which)
    classifier = experiment.classifier
    save_torch(output, classifier, state.params, state.batch_stats)
    note = ""
    if classifier.mean:
        note = (
            f"\nThe network expects normalised images: mean {classifier.mean}, standard deviation "
            f"{classifier.std}; a state dict does not hold them."
        )
    safe = pathlib.Path(output).suffix == ".safetensors"
    reader = "safetensors.torch.load_file" if safe else "torch.load"
    c = experiment.config
    back = [f"--model={c.model.name}", f"--data={c.data.name}", "--workdir=runs/imported"]
    back += [f"--width={c.model.width}"] * (c.model.width is not None)
    back += ["--normalize=true"] * bool(c.model.normalize)
    back += [f"--norm={c.attack.norm}", f"--epsilon={c.attack.epsilon}"]
    note += f"\nBack again: awp-jax import {shlex.join([output, *back])}"
    return (
        f"exported {classifier.name}, {which} checkpoint, step {info['step']}: {output}; weights "
        f"for {reader} and load_state_dict{note}"
    )
