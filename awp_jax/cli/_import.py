"""``awp-jax import``."""

from collections.abc import Sequence

from awp_jax import runs
from awp_jax.cli._command import Command
from awp_jax.cli._errors import UsageError
from awp_jax.cli._flags import boolean, given, required


def main(argv: Sequence[str]) -> int:
    """Imports; returns the exit status."""
    command = Command(
        "import",
        "Makes a run directory of a PyTorch checkpoint (.pt, .pth or .safetensors), which\n"
        "'awp-jax evaluate' then measures. Nothing in the file is executed.",
        argument="CHECKPOINT",
    )
    command.string("model", None, "its architecture, such as wrn-34-10 or preact-resnet-18")
    command.string("workdir", None, "the run directory to make")
    command.string("data", "cifar10", "the data set that it classifies")
    command.string("data_path", None, "where the data is; see awp_jax.data.load")
    command.string(
        "normalize",
        None,
        "true: images are normalised by the data's mean and deviation before the network, as for "
        "AT in the AWP release; false: not so, as in TRADES, MART, RST; by default as the "
        "checkpoint's own mean and deviation say, where it holds them, else false",
    )
    command.string("rename", None, "other names of modules in the file, such as fc:linear,head:fc")
    command.integer("width", None, "channels of the first stage; the architecture's by default")
    command.string("norm", "linf", "of the ball that it is evaluated in: linf, l2, l1")
    command.string("epsilon", "8/255", "radius that it is evaluated at")
    values = command.parse(argv)
    if not command.given:
        raise UsageError("The checkpoint is missing: awp-jax import CHECKPOINT --model=... .")
    found = runs.import_checkpoint(
        command.given,
        required(values, "workdir"),
        required(values, "model"),
        data_name=required(values, "data"),
        normalize=None if values["normalize"].value is None else boolean(values, "normalize"),
        norm=required(values, "norm"),
        epsilon=required(values, "epsilon"),
        rename=_pairs(values["rename"].value),
        **given(values, "data_path", "width"),
    )
    print(found)
    return 0


def _pairs(text: str | None) -> dict[str, str]:
    pairs = [part.split(":") for part in text.split(",")] if text else []
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise UsageError(f"--rename is {text!r}, but OLD:NEW,OLD:NEW was expected.")
    return {old: new for old, new in pairs}
