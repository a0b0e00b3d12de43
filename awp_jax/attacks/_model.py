"""The model as every attack sees it: a function as a pytree, its checks, and its verdict."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.ascent import is_traced
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._gradient import with_key
from awp_jax.attacks._result import AttackResult, Ranked, ranked
from awp_jax.balls import InputBall
from awp_jax.balls._norms import at_least_float32, is_float
from awp_jax.random import check_key, example_keys
from awp_jax.typing import Inputs, Key, Labels, LogitsFn


def as_pytree_function(function: Callable[..., Any]) -> Partial:
    """Wraps any callable so that it passes through ``jit`` as an argument.

    Raises:
        ValueError: For what cannot be called, and for models of PyTorch.
    """
    of_torch = any(base.__module__.startswith("torch.") for base in type(function).__mro__)
    if of_torch or not callable(function):
        raise ValueError(
            f"The model is a {type(function).__name__}, but a function of JAX arrays, "
            "images -> logits, was expected (PyTorch weights: awp_jax.interop, awp-jax import)."
        )
    # The function itself becomes part of the structure: the same object compiles once, and a lambda
    # that is written anew in every call compiles in every call.
    return function if isinstance(function, Partial) else Partial(function)


def _predict(function: Partial, images: Inputs, key: Key | None = None) -> Any:
    return function(images) if key is None else function(images, key)


predict = jax.jit(_predict)


def number_of_classes(function: Partial, images: Inputs, key: Key | None = None) -> int:
    """Classes according to the shape of the logits, without running the model.

    Args:
        function: ``images -> logits``, or with a key ``(images, key) -> logits``.
        images: ``[batch, ...]``, or their shape and dtype.
        key: One typed key for a randomised model.

    Raises:
        ValueError: When the model returns no ``[batch, classes]``, or fewer than 2 classes.
    """
    found = predict.eval_shape(function, images, key)
    # The usual slip, a model that returns more than logits, has a sentence of its own.
    if isinstance(found, tuple | list | dict):
        raise ValueError(
            f"logits_fn returned a {type(found).__name__} of {len(found)}, but an array of logits "
            "alone was expected: hand in a function that returns these only, such as "
            "lambda images: model(images)[0], or a loss and a success of your own."
        )
    shape, batch = getattr(found, "shape", None), _batch(images)
    if shape is None or len(shape) != 2 or shape[0] != batch or shape[1] < 2:
        raise ValueError(
            f"logits_fn returned {shape} for {batch} images, but logits [batch, classes] with at "
            "least 2 classes were expected (for other outputs give a loss and a success)."
        )
    return shape[1]


def _batch(images: Inputs) -> int:
    return jax.tree.leaves(images)[0].shape[0]


def check_logits(values: Any) -> None:
    """Raises ``ValueError`` when logits or losses that can be looked at hold NaN."""
    leaves = jax.tree.leaves(values)
    # Within a trace there are no numbers yet, and the check is left to whoever has them.
    if checks.is_concrete(values) and any(bool(jnp.isnan(leaf).any()) for leaf in leaves):
        raise ValueError("The model returns NaN: no verdict is possible.")


def in_float32(images: Inputs) -> Any:
    """Inputs of half precision as float32: bfloat16 cannot hold ``x + 8/255`` to 6% of epsilon.

    They stay so on their way into the model, whose layers compute in what they are made for: cast
    back, an adversarial image would be rounded out of its ball.
    """

    def wide(leaf: Any) -> Any:
        # What is no array of JAX or NumPy is left to the checks, which have a sentence for it.
        ours = isinstance(leaf, jax.Array | np.ndarray)
        return at_least_float32(leaf) if ours and is_float(leaf) else leaf

    return jax.tree.map(wide, images)


def bounds_of(ball: Any) -> tuple[Any, Any]:
    """The bounds of the inputs: those of an ``InputBall``; another ball's are not known."""
    return (ball.low, ball.high) if isinstance(ball, InputBall) else (None, None)


def check_examples(images: Inputs, labels: Labels, ball: Any = None) -> None:
    """Checks inputs and labels against the bounds of a ball; of images in [0, 1] without one."""
    low, high = bounds_of(InputBall() if ball is None else ball)
    checks.inputs_and_labels(images, labels, low=low, high=high)


def prepare(
    attack: Any, logits_fn: LogitsFn, key: Key, images: Inputs, labels: Labels
) -> tuple[Partial, jax.Array, Any, int | None]:
    """Checks the arguments of an attack, and brings them into its forms.

    Args:
        attack: Its ``ball`` holds the bounds of the inputs, its ``goal`` says what labels are, its
            ``eot`` whether the model is randomised, its ``targets`` whether it has to know the
            number of classes.
        logits_fn: As in every attack.
        key: One typed key, or one per example.
        images: float ``[batch, ...]`` within the ball's bounds, or a pytree of them.
        labels: int ``[batch]``, or what the goal takes.

    Returns:
        The function as a pytree, a key per example, the images ``in_float32``, and the number of
        classes; ``None`` where there are none, or the caller is being traced and nobody needs it: a
        function that closes over tracers must not become a key of the global compilation cache.

    Raises:
        ValueError: For bad images, labels, keys, or what the model returns.
    """
    goal: Goal = attack.goal
    check_key(key)  # first: arguments in another order are seen at it
    images = in_float32(images)
    low, high = bounds_of(attack.ball)
    if goal.classifies:
        checks.inputs_and_labels(images, labels, low=low, high=high)
    else:
        checks.inputs_and_targets(images, labels, low=low, high=high)
    if isinstance(attack.ball, InputBall):
        # One sentence here, in place of a mismatch of shapes from inside the compiled step.
        attack.ball.check(images)
    keys, function = example_keys(key, _batch(images)), as_pytree_function(logits_fn)
    if is_traced(function, images, labels) and not getattr(attack, "targets", 0):
        return function, keys, images, None
    # Only its type counts: the model is traced for its shapes, and not run.
    key_now = keys[0] if attack.eot else None
    if not goal.classifies:
        goal.check(predict.eval_shape(function, images, key_now), labels, _batch(images))
        return function, keys, images, None
    classes = number_of_classes(function, images, key_now)
    checks.labels_below(labels, classes)
    return function, keys, images, classes


def _ranked(
    function: Partial, images: Inputs, labels: Labels, key: Key | None, goal: Goal
) -> Ranked:
    return ranked(function if key is None else with_key(function, key), images, labels, goal)


_compiled_ranked = jax.jit(_ranked)


def ranked_verdict(
    function: Partial, images: Inputs, labels: Labels, key: Key | None, goal: Goal
) -> Ranked:
    """``verdict``, with what results of several runs are compared by: compiled, unless traced."""
    # The compiled one would keep a function that closes over outer tracers in its cache.
    traced = is_traced(function, images, labels)
    return (_ranked if traced else _compiled_ranked)(function, images, labels, key, goal)


def verdict(
    function: Partial,
    images: Inputs,
    labels: Labels,
    key: Key | None = None,
    goal: Goal | None = None,
) -> AttackResult:
    """What one pass says of ``images``, compiled except where the caller is.

    Args:
        function: ``images -> logits``, or with a key ``(images, key) -> logits``.
        images: ``[batch, ...]``, or a pytree of them.
        labels: int ``[batch]``, or what the goal takes.
        key: One typed key for a randomised model.
        goal: What counts as success; ``None`` for misclassification.
    """
    goal = Goal() if goal is None else goal
    return ranked_verdict(function, images, labels, key, goal).result
