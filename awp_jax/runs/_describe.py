"""What a config stands for, beside its values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from awp_jax import checks, parallel, results
from awp_jax.attacks import cross_entropy
from awp_jax.objectives import ADVERSARIAL
from awp_jax.reporting import markdown_table
from awp_jax.runs._operations import operations
from awp_jax.training import (
    Experiment,
    initial_state,
    objective_of,
    teacher_of,
    training_attack,
    weight_perturbation,
)
from awp_jax.training._alignment import misalignment
from awp_jax.training._settings import check_shares

_LARGEST = 12


class Description(NamedTuple):
    """What an experiment is, beside the values of its config.

    Attributes:
        data: How many ``train``, ``validation`` and ``test`` images, their ``shape``, ``classes``.
        model: Its ``name`` and number of ``parameters``.
        steps: Optimiser steps ``per_epoch`` and ``total``.
        weights: How weights are perturbed: ``method``, and where it is not ``"none"`` what it does
            in words (``how``) and the ``tensors`` that move, largest first: ``name``, ``shape``,
            ``size``, ``norm`` at the start and ``radius`` of v, means where there are several.
        memory: Estimated bytes on each device, by what they hold.
        devices: How many there are.
        operations: Floating-point operations of convolutions and matrix products, two for each
            product that is summed: a ``forward`` pass of one image, and an optimiser ``step``, over
            all devices. An attack of one's own is not counted.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    steps: dict[str, int]
    weights: dict[str, Any]
    memory: dict[str, int]
    operations: dict[str, int]
    devices: int = 1

    def text(self) -> str:
        """For a person."""
        data = self.data
        on = f" on each of {self.devices} devices" if self.devices > 1 else ""
        lines = [
            f"data: {data['train']} training, {data['validation']} validation, {data['test']} test "
            f"images of {' x '.join(map(str, data['shape']))}, {data['classes']} classes",
            f"model: {self.model['name']}, {self.model['parameters']:,} parameters",
            f"steps: {self.steps['per_epoch']} per epoch, {self.steps['total']:,} in all",
            "",
            self._perturbed(),
            "",
            self._counted(),
            "",
            f"memory{on} (estimated without compiling; XLA may need less by fusing, more by "
            "padding):",
            markdown_table(
                ("what", "size"),
                [(name, f"{size / 2**20:,.1f} MiB") for name, size in self.memory.items()],
            ),
        ]
        return "\n".join(lines)

    def _perturbed(self) -> str:
        if self.weights["method"] == "none":
            return "weights: not perturbed"
        rows = self.weights["tensors"]
        shown = rows[:_LARGEST]
        table = markdown_table(
            ("tensor", "shape", "norm at the start", "radius of v"),
            [
                (
                    row["name"],
                    "x".join(map(str, row["shape"])),
                    f"{row['norm']:.4g}",
                    f"{row['radius']:.4g}",
                )
                for row in shown
            ],
        )
        more = f"\n(and {len(rows) - len(shown)} smaller ones)" if len(rows) > len(shown) else ""
        return f"weights: {self.weights['how']}\n{table}{more}"

    def _counted(self) -> str:
        forward, step = self.operations["forward"], self.operations["step"]
        return (
            f"operations: {forward / 1e9:,.4g} GFLOP for a forward pass of one image "
            f"({forward / 2e9:,.4g} G multiply-adds, as publications count), {step / 1e12:,.4g} "
            "TFLOP for a step, attack included"
        )

    def __repr__(self) -> str:
        return results.cut(self.text(), "print(found.text())")


def describe(experiment: Experiment, *, devices: int = 1) -> Description:
    """What an experiment is, beside the values of its config.

    Args:
        experiment: From ``open_experiment`` or ``awp_jax.training.build``.
        devices: How many train it, for the memory on each of them by ``config.parallel``; they need
            not be there.

    Returns:
        A ``Description``.

    Raises:
        ValueError: For devices that do not come to the axes of ``config.parallel.mesh``, or that
            cannot share a batch.
    """
    checks.positive_integer(devices, "devices")
    config, splits = experiment.config, experiment.splits
    state = experiment.abstract_state()
    return Description(
        {
            "train": len(splits.train),
            "validation": 0 if splits.validation is None else len(splits.validation),
            "test": len(splits.test),
            "shape": list(splits.train.images.shape[1:]),
            "classes": splits.train.num_classes,
        },
        {
            "name": config.model.name,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        },
        {"per_epoch": experiment.steps_per_epoch, "total": experiment.total_steps},
        _weights(experiment),
        _memory(experiment, devices),
        _operations(experiment),
        devices,
    )


def _weights(experiment: Experiment) -> dict[str, Any]:
    w = weight_perturbation(experiment.config, experiment.given)
    if w.method == "none":
        return {"method": "none"}
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
    how = (
        f"{experiment.config.weights.method}, gamma {ball.gamma}, {steps}{ball.size} "
        f"size per {ball.scope}{schedule}: "
        f"{len(rows)} of {len(jax.tree.leaves(params))} tensors, {inside:,} of {total:,} "
        "parameters (kernels; normalisation, biases, learnt positions and tokens stay)"
    )
    names = ("size", "name", "shape", "norm", "radius")
    tensors = [dict(zip(names, row, strict=True)) for row in sorted(rows, reverse=True)]
    return {"method": experiment.config.weights.method, "how": how, "tensors": tensors}


