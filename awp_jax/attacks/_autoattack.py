"""AutoAttack: an ensemble of parameter-free attacks (Croce and Hein, ICML 2020)."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, parallel
from awp_jax.attacks._apgd import APGD
from awp_jax.attacks._ensemble import ensemble, is_random, runnable
from awp_jax.attacks._in_ball import OF_THE_BALL, ball_of
from awp_jax.attacks._model import as_pytree_function, check_examples, in_float32, number_of_classes
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.attacks._survivors import (
    Found,
    Progress,
    attack_keys,
    attack_survivors,
    batch_sizes,
    evaluate,
)
from awp_jax.balls import InputBall
from awp_jax.random import check_key, example_keys
from awp_jax.typing import Inputs, Key, Labels, LogitsFn, Radius
from awp_jax.words import known_names


class Row(NamedTuple):
    """One line of the table of results.

    Attributes:
        name: Of the attack; ``"clean"`` for the first line.
        accuracy: Share of examples still robust after it, in [0, 1].
        broke: How many examples it broke.
        median_steps: Over those, steps (APGD, FAB) or queries (Square) to the first success,
            counted over all targets and restarts; ``None`` where not known or none broke.
        seconds: Wall time, compilation included.
    """

    name: str
    accuracy: float
    broke: int
    median_steps: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class AutoAttackState:
    """Everything that has to be saved to go on after any attack: NumPy arrays and plain values.

    Attributes:
        images: float ``[examples, ...]``: adversarial where one was found, else clean.
        robust: bool ``[examples]``: not broken so far.
        rows: One ``Row`` per finished attack, the clean accuracy first.
    """

    images: np.ndarray
    robust: np.ndarray
    rows: tuple[Row, ...]

    @property
    def finished(self) -> int:
        """Number of finished attacks."""
        return len(self.rows) - 1


class AutoAttackResult(NamedTuple):
    """The outcome of an ensemble.

    Attributes:
        images: float ``[examples, ...]``: inside the ball and its bounds; adversarial where found.
        robust: bool ``[examples]``: by a last forward pass on ``images``.
        clean_accuracy: In [0, 1].
        accuracy: Robust accuracy in [0, 1].
        rows: A ``Row`` per attack, ``"clean"`` first.
        norm: Of the ball; ``None`` for a ball of one's own, as the next.
        epsilon: Its exact radius in the units of the images; an array for several.
        left_out: ``(name, reason)`` of attacks that are not defined for these images or classes.
    """

    images: np.ndarray
    robust: np.ndarray
    clean_accuracy: float
    accuracy: float
    rows: tuple[Row, ...]
    norm: str | None
    epsilon: Radius
    left_out: tuple[tuple[str, str], ...] = ()


Plan = Sequence[tuple[str, Callable[..., Any]]]


def _judging(plan: Plan) -> SteppedAttack:
    """Settings for the verdict: only whether the model is random matters."""
    # Any number above 0 would do: a verdict is one pass.
    return APGD(eot=int(is_random(plan)))


def _ball(plan: Plan) -> Any:
    """The ball of the first attack that has one; an attack without is in that of images."""
    return next((a.ball for _, a in plan if hasattr(a, "ball")), InputBall())


def start_state(
    plan: Plan,
    logits_fn: LogitsFn,
    key: Key,
    images: Inputs,
    labels: Labels,
    *,
    batch_size: int = 250,
) -> AutoAttackState:
    """Looks at the clean images: the state before the first attack.

    Args:
        plan: From ``ensemble``.
        logits_fn: ``images -> logits [batch, classes]``; ``(images, key) -> logits`` for ``rand``.
        key: One typed key, or one per example.
        images: float ``[examples, height, width, channels]`` in [0, 1].
        labels: int ``[examples]``.
        batch_size: Largest number of examples per forward pass.

    Returns:
        An ``AutoAttackState``.

    Raises:
        ValueError: For bad images, labels outside the classes, or a model that returns NaN.
    """
    began = time.perf_counter()
    # On the host: survivors are cut out by index, and the state is saved as it is.
    images, labels = np.asarray(in_float32(images)), np.asarray(labels)
    function = as_pytree_function(logits_fn)
    _classes(plan, function, images, labels, batch_size)
    keys = example_keys(key, len(labels))
    judging = _judging(plan)
    sizes = batch_sizes(min(batch_size, len(labels)), parallel.shards(function))
    wrong, loss = evaluate(function, judging, keys, images, labels, sizes)
    _check_finite(loss, "clean")
    row = Row("clean", float(np.mean(~wrong)), int(wrong.sum()), None, time.perf_counter() - began)
    # A copy, because `images` may be the caller's own array.
    return AutoAttackState(images.copy(), ~wrong, (row,))


def _classes(
    plan: Plan, function: Partial, images: np.ndarray, labels: np.ndarray, batch_size: int
) -> int:
    checks.positive_integer(batch_size, "batch_size")
    ball = _ball(plan)
    check_examples(images, labels, ball)
    if isinstance(ball, InputBall):
        ball.check(images)
    # Only shapes are asked for: the model is not run, and any key will do.
    key = jax.random.key(0) if is_random(plan) else None
    few = jax.ShapeDtypeStruct((min(batch_size, len(labels)), *images.shape[1:]), images.dtype)
    classes = number_of_classes(function, few, key)
    checks.labels_below(labels, classes)
    return classes


def _check_finite(loss: np.ndarray, what: str) -> None:
    # The argmax of NaN is a class like any other, so the verdict itself would say nothing.
    if np.isnan(loss).any():
        raise ValueError(
            f"The model returns NaN for {int(np.isnan(loss).sum())} of {len(loss)} {what} images: "
            "no verdict is possible."
        )


def run_stage(
    plan: Plan,
    state: AutoAttackState,
    logits_fn: LogitsFn,
    key: Key,
    images: Inputs,
    labels: Labels,
    *,
    ball: Any = None,
    batch_size: int = 250,
    progress: Callable[[Progress], Any] | None = None,
) -> AutoAttackState:
    """Runs the next attack of the plan on what is still robust.

    The images it returns are projected on the ball and judged anew, so that an attack's own word
    never counts. States may be saved and loaded between calls: the result does not change.

    Args:
        plan: From ``ensemble``.
        state: From ``start_state`` or the last call.
        logits_fn: The model, as in ``start_state``.
        key: The same key in every call.
        images: The clean images.
        labels: int ``[examples]``.
        ball: What the verdict projects on; ``None`` for the ball of the plan's first attack.
        batch_size: Largest number of examples per step.
        progress: Called with a ``Progress`` now and then.

    Returns:
        The next state.

    Raises:
        ValueError: As ``start_state``; also when the state belongs to other images, or no attack
            is left.
    """
    began = time.perf_counter()
    if state.finished >= len(plan):
        raise ValueError(f"All {len(plan)} attacks have run.")
    name, attack = plan[state.finished]
    images, labels = np.asarray(in_float32(images)), np.asarray(labels)
    if state.images.shape != images.shape or state.robust.shape != labels.shape:
        raise ValueError(
            f"The state holds images {state.images.shape}, but {images.shape} were handed in."
        )
    function = as_pytree_function(logits_fn)
    classes = _classes(plan, function, images, labels, batch_size)
    keys = example_keys(key, len(labels))
    _, out = runnable([plan[state.finished]], images, classes)
    if out:
        raise ValueError(f"Attack {name!r} cannot run: {out[0][1]}.")
    ball = _ball(plan) if ball is None else ball
    found = attack_survivors(
        name,
        attack,
        function,
        # By the place in the plan: a run that goes on draws what an unbroken one would.
        attack_keys(keys, state.finished),
        images,
        labels,
        state.robust,
        classes=classes,
        batch_size=batch_size,
        progress=progress,
    )
    broken, adversarial = _confirm(
        found, function, _judging(plan), ball, keys, images, labels, batch_size
    )
    robust = state.robust & ~broken
    result = state.images.copy()
    result[broken] = adversarial[broken]
    known = found.steps is not None and broken.any()
    steps = float(np.median(found.steps[broken])) if known else None  # type: ignore[index]
    seconds = time.perf_counter() - began
    row = Row(name, float(robust.mean()), int(broken.sum()), steps, seconds)
    return AutoAttackState(result, robust, (*state.rows, row))


def _confirm(
    found: Found,
    function: Partial,
    judging: SteppedAttack,
    ball: Any,
    keys: Key,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Projects what was found and judges it: ``(broken, images)``."""
    rows = np.flatnonzero(found.success)
    sizes = batch_sizes(min(batch_size, len(labels)), parallel.shards(function))
    broken, adversarial = np.zeros(len(labels), bool), images.copy()
    if len(rows) == 0:
        return broken, adversarial
    if isinstance(ball, InputBall):
        ball = ball.examples(images, rows)
    adversarial[rows] = _inside(ball, images[rows], found.images[rows])
    # With the keys of the examples, not those of the attack: a randomised model draws anew.
    wrong, loss = evaluate(function, judging, keys[rows], adversarial[rows], labels[rows], sizes)
    _check_finite(loss, "attacked")
    broken[rows] = wrong
    return broken, adversarial


