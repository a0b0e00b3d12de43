"""``awp-jax import``."""

from collections.abc import Sequence

from awp_jax import models, runs
from awp_jax.cli._command import Command
from awp_jax.cli._errors import UsageError
from awp_jax.cli._flags import boolean, given, required


def main(argv: Sequence[str]) -> int:
    """Imports; returns the exit status."""
    command = Command(
        "import",
        "Makes a run directory of a PyTorch checkpoint (.pt, .pth, .safetensors, an index of\n"
        "several, a folder, or hf://owner/name[/file] of the Hugging Face hub), which\n"
        "'awp-jax evaluate' then measures. Nothing in the file is executed.",
        argument="CHECKPOINT",
    )
    command.string("model", None, "its architecture, such as wrn-34-10 or preact-resnet-18")
    command.string(
        "as",
        None,
        "in place of --model: its name at RobustBench, such as Wang2023Better_WRN-28-10, which "
        "knows model, data, normalisation, norm and radius; --data and --norm choose where a name "
        "stands for several",
    )
    command.switch("list", "prints the names that --as knows, and imports nothing")
    command.string("workdir", None, "the run directory to make")
    command.string("data", None, "the data set that it classifies; cifar10 by default")
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
    command.string("norm", None, "of the ball that it is evaluated in: linf (default), l2, l1")
    command.string("epsilon", None, "radius that it is evaluated at; 8/255 by default")
    values = command.parse(argv)
    if values["list"].value:
        print(_listed())
        return 0
    if not command.given:
        raise UsageError("The checkpoint is missing: awp-jax import CHECKPOINT --model=... .")
    if not values["as"].value:
        required(values, "model")
    elif values["model"].value:
        raise UsageError("--as and --model are both given: give one of them.")
    found = runs.import_checkpoint(
        command.given,
        required(values, "workdir"),
        values["model"].value,
        published=values["as"].value,
        data_name=values["data"].value,
        normalize=None if values["normalize"].value is None else boolean(values, "normalize"),
        rename=_pairs(values["rename"].value),
        **given(values, "data_path", "width", "norm", "epsilon"),
    )
    print(found)
    return 0


def _listed() -> str:
    head = ("name", "data", "norm", "epsilon", "model")
    rows = [head] + [(e.name, e.data, e.norm, e.epsilon, e.model) for e in models.PUBLISHED]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _pairs(text: str | None) -> dict[str, str]:
    pairs = [part.split(":") for part in text.split(",")] if text else []
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise UsageError(f"--rename is {text!r}, but OLD:NEW,OLD:NEW was expected.")
    return {old: new for old, new in pairs}
