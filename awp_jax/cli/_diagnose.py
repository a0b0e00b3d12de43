"""``awp-jax diagnose``."""

from collections.abc import Sequence

import jax

from awp_jax.cli._flags import Command, required
from awp_jax.evaluation import diagnose
from awp_jax.reporting import diagnosis_figure, save_figure
from awp_jax.training import open_run, subset, write_json


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
    command.integer("examples", 200, "test images, the first so many")
    command.string("epsilon", None, "radius, such as 8/255; the config's by default")
    command.integer("queries", 1000, "of the Square attack")
    values = command.parse(argv)
    run = open_run(required(values, "workdir"))
    config = run.experiment.config
    images = subset(run.experiment.splits.test, values["examples"].value or 200)
    which = required(values, "checkpoint")
    surrogate_fn = None
    if values["surrogate"].value:
        other = open_run(values["surrogate"].value)
        surrogate_fn = other.logits_fn(other.restore(which)[0])
    found = diagnose(
        run.logits_fn(run.restore(which)[0]),
        jax.random.fold_in(run.experiment.key, 5),
        images.images,
        images.labels,
        norm=config.attack.norm,
        epsilon=values["epsilon"].value or config.evaluation.epsilon or config.attack.epsilon,
        surrogate_fn=surrogate_fn,
        queries=values["queries"].value or 1000,
        batch_size=config.evaluation.batch_size,
    )
    result = {"checkpoint": which, "seed": config.seed, **found.as_dict()}
    write_json(run.workdir / "diagnosis.json", result)
    files = save_figure(diagnosis_figure(result), run.workdir / "figures" / "diagnosis")
    print(f"{found.verdict()}\n\nWritten: {', '.join(map(str, files))}")
    return 0