def _inside(ball: Any, centre: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The projection; for L2 and L1 shrunk by the rounding error that float32 leaves."""
    point = np.array(ball.project(jnp.asarray(centre), jnp.asarray(point)))
    if not (isinstance(ball, InputBall) and ball.norm in ("l2", "l1")):
        return point
    # In float64, where the excess that rounding leaves can be seen at all.
    move = point.astype(np.float64) - centre
    order = {"l2": 2, "l1": 1}[ball.norm]
    lengths = np.linalg.norm(move.reshape(len(move), -1), order, axis=1)
    lengths = lengths.reshape((-1,) + (1,) * (move.ndim - 1))
    radius = np.asarray(ball.radius, np.float64)
    radius = radius.reshape((-1,) + (1,) * (move.ndim - 1))
    # 1e-30 keeps the quotient finite where nothing moved; that is not outside, and not scaled.
    scale = np.minimum(1.0, radius / np.maximum(lengths, 1e-30))
    point = np.where(lengths > radius, (centre + scale * move), point).astype(point.dtype)
    return np.asarray(ball.clip(centre, point))


@known_names
def autoattack(
    logits_fn: LogitsFn,
    key: Key,
    images: Inputs,
    labels: Labels,
    *,
    norm: Any = OF_THE_BALL,
    epsilon: Radius = OF_THE_BALL,
    ball: Any = None,
    version: str = "standard",
    attacks: Iterable[Any] | None = None,
    batch_size: int = 250,
    progress: Callable[[Progress], Any] | None = None,
    state: AutoAttackState | None = None,
    on_stage: Callable[[AutoAttackState], Any] | None = None,
) -> AutoAttackResult:
    """Robust accuracy by AutoAttack: every attack sees only what is still robust.

    Not to be jitted: it drops broken examples between and during attacks, and compiles each attack
    for at most three batch sizes. A fixed key gives the same result for any ``batch_size``, up to
    what the rounding of a differently shaped matrix product changes.

    Args:
        logits_fn: ``images -> logits [batch, classes]``; for ``rand`` and other attacks with
            ``eot``: ``(images, key) -> logits``. A ``jax.tree_util.Partial`` over the parameters
            is compiled once for all parameters.
        key: One typed key, or one per example.
        images: float ``[examples, height, width, channels]`` in [0, 1].
        labels: int ``[examples]``.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``; with ``epsilon`` short for
            ``ball=InputBall(norm, epsilon)``.
        epsilon: Radius in pixel units: 8/255 or ``"8/255"``, 0.5 in L2, 12 in L1 (RobustBench);
            0 gives the clean accuracy.
        ball: What the attacks move in: other bounds, a mask, a radius for each example.
        version: ``"standard"``, ``"plus"``, ``"rand"`` or ``"custom"``; see ``ensemble``.
        attacks: See ``ensemble``.
        batch_size: Largest number of examples per step.
        progress: Called with a ``Progress`` now and then.
        state: Where to go on; ``None`` to begin.
        on_stage: Called with the ``AutoAttackState`` after every attack, to save it.

    Returns:
        An ``AutoAttackResult``.

    Raises:
        ValueError: For an unknown norm, version or attack, an empty selection, a negative epsilon,
            bad images or labels, or a model that returns NaN; before anything runs for an attack
            named in ``attacks`` that is not defined for these images or classes (DLR below 3
            classes, Square on what is no image).

    Warns:
        UserWarning: Once, for attacks of a version that are not defined and left out.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import autoattack
        >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) * jnp.array([[1.0, -1.0]])
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.9).at[1].set(0.51), jnp.array([0, 0])
        >>> result = autoattack(logits_fn, jax.random.key(0), images, labels, attacks=["apgd-ce"])
        >>> result.clean_accuracy, result.accuracy
        (1.0, 0.5)
    """
    check_key(key)
    checks.check_arrays([*jax.tree.leaves(images), labels])
    if not checks.is_concrete((images, labels, key)):
        raise ValueError(
            "autoattack is being traced (jit, vmap, grad), but it drops broken examples as it "
            "goes: call it outside; its attacks are compiled."
        )
    ball = ball_of(epsilon, norm, ball)
    plan = ensemble(version, ball=ball, attacks=attacks)
    images, labels = np.asarray(in_float32(images)), np.asarray(labels)
    classes = _classes(plan, as_pytree_function(logits_fn), images, labels, batch_size)
    plan, left_out = runnable(plan, images, classes)
    if left_out:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in left_out)
        # Who names an attack counts on its having run: without it the model would seem more robust.
        if attacks is not None or version == "custom":
            raise ValueError(f"Not defined here: {reasons}.")
        names = ", ".join(name for name, _ in plan)
        warnings.warn(
            f"Not defined here, and left out: {reasons}. What runs: {names}.", stacklevel=2
        )
    if state is None:
        state = start_state(plan, logits_fn, key, images, labels, batch_size=batch_size)
        if on_stage is not None:
            on_stage(state)
    # A ball of radius 0 holds the clean image alone, on which the verdict is known.
    nothing = isinstance(ball, InputBall) and not np.any(jax.tree.leaves(ball.radius)[0] > 0)
    while not nothing and state.finished < len(plan):
        state = run_stage(
            plan,
            state,
            logits_fn,
            key,
            images,
            labels,
            ball=ball,
            batch_size=batch_size,
            progress=progress,
        )
        if on_stage is not None:
            on_stage(state)
    return AutoAttackResult(
        state.images,
        state.robust,
        state.rows[0].accuracy,
        float(state.robust.mean()),
        state.rows,
        getattr(ball, "norm", None),
        getattr(ball, "radius", None),
        tuple(left_out),
    )
