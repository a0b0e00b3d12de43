"""Worst-case flatness: joint ascent on images and weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, results, streams
from awp_jax.attacks import PGD
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._in_ball import starting_point
from awp_jax.attacks._result import AttackResult, judge
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._model import full_precision, logits_at
from awp_jax.landscape._prepared import prepared
from awp_jax.landscape._robust_loss import PGD_20, Keep, RobustLoss, mean, stacked
from awp_jax.panels import losses_against
from awp_jax.pytrees import from_argument
from awp_jax.random import fold_keys
from awp_jax.typing import ApplyFn, Gradients, Images, Inputs, Key, Labels, Params, Radius
from awp_jax.weights._displacement import moved

STARTS = ("random", "zero")

XI = 0.00075  # section 3.3 of the paper


class WorstCaseFlatness(NamedTuple):
    """Worst-case flatness, as NumPy arrays; lower is flatter.

    Attributes:
        flatness: Highest loss of each example over restarts, mean over examples, minus the
            reference, which is taken in the same way; in nats. Below zero the ascent found less
            than the reference did: more steps or restarts were needed.  # shape=()
        reference: The loss at the weights themselves.  # shape=()
        restarts: Mean loss over examples of each restart.  # shape=(restarts,)
        per_batch: As ``flatness``, but all examples that share nu are taken from the same restart:
            one nu, as eq. 5 has it, but also one delta of each example against the best of all
            restarts in the reference, so that it comes out too low, below zero for small xi.
            # shape=()
        losses: Cross-entropy.  # shape=(restarts, examples)
        success: Whether the example is misclassified.  # shape=(restarts, examples)
    """

    flatness: np.ndarray
    reference: np.ndarray
    restarts: np.ndarray
    per_batch: np.ndarray
    losses: np.ndarray
    success: np.ndarray

    def __repr__(self) -> str:
        head = f"{results.short(self.flatness)} nats"
        return results.described("WorstCaseFlatness", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the mean loss of each restart, and the reference.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        losses_against(axes, self.restarts, "restart", float(self.reference))
        return axes


@on_any_mesh(apply_fn="params images")
def worst_case_flatness(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    attack: PGD | None = PGD_20,
    xi: Radius = None,
    ball: Any = None,
    weight_step: Any = None,
    steps: int = 20,
    restarts: int = 10,
    start: str = "random",
    shared_across_batches: bool = False,
    reference: RobustLoss | None = None,
    reference_restarts: int = 10,
    batch_size: int = 128,
    keep: Keep | None = None,
) -> WorstCaseFlatness:
    """Worst-case flatness of Stutz et al. (ICCV 2021, eq. 5).

    ``max_nu [max_delta L(x + delta; w + nu)] - max_delta L(x + delta; w)`` with
    ``||nu_l|| <= xi * ||w_l||`` for every layer. Each step takes one gradient in (delta, nu) and
    moves both: delta as PGD does, nu along ``||w_l|| * g_l / ||g_l||`` with projection. The loss of
    the last point counts, and of each example its worst restart, as in the reference: otherwise
    what restarts gain in delta would hide what nu costs. A layer of zeros is never displaced.

    nu is found for every batch, as the paper says ("for each batch individually"), so here the
    batch size is part of the definition and changes the result; the paper's is 128. With
    ``shared_across_batches`` one nu is found for all images, following the gradient of the mean
    loss over all of them (released code), and the batch size does not matter.

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``, see ``robust_loss``.
        params: Weights w, a pytree of arrays.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        key: One typed key.
        attack: Norm, epsilon, step size, start and loss of the ascent in delta, and the attack of
            the reference; ``None`` for clean loss: ascent on nu alone.
        xi: Short for ``ball=WeightBall(xi, mask=kernels_and_biases)``: relative radius, without
            unit (0.00075, the paper's text and the default).
        ball: What nu moves in, with other layers or another norm.
        weight_step: Step of nu relative to ||w_l||; ``None`` for 0.001 (paper), or 0.01 with
            ``shared_across_batches`` (released code).
        steps: Steps of the joint ascent (20).
        restarts: Independent ascents; the worst counts (10).
        start: Where nu starts: ``"random"``, a random direction with a random length up to xi, or
            ``"zero"``: restarts then differ in delta alone.
        shared_across_batches: One nu for all batches in place of one for each.
        reference: From ``robust_loss``, when it is known already; its ``loss`` counts.
        reference_restarts: Restarts of the attack for the reference (10).
        batch_size: Examples per batch (128).
        keep: As in ``robust_loss``, called for every restart.

    Returns:
        A ``WorstCaseFlatness``.

    Raises:
        ValueError: For a negative xi or step, an attack that is no ``PGD`` (or one with momentum or
            a randomised model), steps or restarts below 1, a mask without layers, and bad images,
            labels or key.
    """
    checks.positive_integer(restarts, "restarts")
    checks.positive_integer(steps, "steps")
    checks.choice(start, STARTS, "start")
    if xi is None and ball is None:
        xi = XI
    xi = xi if xi is None else checks.radius(xi, "xi")
    # Paper and released code differ in the step as well as in what shares a nu.
    if weight_step is None:
        weight_step = 0.01 if shared_across_batches else 0.001
    weight_step = checks.radius(weight_step, "weight_step")
    if attack is not None and not (isinstance(attack, PGD) and not attack.eot):
        raise ValueError(f"attack is {attack!r}, but PGD without eot, or None, was expected.")
    if attack is not None and attack.momentum:
        raise ValueError(f"attack has momentum {attack.momentum}, but joint ascent has none.")
    problem = prepared(
        apply_fn,
        params,
        images,
        labels,
        key,
        attack=attack,
        xi=xi,
        ball=ball,
        reference=reference,
        reference_restarts=reference_restarts,
        batch_size=batch_size,
        keep=keep,
    )
    function, examples, ball, reference, keep = problem
    weight_key = jax.random.fold_in(key, streams.LANDSCAPE_WORST_WEIGHTS)
    image_keys = examples.keys(jax.random.fold_in(key, streams.LANDSCAPE_WORST_IMAGES))
    every = range(len(examples.batches))
    # Batches that share one nu: each by itself in the paper, all together in the released code.
    groups = [list(every)] if shared_across_batches else [[index] for index in every]

    def one(restart: int) -> Any:
        # By restart and group: what `keep` has stored changes no draw of the others.
        keys, parts = fold_keys(image_keys, restart), []
        for number, group in enumerate(groups):
            nu_key = jax.random.fold_in(jax.random.fold_in(weight_key, restart), number)
            nu = _start(ball, params, nu_key, start == "random")
            parts += _ascent(
                function, params, examples, group, keys, attack, ball, nu, weight_step, steps
            )
        return examples.joined(parts)

    parts = [keep(f"worst {restart}", Partial(one, restart)) for restart in range(restarts)]
    losses, success = stacked(parts)
    # One nu has one restart: the worst is chosen by the sum over all examples that share it.
    sums = [_sum_of(losses, [examples.batches[index] for index in group]) for group in groups]
    worst = np.max(np.stack(sums), axis=1).sum() / examples.count
    per_batch = np.asarray(worst - reference.loss)
    flatness = mean(losses.max(axis=0)) - reference.loss
    means = mean(losses, axis=1)
    return WorstCaseFlatness(flatness, reference.loss, means, per_batch, losses, success)


def _sum_of(losses: np.ndarray, batches: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Summed loss of each restart over the examples of some batches, ``[restarts]``."""
    members = np.concatenate([indices[mask] for indices, mask in batches])
    return losses[:, members].sum(axis=1, dtype=np.float64)


def _ascent(
    function: Any,
    params: Params,
    examples: Any,
    group: list[int],
    keys: Key,
    attack: PGD | None,
    ball: Any,
    nu: Any,
    weight_step: Any,
    steps: int,
) -> list[tuple[AttackResult, np.ndarray]]:
    """Joint ascent on the batches of a group, which share nu; their losses and verdicts."""
    # Steps of nu are a thousandth of the weights, of which TF32 and bfloat16 would round much away.
    with full_precision():
        batches = [examples.batch(index) for index in group]
        points = [images for images, _, _ in batches]
        if attack is not None:
            chosen = [examples.batch_keys(keys, index) for index in group]
            points = [
                starting_point(attack.ball, attack.start, k, p)
                for k, p in zip(chosen, points, strict=True)
            ]
        # From Python: a group may hold any number of batches, and no number compiles anew.
        for _ in range(steps):
            # All batches look at the same nu, which moves when the last one has been seen.
            total = None
            for place, (images, labels, valid) in enumerate(batches):
                points[place], gradient = _gradients(
                    attack, function, params, nu, points[place], images, labels, valid
                )
                # A sum is enough: a step has its length from nu's ball, not from the gradient.
                total = gradient if total is None else _sum(total, gradient)
            nu = _step(ball, params, nu, total, weight_step)
        return [
            (_judge(function, params, nu, point, labels), examples.batches[index][1])
            for index, point, (_, labels, _) in zip(group, points, batches, strict=True)
        ]


@functools.partial(jax.jit, static_argnames="random")
def _start(ball: Any, params: Params, key: Key, random: bool) -> Any:
    ball = from_argument(ball)
    if not random:
        return ball.start(None, params)
    # Starts inside the ball, so that restarts differ in length as well as in direction.
    direction_key, length_key = jax.random.split(key)
    nu = ball.sample(direction_key, params)
    length = jax.random.uniform(length_key, (), jnp.result_type(*jax.tree.leaves(params)))
    return jax.tree.map(lambda leaf: leaf * length.astype(leaf.dtype), nu)


@jax.jit
def _gradients(
    attack: PGD | None,
    function: Any,
    params: Params,
    nu: Any,
    point: Inputs,
    images: Images,
    labels: Labels,
    valid: jax.Array,
) -> tuple[Any, Any]:
    """The moved images, and the gradient of the summed loss in nu: both from one pass."""
    goal = Goal() if attack is None else attack.goal

    def total(nu: Any, point: Inputs) -> jax.Array:
        logits = logits_at(function, moved(params, nu))(point)
        # Padding repeats an example, which would pull twice.
        return jnp.where(valid, goal.ascended(logits, labels), 0.0).sum()

    if attack is None:
        return point, jax.grad(total)(nu, point)
    # Both at the same (delta, nu), and both moves made from there: joint ascent, not alternating.
    in_weights, in_images = jax.grad(total, argnums=(0, 1))(nu, point)
    return attack.ball.step(images, point, in_images, attack.size), in_weights


@jax.jit
def _step(ball: Any, params: Params, nu: Any, gradient: Gradients, weight_step: Any) -> Any:
    return from_argument(ball).step(params, nu, gradient, weight_step)


@jax.jit
def _sum(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)


@jax.jit
def _judge(function: Any, params: Params, nu: Any, point: Inputs, labels: Labels) -> AttackResult:
    return judge(logits_at(function, moved(params, nu)), point, labels)
