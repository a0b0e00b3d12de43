"""``awp-jax export``."""

from collections.abc import Sequence

from awp_jax import runs
from awp_jax.cli._command import Command
from awp_jax.cli._flags import required


def main(argv: Sequence[str]) -> int:
    """Exports; returns the exit status."""
    command = Command(
        "export",
        "Writes a run's model as a PyTorch state dict, named as in the released models, so that\n"
        "it loads into them with a strict load_state_dict.",
    )
    command.string("workdir", None, "the run directory")
    command.string(
        "output", None, "the file to write: .pt, .pth or .safetensors, or hf://owner/name"
    )
    command.string("checkpoint", "best", "which: best, last")
    values = command.parse(argv)
    run = runs.open(required(values, "workdir"), dtype=None)
    print(run.export(required(values, "output"), required(values, "checkpoint")))
    return 0
