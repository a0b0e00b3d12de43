"""``awp-jax evaluate``."""

import shutil
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from awp_jax import checks, data, parallel, streams
from awp_jax.cli import _processes as processes
from awp_jax.cli._earlier import EVALUATION, read_evaluation, with_earlier
from awp_jax.cli._evaluation_progress import EvaluationProgress
from awp_jax.cli._flags import (
    Command,
    UsageError,
    boolean,
    chosen_dtype,
    declare_dtype,
    names,
    required,
)
from awp_jax.cli._surrogate import Surrogate, open_surrogate
from awp_jax.evaluation import (
    Evaluation,
    PartialResults,
    attacks_by_name,
    evaluate,
    write_arrays,
)
from awp_jax.evaluation._work import work
from awp_jax.files import write_json
from awp_jax.reporting import attack_table, evaluation_table
from awp_jax.training import BEST, LAST, Run, open_run

PARTIAL = "evaluation.partial"  # removed when the evaluation is finished
IMAGES = "adversarial"
# As many as AutoAttack's rand averages over.
_EOT = 20

_ATTACKS = (
    "fgsm, pgd-N, cw-N, spsa, feature, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, with N steps "
    "as in square-N; autoattack, plus, rand; paper for Table 2 of AWP; clean is always measured"
)


def main(argv: Sequence[str]) -> int:
    """Evaluates; returns the exit status."""
    command = Command(
        "evaluate",
        "Measures accuracy and loss of a run's checkpoints on clean and on attacked images,\n"
        "prints tables and writes evaluation.json. Earlier results stay in it: attacks of the\n"
        "same settings, images and weights as one evaluation, those of others beside it, the\n"
        "widest first. The same command goes on where a stopped one was.",
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
        f"average over; {_EOT} by default",
    )
    command.string("surrogate", None, "another run: attacks are crafted on it, this run judges")
    command.string("surrogate_checkpoint", None, "which: best, last; best where there is one")
    command.string("save_images", "false", "true: write the adversarial images, adversarial/*.npz")
    declare_dtype(command)
    processes.declare(command)
    values = command.parse(argv)
    workdir = required(values, "workdir")
    devices = processes.join(values)
    dtype = chosen_dtype(values)
    run = open_run(workdir, devices=devices, dtype=dtype)
    read_evaluation(run.workdir)  # a damaged one is said now and not after hours
    surrogate = None
    if values["surrogate"].value:
        which = values["surrogate_checkpoint"].value
        surrogate = open_surrogate(values["surrogate"].value, which, run, devices, dtype)
    elif values["surrogate_checkpoint"].value:
        raise UsageError("--surrogate_checkpoint is given without --surrogate.")
    result = evaluate_run(
        run,
        checkpoints=names(values["checkpoints"].value, "checkpoints"),
        attacks=names(values["attacks"].value, "attacks"),
        sets=names(values["sets"].value, "sets"),
        examples=values["examples"].value,
        epsilon=values["epsilon"].value,
        restarts=values["restarts"].value,
        eot=values["eot"].value,
        surrogate=surrogate,
        save_images=boolean(values, "save_images"),
    )
    if not parallel.is_main():
        return 0
    earlier = read_evaluation(run.workdir)
    whole, result, words = with_earlier(earlier, result, run.experiment.config)
    write_json(run.workdir / EVALUATION, whole)
    shutil.rmtree(run.workdir / PARTIAL, ignore_errors=True)
    if words:
        print(words, file=sys.stderr)
    print(evaluation_table({run.workdir.name: result}))
    print(f"\n{attack_table(result)}")
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
    eot: int | None = None,
    surrogate: Surrogate | None = None,
    save_images: bool = False,
) -> dict[str, Any]:
    """Measures checkpoints of a run; what ``evaluation.json`` holds.

    Args:
        run: From ``awp_jax.training.open_run``.
        checkpoints: As ``Run.checkpoint_names`` takes them.
        attacks: Names, see ``awp_jax.evaluation.attacks_by_name``.
        sets: Of ``"train"``, ``"validation"``, ``"test"``.
        examples: So many of each set, by ``awp_jax.data.subset``; ``None`` for all.
        epsilon: ``None`` for the config's.
        restarts: ``None`` for the config's.
        eot: For a randomised model, the random passes that gradients and verdicts average over;
            ``None`` for 20.
        surrogate: Where attacks are crafted; ``None``: on the model itself. Names of attacks then
            end in "from" and its name.
        save_images: Whether to write ``adversarial/CHECKPOINT-SET-ATTACK.npz``: images, labels,
            and which of them are misclassified.

    Returns:
        Plain values: settings, device, under ``checkpoints`` accuracy and loss by checkpoint, set
        and attack, and under ``unions`` all attacks of a checkpoint and set together.

    Raises:
        ValueError: For unknown names, more examples than there are, missing checkpoints, or ``eot``
            for a deterministic model.
    """
    config = run.experiment.config
    random = run.experiment.classifier.is_random
    crafted_random = random if surrogate is None else surrogate.is_random
    passes = passes_of(eot, random or crafted_random)
    settings = {
        "norm": config.attack.norm,
        "epsilon": epsilon or config.evaluation.epsilon or config.attack.epsilon,
        "step_size": config.evaluation.step_size or config.attack.step_size,
        "restarts": restarts or config.evaluation.restarts,
        "eot": passes if crafted_random else 0,
    }
    checks.radius(settings["epsilon"], "epsilon", settings["norm"])
    named = attacks_by_name(attacks, **settings)
    settings["eot"] = passes
    if surrogate is not None:
        named = {
            name if attack is None else f"{name} from {surrogate.name}": attack
            for name, attack in named.items()
        }
    parts = {}
    for name in sets:
        checks.choice(name, ("train", "validation", "test"), "set")
        part = getattr(run.experiment.splits, name)
        if part is None:
            raise UsageError("This run kept no validation images back.")
        if examples is not None and examples > len(part):
            raise UsageError(f"--examples is {examples}, but {name} has {len(part)}.")
        parts[name] = part if examples is None else data.subset(part, examples)
    states = {name: run.restore(name) for name in run.checkpoint_names(checkpoints)}
    imported = any("imported" in info for _, info in states.values())
    progress = EvaluationProgress(
        {name: work(attack) for name, attack in named.items()},
        {name: len(part) for name, part in parts.items()},
        len({info["digest"] for _, info in states.values()}),
    )
    key = jax.random.fold_in(run.experiment.key, streams.RUN_EVALUATE)
    result: dict[str, Any] = {
        "method": "imported" if imported else method_name(config),
        "seed": config.seed,
        **settings,
        "selection": config.evaluation.selection,
        "device": jax.devices()[0].device_kind,
        "data": config.data.name,
        "model": config.model.name,
        "dtype": config.model.dtype,
        "surrogate": None if surrogate is None else surrogate.identity,
        "checkpoints": {},
        "unions": {},
    }
    digests: dict[int, str] = {}
    for which, (state, info) in states.items():
        twin = digests.setdefault(info["digest"], which)
        if twin != which:  # best and last are often the same state
            for group in ("checkpoints", "unions"):
                result[group][which] = result[group][twin]
            continue
        measured = result["checkpoints"][which] = {
            "step": info["step"],
            "epoch": info["step"] / run.experiment.steps_per_epoch,
            "digest": info["digest"],
        }
        unions = result["unions"][which] = {}
        for set_name, part in parts.items():
            progress.begin(which, set_name)
            identity = {
                **settings,
                "state": info.get("digest"),
                "seed": config.seed,
                "model": config.model.to_json(),
                "surrogate": None if surrogate is None else surrogate.identity,
                "images": [zlib.crc32(a.tobytes()) for a in (part.images, part.labels)],
            }
            found = evaluate(
                run.logits_fn(state),
                key,
                part.images,
                part.labels,
                named,
                norm=settings["norm"],
                epsilon=settings["epsilon"],
                batch_size=config.evaluation.batch_size,
                eot=passes if random else 0,
                surrogate_fn=None if surrogate is None else surrogate.logits_fn,
                partial=PartialResults(run.workdir / PARTIAL, identity),
                progress=progress.tell,
            )
            measured[set_name], unions[set_name] = found.attacks, found.union
            if save_images and parallel.is_main():
                _save_images(run, f"{which}-{set_name}", found, part.labels)
    progress.close()
    return result


