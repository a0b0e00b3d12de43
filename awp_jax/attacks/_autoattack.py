"""AutoAttack: an ensemble of parameter-free attacks (Croce and Hein, ICML 2020)."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, parallel
from awp_jax.attacks._apgd import APGD
from awp_jax.attacks._autoattack_result import AutoAttackResult, AutoAttackState, Row
from awp_jax.attacks._confirmed import check_finite, confirmed, verdicts
from awp_jax.attacks._ensemble import ensemble, is_random, runnable
from awp_jax.attacks._in_ball import OF_THE_BALL, ball_of
from awp_jax.attacks._model import as_pytree_function, check_examples, in_float32, number_of_classes
from awp_jax.attacks._stepped import SteppedAttack
from awp_jax.attacks._survivors import attack_survivors, batch_sizes
from awp_jax.attacks._told import Progress, Teller, robust_counts
from awp_jax.balls import InputBall
from awp_jax.explicit import on_any_mesh
from awp_jax.progress import check_show
from awp_jax.random import check_key, example_keys
from awp_jax.typing import Inputs, Key, Labels, LogitsFn, Radius
from awp_jax.words import known_names

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
    keys = example_keys(key, len(labels)) if is_random(plan) else None
    size = batch_sizes(min(batch_size, len(labels)), parallel.shards(function))[0]
    wrong, loss, said = verdicts(_judging(plan), function, keys, images, labels, size)
    check_finite(loss, "clean")
    row = Row("clean", float(np.mean(~wrong)), int(wrong.sum()), None, time.perf_counter() - began)
    # A copy, because `images` may be the caller's own array.
    broken_by = np.where(wrong, 0, -1).astype(np.int32)
    return AutoAttackState(images.copy(), ~wrong, (row,), broken_by, loss, said)


def _classes(
    plan: Plan, function: Partial, images: np.ndarray, labels: np.ndarray, batch_size: int
) -> int:
    checks.positive_integer(batch_size, "batch_size")
    ball = _ball(plan)
    check_examples(images, labels, ball)
    if isinstance(ball, InputBall):
        jax.eval_shape(ball.check, images)  # of shapes alone, and no program
    # Only shapes are asked for: the model is not run, and any key will do.
    key = jax.random.key(0) if is_random(plan) else None
    few = jax.ShapeDtypeStruct((min(batch_size, len(labels)), *images.shape[1:]), images.dtype)
    classes = number_of_classes(function, few, key)
    checks.labels_below(labels, classes)
    return classes


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
    if state.finished >= len(plan):
        raise ValueError(f"All {len(plan)} attacks have run.")
    images, labels = np.asarray(in_float32(images)), np.asarray(labels)
    _check_state(state, images, labels)
    function = as_pytree_function(logits_fn)
    classes = _classes(plan, function, images, labels, batch_size)
    keys = example_keys(key, len(labels))
    _, out = runnable([plan[state.finished]], images, classes)
    if out:
        raise ValueError(f"Attack {out[0][0]!r} cannot run: {out[0][1]}.")
    teller = _teller(progress, plan, classes, function, state, batch_size)
    ball = _ball(plan) if ball is None else ball
    return _stage(plan, state, function, keys, images, labels, classes, ball, batch_size, teller)


def _check_state(state: AutoAttackState, images: np.ndarray, labels: np.ndarray) -> None:
    if state.images.shape != images.shape or state.robust.shape != labels.shape:
        raise ValueError(
            f"The state holds images {state.images.shape}, but {images.shape} were handed in."
        )


def _teller(
    show: Any,
    plan: Plan,
    classes: int,
    function: Partial,
    state: AutoAttackState,
    batch_size: int,
) -> Teller | None:
    if show is None:
        return None
    examples = len(state.robust)
    sizes = batch_sizes(min(batch_size, examples), parallel.shards(function))
    done = robust_counts(state.rows, state.robust)
    return Teller(show, plan, classes, examples, sizes, done)


def _stage(
    plan: Plan,
    state: AutoAttackState,
    function: Partial,
    keys: Key,
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    ball: Any,
    batch_size: int,
    teller: Teller | None,
) -> AutoAttackState:
    """The next state, of arguments that were checked."""
    began = time.perf_counter()
    number = state.finished
    name, attack = plan[number]
    found = attack_survivors(
        attack,
        function,
        keys,
        # By the place in the plan: a run that goes on draws what an unbroken one would.
        number,
        images,
        labels,
        state.robust,
        classes=classes,
        batch_size=batch_size,
        tell=None if teller is None else teller.stage(number),
    )
    broken, adversarial, loss, said = confirmed(
        found, function, _judging(plan), ball, keys, images, labels, batch_size
    )
    robust = state.robust & ~broken
    result = state.images.copy()
    result[broken] = adversarial[broken]
    known = found.steps is not None and broken.any()
    steps = float(np.median(found.steps[broken])) if known else None  # type: ignore[index]
    seconds = time.perf_counter() - began
    row = Row(name, float(robust.mean()), int(broken.sum()), steps, seconds)
    if teller is not None:
        teller.end(int(robust.sum()))
    # A state of another program's may not know them.
    noted = [
        None if old is None else np.where(broken, new, old).astype(old.dtype)
        for old, new in (
            (state.broken_by, number + 1),
            (state.loss, loss),
            (state.prediction, said),
        )
    ]
    return AutoAttackState(result, robust, (*state.rows, row), *noted)


@known_names
@on_any_mesh(logits_fn="images")
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
    progress: str | Callable[[Progress], Any] | None = None,
    verbose: bool = False,
    state: AutoAttackState | None = None,
    on_stage: Callable[[AutoAttackState], Any] | None = None,
) -> AutoAttackResult:
    """Robust accuracy by AutoAttack: every attack sees only what is still robust.

    Not to be jitted: it drops broken examples between and during attacks, and compiles each attack
    for at most two batch sizes (your own for three). A fixed key gives the same result for any
    ``batch_size``, up to what the rounding of a differently shaped matrix product changes.

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
        progress: ``None`` for silence; ``"text"``: the attack, images left, robust accuracy so far
            and time as lines on standard error, ``"bar"``: as a bar there, ``"auto"``: a bar on a
            terminal and lines elsewhere; or a function that gets a ``Progress`` now and then.
        verbose: ``True`` is ``progress="text"``, where no other is given.
        state: Where to go on; ``None`` to begin.
        on_stage: Called with the ``AutoAttackState`` after every attack, to save it.

    Returns:
        An ``AutoAttackResult``.

    Raises:
        ValueError: For an unknown norm, version or attack, an empty selection, a negative epsilon,
            bad images or labels, or a model that returns NaN; before anything runs for an attack
            named in ``attacks`` that is not defined for these images or classes (DLR below 3
            classes, Square on what is no image), and for another ``progress``.

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
        >>> [result.names[by] if by >= 0 else None for by in result.broken_by]
        [None, 'apgd-ce']
    """
    check_show(progress)
    if not isinstance(verbose, bool):
        raise ValueError(f"verbose is {verbose!r}, but True or False was expected.")
    progress = "text" if verbose and progress is None else progress
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
    function = as_pytree_function(logits_fn)
    classes = _classes(plan, function, images, labels, batch_size)
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
    keys = example_keys(key, len(labels))
    teller = _teller(progress, plan, classes, function, state, batch_size)
    # A ball of radius 0 holds the clean image alone, on which the verdict is known.
    nothing = isinstance(ball, InputBall) and not np.any(jax.tree.leaves(ball.radius)[0] > 0)
    while not nothing and state.finished < len(plan):
        _check_state(state, images, labels)
        state = _stage(
            plan, state, function, keys, images, labels, classes, ball, batch_size, teller
        )
        if on_stage is not None:
            on_stage(state)
    if teller is not None:
        teller.close()
    return AutoAttackResult(
        state.images,
        state.robust,
        state.rows[0].accuracy,
        float(state.robust.mean()),
        state.rows,
        getattr(ball, "norm", None),
        getattr(ball, "radius", None),
        tuple(left_out),
        state.broken_by,
        state.loss,
        state.prediction,
    )
