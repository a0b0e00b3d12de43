"""What a config stands for, as text for a person."""

from typing import Any

import jax
import jax.numpy as jnp

from awp_jax.reporting import markdown_table
from awp_jax.training import Experiment, initial_state, objective_of, weight_perturbation

_LARGEST = 12


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
    w = weight_perturbation(experiment.config, experiment.given)
    if w.method == "none":
        return "weights: not perturbed"
    params = initial_state(experiment).params
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
    }.get(experiment.config.weights.method, "")
    head = (
        f"weights: {experiment.config.weights.method}, gamma {ball.gamma}, {steps}{ball.size} "
        f"size per {ball.scope}{schedule}: "
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
    objective = objective_of(config, experiment.given)

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
