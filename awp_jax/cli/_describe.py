"""``awp-jax describe``."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks, training
from awp_jax.cli._flags import Command, read_config
from awp_jax.cli._import import open_experiment
from awp_jax.config import GROUPS, Key, from_dict, to_yaml
from awp_jax.reporting import markdown_table
from awp_jax.training import Experiment, objective_of, weight_perturbation

_LARGEST = 12


def main(argv: Sequence[str]) -> int:
    """Describes; returns the exit status."""
    command = Command(
        "describe",
        "Shows what a config stands for: its values, the model's parameters, steps per epoch,\n"
        "what is perturbed and how much, and estimated memory. Nothing is trained or written.\n"
        "What it prints is YAML, with all but the values in comments: --config=FILE.yaml reads it.",
        with_config=True,
        instead=("workdir", "keys"),
    )
    command.string("workdir", None, "a run directory, whose config is described")
    command.string("keys", None, "instead, what the keys of a group mean, such as attack, or all")
    values = command.parse(argv)
    if values["keys"].value:
        print(meanings(values["keys"].value))
        return 0
    workdir = values["workdir"].value
    if workdir:
        config = from_dict(training.read_config(pathlib.Path(workdir)))
    else:
        config = read_config(command)
    experiment, problem = open_experiment(config)
    note = f"\n\nThe data was not found, so its published sizes are used: {problem}"
    about = describe(experiment) + (note if problem else "")
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


def describe(experiment: Experiment) -> str:
    """What an experiment is, beside the values of its config, as text for a person."""
    config, splits = experiment.config, experiment.splits
    state = experiment.abstract_state()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    validation = 0 if splits.validation is None else len(splits.validation)
    lines = [
        f"data: {len(splits.train)} training, {validation} validation, {len(splits.test)} test "
        f"images of {' x '.join(map(str, splits.train.images.shape[1:]))}, "
        f"{splits.train.num_classes} classes",
        f"model: {config.model.name}, {count:,} parameters",
        f"steps: {experiment.steps_per_epoch} per epoch, {experiment.total_steps:,} in all",
        "",
        _perturbed(experiment),
        "",
        _memory(experiment),
    ]
    return "\n".join(lines)


def _perturbed(experiment: Experiment) -> str:
    w = weight_perturbation(experiment.config)
    if w.method == "none":
        return "weights: not perturbed"
    params = training.initial_state(experiment).params
    ball = w.ball
    mask = ball.mask_of(params)
    rows = []
    for (path, leaf), keep, norm in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(mask),
        jax.tree.leaves(ball.norms(params, params)),
        strict=True,
    ):
        if keep:
            name = ".".join(str(entry.key) for entry in path)
            mean_norm = float(jnp.mean(norm))
            rows.append((leaf.size, name, leaf.shape, mean_norm, float(ball.gamma) * mean_norm))
    inside = sum(row[0] for row in rows)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    start = experiment.config.weights.start_epoch
    schedule = f" from epoch {start}" if start else ""
    steps = {
        "awp": f"A {w.alternations}, K2 {w.steps}, ",
        "rwp": f"K2 {w.steps} on examples of loss at most {w.c_min}, ",
    }.get(w.method, "")
    head = (
        f"weights: {w.method}, gamma {ball.gamma}, {steps}{ball.size} size per "
        f"{ball.scope}{schedule}: "
        f"{len(rows)} of {len(jax.tree.leaves(params))} tensors, {inside:,} of {total:,} "
        "parameters (kernels; BatchNorm and biases stay)"
    )
    shown = sorted(rows, reverse=True)[:_LARGEST]
    table = markdown_table(
        ("tensor", "shape", "norm at the start", "radius of v"),
        [
            (n, "x".join(map(str, s)), f"{norm:.4g}", f"{radius:.4g}")
            for _, n, s, norm, radius in shown
        ],
    )
    more = f"\n(and {len(rows) - len(shown)} smaller ones)" if len(rows) > len(shown) else ""
    return f"{head}\n{table}{more}"


def _memory(experiment: Experiment) -> str:
    config, splits = experiment.config, experiment.splits
    state = experiment.abstract_state()
    objective = objective_of(config)

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    def backward(params, batch_stats, images):
        def forward(p):
            arguments = {"mode": "batch", "key": jax.random.key(0)}
            return experiment.classifier.apply(p, batch_stats, images, **arguments)[0]

        return jax.vjp(forward, params)[1]

    shape = (config.batch_size, *splits.train.images.shape[1:])
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    kept = size(jax.eval_shape(backward, state.params, state.batch_stats, images))
    kept -= size(state.params)
    passes = len(objective.inputs)
    perturbed = config.weights.method != "none"
    working = (3 if perturbed else 1) * size(state.params)
    dataset = experiment.pool.images.nbytes + experiment.pool.labels.nbytes
    total = size(state) + working + dataset + passes * kept
    gib = {
        "state (parameters, statistics, momentum)": size(state),
        "w + v, v and gradient" if perturbed else "gradient": working,
        "training set on the device": dataset,
        f"kept for the backward pass of {config.batch_size} images": passes * kept,
        "estimate of all": total,
    }
    rows = [(name, f"{value / 2**20:,.1f} MiB") for name, value in gib.items()]
    head = "memory (estimated without compiling; XLA may need less by fusing, more by padding):"
    return f"{head}\n{markdown_table(('what', 'size'), rows)}"
