"""``awp-jax evaluate``."""

import time
from collections.abc import Sequence
from typing import Any

import jax

from awp_jax import checks
from awp_jax.cli._flags import Command, UsageError, names, required
from awp_jax.evaluation import attack_by_name, measure
from awp_jax.progress import Progress
from awp_jax.reporting import evaluation_table
from awp_jax.training import BEST, LAST, Run, open_run, subset, write_json

EVALUATION = "evaluation.json"


def main(argv: Sequence[str]) -> int:
    """Evaluates; returns the exit status."""
    command = Command(
        "evaluate",
        "Measures accuracy and loss of a run's checkpoints on clean and on attacked images,\n"
        "prints a table and writes evaluation.json.",
    )
    command.string("workdir", None, "the run directory")
    command.string("checkpoints", "best,last", "which: best, last")
    command.string("attacks", "fgsm,pgd-20", "fgsm, pgd-N, cw-N; clean is always measured")
    command.string("sets", "train,test", "which images: train, validation, test")
    command.integer("examples", None, "of each set, the first so many; all by default")
    command.string("epsilon", None, "radius, such as 8/255; the config's by default")
    command.integer("restarts", None, "of the iterated attacks; the config's by default")
    values = command.parse(argv)
    run = open_run(required(values, "workdir"))
    result = evaluate_run(
        run,
        checkpoints=names(values["checkpoints"].value, "checkpoints"),
        attacks=names(values["attacks"].value, "attacks"),
        sets=names(values["sets"].value, "sets"),
        examples=values["examples"].value,
        epsilon=values["epsilon"].value,
        restarts=values["restarts"].value,
    )
    write_json(run.workdir / EVALUATION, result)
    print(evaluation_table({run.workdir.name: result}))
    return 0


def evaluate_run(
    run: Run,
    *,
    checkpoints: Sequence[str] = (BEST, LAST),
    attacks: Sequence[str] = ("fgsm", "pgd-20"),
    sets: Sequence[str] = ("train", "test"),
    examples: int | None = None,
    epsilon: str | None = None,
    restarts: int | None = None,
) -> dict[str, Any]:
    """Measures checkpoints of a run; what ``evaluation.json`` holds.

    Args:
        run: From ``awp_jax.training.open_run``.
        checkpoints: Of ``"best"``, ``"last"``.
        attacks: Names, see ``awp_jax.evaluation.attack_by_name``.
        sets: Of ``"train"``, ``"validation"``, ``"test"``.
        examples: The first so many of each set; ``None`` for all.
        epsilon: ``None`` for the config's.
        restarts: ``None`` for the config's.

    Returns:
        Plain values: settings, device, and accuracy and loss by checkpoint, set and attack.

    Raises:
        ValueError: For unknown names, more examples than there are, or missing checkpoints.
    """
    config = run.experiment.config
    settings = {
        "norm": config.attack.norm,
        "epsilon": epsilon or config.evaluation.epsilon or config.attack.epsilon,
        "step_size": config.evaluation.step_size or config.attack.step_size,
        "restarts": restarts or config.evaluation.restarts,
    }
    checks.radius(settings["epsilon"], "epsilon")
    named = {name: attack_by_name(name, **settings) for name in ("clean", *attacks)}
    parts = {}
    for name in sets:
        checks.choice(name, ("train", "validation", "test"), "set")
        part = getattr(run.experiment.splits, name)
        if part is None:
            raise UsageError("This run kept no validation images back.")
        if examples is not None and examples > len(part):
            raise UsageError(f"--examples is {examples}, but {name} has {len(part)}.")
        parts[name] = part if examples is None else subset(part, examples)
    states = {name: run.restore(name) for name in checkpoints}
    imported = any("imported" in info for _, info in states.values())
    progress = Progress(len(states) * len(parts) * len(named), unit="attack")
    key = jax.random.fold_in(run.experiment.key, 4)
    result: dict[str, Any] = {
        "method": "imported" if imported else method_name(config),
        "seed": config.seed,
        **settings,
        "selection": config.evaluation.selection,
        "device": jax.devices()[0].device_kind,
        "data": config.data.name,
        "model": config.model.name,
        "checkpoints": {},
    }
    done = 0
    for which, (state, info) in states.items():
        twin = next((m for m in result["checkpoints"].values() if m["step"] == info["step"]), None)
        if twin is not None:  # best and last are often the same state
            result["checkpoints"][which] = twin
            done += len(parts) * len(named)
            continue
        measured: dict[str, Any] = {
            "step": info["step"],
            "epoch": info["step"] / run.experiment.steps_per_epoch,
        }
        for set_name, part in parts.items():
            measured[set_name] = {}
            for attack_name, attack in named.items():
                started = time.perf_counter()
                found = measure(
                    run.logits_fn(state),
                    part.images,
                    part.labels,
                    attack,
                    key=key,
                    batch_size=config.evaluation.batch_size,
                )
                measured[set_name][attack_name] = {
                    **found.as_dict(),
                    "seconds": round(time.perf_counter() - started, 3),
                }
                done += 1
                progress.advance(done, accuracy=found.accuracy)
        result["checkpoints"][which] = measured
    progress.close()
    return result


def method_name(config: Any) -> str:
    """How tables call the method of a config: ``"AT-AWP"``, ``"TRADES"``, ..."""
    suffix = {"none": "", "awp": "-AWP", "random": "-RandomWP"}[config.weights.method]
    return config.objective.name.upper() + suffix
