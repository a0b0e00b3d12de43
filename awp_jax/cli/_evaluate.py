"""``awp-jax evaluate``."""

import sys
from collections.abc import Sequence

from awp_jax import parallel
from awp_jax.cli import _processes as processes
from awp_jax.cli._command import Command
from awp_jax.cli._flags import (
    boolean,
    declare_data_path,
    declare_dtype,
    declare_json,
    given,
    names,
    open_one,
    print_json,
)

_ATTACKS = (
    "fgsm, pgd-N, cw-N, spsa, feature, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, with N steps "
    "as in square-N; autoattack, plus, rand; paper for Table 2 of AWP; corruptions for noise, "
    "blur, contrast, JPEG, ... at five severities; clean is always measured"
)


def main(argv: Sequence[str]) -> int:
    """Evaluates; returns the exit status."""
    command = Command(
        "evaluate",
        "Measures accuracy and loss of a run's checkpoints on clean and on attacked images,\n"
        "prints tables and writes evaluation.json. Earlier results stay in it: attacks of the\n"
        "same settings, images and weights as one evaluation, those of others beside it, the\n"
        "widest first. What happened to each image goes to per_image/*.npz. The same command goes\n"
        "on where a stopped one was.",
    )
    command.string("workdir", None, "the run directory")
    command.string("checkpoints", "best,last", "which: best, last, epoch-N, every, average")
    command.string("attacks", "fgsm,pgd-20", _ATTACKS)
    command.string("sets", "train,test", "which images: train, validation, test")
    command.integer("examples", None, "so many of each set, classes in proportion; all by default")
    command.string("epsilon", None, "radius, such as 8/255; the config's by default")
    command.integer("restarts", None, "of the iterated attacks; the config's by default")
    command.integer(
        "eot",
        None,
        "for a randomised model (model.pni): random passes that each gradient and each verdict "
        "average over; 20 by default",
    )
    command.string("surrogate", None, "another run: attacks are crafted on it, this run judges")
    command.string("surrogate_checkpoint", None, "which: best, last; best where there is one")
    command.string("save_images", "false", "true: write the adversarial images, adversarial/*.npz")
    declare_json(command)
    declare_dtype(command)
    declare_data_path(command)
    processes.declare(command)
    values = command.parse(argv)
    run = open_one(values, processes.join(values))
    found = run.evaluate(
        checkpoints=names(values["checkpoints"].value, "checkpoints"),
        attacks=names(values["attacks"].value, "attacks"),
        sets=names(values["sets"].value, "sets"),
        save_images=boolean(values, "save_images"),
        **given(
            values,
            "examples",
            "epsilon",
            "restarts",
            "eot",
            "surrogate",
            "surrogate_checkpoint",
        ),
    )
    if parallel.is_main():
        if found.note:
            print(found.note, file=sys.stderr)
        if values["json"].value:
            print_json(found.values)
        else:
            print(f"{found.table()}\n\n{found.attacks()}")
    return 0