def _memory(experiment: Experiment, devices: int) -> dict[str, int]:
    config, splits = experiment.config, experiment.splits
    split = parallel.sizes_of(config.parallel.mesh, devices).get(parallel.FSDP, 1)
    check_shares(config, devices)
    state = experiment.abstract_state()
    parallel.check_rules(state.params, split, config.parallel.rules)
    objective = objective_of(config, experiment.given)
    parts = config.optimizer.micro_batches

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    def held(tree: Any) -> int:
        """Bytes on each device of what is split as the weights are."""
        axes = parallel.split_axes(tree, split, config.parallel.rules)
        leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(axes), strict=True)
        return sum(size(leaf) // (1 if axis < 0 else split) for leaf, axis in leaves)

    def kept_by(of: Any) -> int:
        def backward(params, batch_stats, images):
            return jax.vjp(of(experiment, batch_stats, images), params)[1]

        def kept(count: int) -> int:
            shape = (count, *splits.train.images.shape[1:])
            images = jax.ShapeDtypeStruct(shape, jnp.float32)
            return size(jax.eval_shape(backward, state.params, state.batch_stats, images))

        # What grows with the images: parameters are kept as well, and counted elsewhere.
        return kept(2 * rows) - kept(rows)

    rows = config.batch_size // parts // devices
    kept = len(objective.inputs) * kept_by(_forward)
    if objective.gradient_alignment:
        kept += kept_by(_misaligned)
    perturbed = config.weights.method != "none"
    # Of a batch in parts the sum of the gradients before lies beside the gradient.
    working = ((3 if perturbed else 1) + (parts > 1)) * held(state.params)
    # Where a pass computes the weights are whole, in the dtype that it computes in.
    bits = jnp.finfo(config.model.dtype).bits
    whole = {"weights gathered for a pass": size(state.params) * bits // 32} if split > 1 else {}
    if experiment.on_host:
        data, dataset = (
            "two batches from the host",
            2 * config.batch_size // devices * experiment.pool.images[:1].nbytes,
        )
    else:
        pool = experiment.pool
        data, dataset = "training set on the device", pool.images.nbytes + pool.labels.nbytes
    name, teacher = _teacher(experiment)
    taught = {} if teacher is None else {f"teacher, {name}": size(teacher[1:])}
    total = held(state) + working + dataset + kept + sum((taught | whole).values())
    part = f", one of {parts} parts of a batch" if parts > 1 else ""
    return {
        "state (parameters, statistics, momentum)": held(state),
        "w + v, v and gradient" if perturbed else "gradient": working,
        **whole,
        data: dataset,
        **taught,
        f"kept for the backward pass of {rows} images{part}": kept,
        "estimate of all": total,
    }


def _teacher(experiment: Experiment) -> tuple[str, Any]:
    """The teacher's name, and its classifier with the shapes of parameters and statistics."""
    if not experiment.config.objective.teacher:
        return "", None
    try:
        teacher = teacher_of(experiment)
    except ValueError:  # a student outlives its teacher
        return "which is not there and not counted", (None, {}, {})
    state = teacher.abstract_state()
    return teacher.classifier.name, (teacher.classifier, state.params, state.batch_stats)


def _forward(experiment: Experiment, batch_stats: Any, images: Any) -> Any:
    """``params -> logits``, as the weights' gradient is taken of them."""

    def forward(params: Any) -> Any:
        arguments = {"mode": "batch", "key": jax.random.key(0)}
        return experiment.classifier.apply(params, batch_stats, images, **arguments)[0]

    return forward


def _misaligned(experiment: Experiment, batch_stats: Any, images: Any) -> Any:
    """``params ->`` what GradAlign adds to the loss, with its two gradients by images."""

    def misaligned(params: Any) -> Any:
        def losses(x: Any) -> Any:
            logits = _forward(experiment, batch_stats, x)(params)
            return cross_entropy(logits, jnp.zeros(x.shape[0], jnp.int32))

        return misalignment(losses, images, images, None, None)

    return misaligned


def _operations(experiment: Experiment) -> dict[str, int]:
    config, given = experiment.config, experiment.given
    state = experiment.abstract_state()
    objective, w = objective_of(config, given), weight_perturbation(config, given)

    def forward(params, batch_stats, images):
        return _forward(experiment, batch_stats, images)(params).sum()

    def misaligned(params, batch_stats, images):
        return _misaligned(experiment, batch_stats, images)(params)

    one = jax.ShapeDtypeStruct((1, *experiment.splits.train.images.shape[1:]), jnp.float32)
    arguments = state.params, state.batch_stats, one
    once = operations(forward, *arguments)
    to_weights = operations(jax.grad(forward), *arguments)
    passes = len(objective.inputs)
    attack, adversary = training_attack(config, given), 0
    if ADVERSARIAL in objective.inputs and attack.own is None:
        adversary = attack.steps * operations(jax.grad(forward, 2), *arguments)
    turns = 0 if w.method == "none" else w.alternations
    ascent = descent = to_weights
    if attack.free:  # one backward pass for both
        descent = operations(jax.grad(forward, (0, 2)), *arguments)
    if config.optimizer.micro_batches > 1 and w.method != "awp":
        ascent += once  # what a backward pass would keep of all parts is computed again
    ascents = 0 if w.method == "random" else turns * w.steps
    step = max(turns, 1) * adversary + passes * (ascents * ascent + descent)
    if objective.gradient_alignment:
        step += operations(jax.grad(misaligned), *arguments)
    _, teacher = _teacher(experiment)
    if teacher is not None and teacher[0] is not None:
        classifier, *fixed = teacher

        def taught(params, batch_stats, images):
            return classifier.apply(params, batch_stats, images, mode="running")[0]

        step += max(turns, 1) * operations(taught, *fixed, one)
    return {"forward": once, "step": config.batch_size * step}