def _save_images(run: Run, prefix: str, found: Evaluation, labels: np.ndarray) -> None:
    for name, outcome in found.outcomes.items():
        if name != "clean":
            arrays = {"images": outcome.images, "labels": labels, "success": outcome.success}
            write_arrays(run.workdir / IMAGES / f"{prefix}-{name.replace(' ', '-')}.npz", arrays)


def passes_of(eot: int | None, is_random: bool) -> int:
    """How many random passes to average over; 0 for a deterministic model.

    Raises:
        UsageError: When ``eot`` is given for a deterministic model.
    """
    if eot is not None and not is_random:
        raise UsageError(f"--eot is {eot}, but the model is deterministic: leave it out.")
    return (eot or _EOT) if is_random else 0


def method_name(config: Any) -> str:
    """How tables call the method of a config: ``"AT-AWP"``, ``"RST-RWP"``, ``"AT + mixup"``, ..."""
    d, objective, w = config.data, config.objective, config.weights
    name = "RST" if d.unlabelled and objective.name == "trades" else objective.name.upper()
    name += "-PNI" if config.model.pni else ""
    name += {"none": "", "awp": "-AWP", "rwp": "-RWP", "random": "-RandomWP"}[w.method]
    regularisation, optimizer = config.regularisation, config.optimizer
    extras = {
        "shared backward": w.shared_backward,
        f"LSC{list(w.loss_range)}": w.loss_range,
        "unlabelled": d.unlabelled and not name.startswith("RST"),
        "fine-tuned": config.init_from,
        "early-stopped PGD": config.attack.early_stop is not None,
        "label smoothing": objective.label_smoothing,
        "label noise": d.label_noise,
        "self-supervision": objective.rotation_weight,
        "cutout": d.cutout,
        "mixup": d.mixup,
        "AutoAugment": d.autoaugment,
        config.model.activation: config.model.activation != "relu",
        "L1": regularisation.l1,
        "L2": regularisation.l2,
        "weight clipping": regularisation.clip,
        optimizer.name: optimizer.name != "sgd",
    }
    return " + ".join([name, *(text for text, on in extras.items() if on)])
