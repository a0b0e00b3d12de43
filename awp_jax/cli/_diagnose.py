"""``awp-jax diagnose``."""

from collections.abc import Sequence

import jax

from awp_jax import data, parallel, streams
from awp_jax.cli import _processes as processes
from awp_jax.cli._evaluate import passes_of
from awp_jax.cli._flags import Command, UsageError, chosen_dtype, declare_dtype, required
from awp_jax.cli._surrogate import open_surrogate
from awp_jax.evaluation import diagnose
from awp_jax.files import write_json
from awp_jax.reporting import diagnosis_figure, save_figure
from awp_jax.training import open_run


def main(argv: Sequence[str]) -> int:
    """Diagnoses; returns the exit status."""
    command = Command(
        "diagnose",
        "Tells whether the robust accuracy of a run can be trusted or its gradients mislead\n"
        "attacks; writes diagnosis.json and figures/diagnosis.png and .pdf.",
    )
    command.string("workdir", None, "the run directory")
    command.string("checkpoint", "best", "which: best, last")
    command.string("surrogate", None, "another run directory, to transfer attacks from")
    command.string("surrogate_checkpoint", None, "which: best, last; best where there is one")
    command.integer("examples", 200, "so many test images, classes in proportion")
    command.string("epsilon", None, "radius, such as 8/255; the config's by default")
    command.integer("queries", 1000, "of the Square attack")
    command.integer("eot", None, "for a randomised model: random passes to average over; 20")
    declare_dtype(command)
    processes.declare(command)
    values = command.parse(argv)
    workdir = required(values, "workdir")
    devices = processes.join(values)
    dtype = chosen_dtype(values)
    run = open_run(workdir, devices=devices, dtype=dtype)
    config = run.experiment.config
    images = data.subset(run.experiment.splits.test, values["examples"].value or 200)
    which = required(values, "checkpoint")
    eot = passes_of(values["eot"].value, run.experiment.classifier.is_random)
    surrogate_fn = None
    if values["surrogate"].value:
        which_other = values["surrogate_checkpoint"].value
        other = open_surrogate(values["surrogate"].value, which_other, run, devices, dtype)
        if other.is_random:
            raise UsageError(f"--surrogate={values['surrogate'].value} is a randomised model.")
        surrogate_fn = other.logits_fn
    elif values["surrogate_checkpoint"].value:
        raise UsageError("--surrogate_checkpoint is given without --surrogate.")
    found = diagnose(
        run.logits_fn(run.restore(which)[0]),
        jax.random.fold_in(run.experiment.key, streams.RUN_DIAGNOSE),
        images.images,
        images.labels,
        norm=config.attack.norm,
        epsilon=values["epsilon"].value or config.evaluation.epsilon or config.attack.epsilon,
        surrogate_fn=surrogate_fn,
        queries=values["queries"].value or 1000,
        eot=eot,
        batch_size=config.evaluation.batch_size,
    )
    if not parallel.is_main():
        return 0
    result = {"checkpoint": which, "seed": config.seed, "dtype": config.model.dtype}
    result |= found.as_dict()
    write_json(run.workdir / "diagnosis.json", result)
    files = save_figure(diagnosis_figure(result), run.workdir / "figures" / "diagnosis")
    print(f"{found.verdict()}\n\nWritten: {', '.join(map(str, files))}")
    return 0
