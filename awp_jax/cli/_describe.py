"""``awp-jax describe``."""

import pathlib
import textwrap
from collections.abc import Sequence

from awp_jax import checks
from awp_jax.cli._command import Command
from awp_jax.cli._flags import declare_json, print_json, read_config
from awp_jax.config import GROUPS, Key, from_dict, to_yaml
from awp_jax.runs import describe, open_experiment
from awp_jax.training import read_config as read_stored


def main(argv: Sequence[str]) -> int:
    """Describes; returns the exit status."""
    command = Command(
        "describe",
        "Shows what a config stands for: its values, the model's parameters, steps per epoch,\n"
        "what is perturbed and how much, operations and estimated memory. Nothing is trained or\n"
        "written.\n"
        "What it prints is YAML, with all but the values in comments: --config=FILE.yaml reads it.",
        with_config=True,
        instead=("workdir", "keys"),
    )
    command.string("workdir", None, "a run directory, whose config is described")
    command.string("keys", None, "instead, what the keys of a group mean, such as attack, or all")
    command.integer("devices", 1, "how many would train it, for the memory on each")
    declare_json(command)
    values = command.parse(argv)
    if values["keys"].value:
        print(meanings(values["keys"].value))
        return 0
    workdir = values["workdir"].value
    if workdir:
        config = from_dict(read_stored(pathlib.Path(workdir)))
    else:
        config = read_config(command)
    experiment, problem = open_experiment(config)
    description = describe(experiment, devices=values["devices"].value or 1)
    if values["json"].value:
        print_json({"config": experiment.config.to_dict(), **description._asdict()})
        return 0
    note = f"\n\nThe data was not found, so its published sizes are used: {problem}"
    about = description.text() + (note if problem else "")
    print(to_yaml(experiment.config) + "\n" + textwrap.indent(about, "# ", lambda line: True))
    return 0


def meanings(group: str) -> str:
    """What the keys of a group mean, with their defaults; of all groups for ``"all"``.

    Raises:
        ValueError: For a group that is none.
    """
    checks.choice(group, ["all", *(g.name for g in GROUPS if g.name)], "group of config keys")
    blocks = []
    for one in GROUPS:
        if group in ("all", one.name):
            lines = [f"{one.name}: {one.sentence}" if one.name else one.sentence]
            for key in one.keys:
                lines.append(f"  {one.path(key)} = {key.default!r}  ({_expected(key)})")
                lines.append(f"      {key.sentence}")
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _expected(key: Key) -> str:
    return f"{key.kind.expected}, or None" if key.kind.optional else key.kind.expected
