"""Checks of what users hand in: one clear sentence before any compilation."""

import difflib
import math
import warnings
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import jax
import numpy as np

# Above these a radius is nearly always meant in 255ths. L2 balls of 2 are usual for MNIST, L1 balls
# of 12 in AutoAttack.
_USUAL = {"linf": 1.0, "l2": 16.0, "l1": math.inf}


def is_concrete(value: Any) -> bool:
    """Whether ``value`` holds numbers that can be looked at now (no tracer anywhere in it)."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def is_number(value: Any) -> bool:
    """Whether ``value`` is a Python or NumPy number (and no bool)."""
    return isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)


def number(value: Any, name: str) -> Any:
    """A bound: a number or a fraction as text becomes a float; arrays pass through.

    Raises:
        ValueError: When it is none of these, or NaN.
    """
    if hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, np.generic):
        return value
    found = _read(value, name)
    if math.isnan(found):
        raise ValueError(f"{name} is {value!r}, but a number was expected.")
    return found


def _read(value: Any, name: str) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{name} is {value!r}, but a number or a fraction such as '8/255' was expected."
        ) from None


def radius(value: Any, name: str = "epsilon", norm: str | None = "linf") -> Any:
    """Reads a radius or step size: a number, or text such as ``"8/255"``, ``"0.03"``.

    Args:
        value: A number >= 0, a fraction as text, or an array/tracer (passed through unchanged, so
            that schedules and injected hyperparameters work).
        name: What to call it in messages.
        norm: What it is measured in, ``"relative"`` for weights; ``None`` where no value is
            unusual.

    Returns:
        A Python float in the units of ``value``, or the array itself.

    Raises:
        ValueError: When the value is negative, not finite or not a number.

    Warns:
        UserWarning: Above 1 (L2: 16; L1: never): images live in [0, 1], so 8 is nearly always meant
            to be 8/255.
    """
    if hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, np.generic):
        return value
    found = _read(value, name)
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"{name} is {value!r}, but a finite number of at least 0 was expected.")
    usual = math.inf if norm is None else _USUAL.get(norm, 1.0)
    if found > usual:
        why = f"images are in [0, 1], so was {value}/255 meant?"
        if norm == "relative":
            why = "it is relative to the weights' norm: published values are 0.005 and 0.01."
        warnings.warn(f"{name} is {value}, above {usual:g}: {why}", stacklevel=3)
    return found


def positive_integer(value: Any, name: str, minimum: int = 1) -> int:
    """Returns ``value`` when it is an integer of at least ``minimum``.

    Raises:
        ValueError: Otherwise, naming the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} is {value!r}, but an integer of at least {minimum} was expected.")
    return int(value)


def choice(value: Any, choices: Iterable[str], name: str) -> str:
    """Returns ``value`` when it is one of ``choices``.

    Raises:
        ValueError: Otherwise, with the nearest name when one is near, and all of them where
            they are not too many to read.
    """
    options = list(choices)
    if isinstance(value, str) and value in options:
        return value
    # Publications write names in capitals.
    lower = {str(option).lower(): option for option in options}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1, cutoff=0.5)
    hint = f" Did you mean {lower[near[0]]!r}?" if near else ""
    few = len(options) <= 40
    known = f"known: {', '.join(options)}" if few else f"{len(options)} names are known"
    raise ValueError(f"Unknown {name} {value!r}; {known}.{hint}")


def inputs(images: Any, *, low: Any = 0.0, high: Any = 1.0) -> int:
    """Checks a batch of inputs.

    Args:
        images: float ``[batch, ...]``, or a pytree of arrays with the same batch, some of which may
            be integers.
        low: Least value, a number or arrays that broadcast; ``None`` for no bound.
        high: Largest value.

    Returns:
        The number of examples.

    Raises:
        ValueError: For wrong shapes or dtypes always; for values outside the bounds and NaN when
            the arrays are concrete (under ``jit`` only shapes and dtypes are known).
    """
    leaves = jax.tree.leaves(images)
    alone = len(leaves) == 1 and leaves[0] is images
    check_arrays(leaves)
    _check_floats(images, low, high)
    shapes = [leaf.shape for leaf in leaves]
    if any(len(shape) < (2 if alone else 1) for shape in shapes):
        raise ValueError(
            f"images have shape {shapes[0] if alone else shapes}, but [batch, height, width, "
            "channels], or [batch, ...], was expected."
        )
    if alone:
        _check_layout(tuple(shapes[0]))
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"The inputs have shapes {shapes}, but the same batch was expected in all."
        )
    if shapes[0][0] == 0:
        raise ValueError("The batch is empty: at least one image was expected.")
    if is_concrete((images, low, high)):
        for leaf in leaves:
            if jax.numpy.issubdtype(leaf.dtype, np.floating):
                _values(leaf, *(bound if alone else None for bound in (low, high)))
    return int(shapes[0][0])


def check_arrays(leaves: list[Any]) -> None:
    """Raises ``ValueError`` for lists, numbers, and tensors of other libraries."""
    if not leaves or not all(hasattr(leaf, "dtype") for leaf in leaves):
        raise ValueError("images and labels must be arrays, not lists or numbers.")
    for leaf in leaves:
        if type(leaf).__module__.split(".")[0] in ("torch", "tensorflow"):
            kind = f"{type(leaf).__module__.split('.')[0]} tensor"
            raise ValueError(
                f"images and labels must be arrays of NumPy or JAX, not a {kind}: give "
                "x.numpy(), with images [batch, height, width, channels]."
            )


def _check_layout(shape: tuple[int, ...]) -> None:
    """Warns of ``[batch, channels, height, width]``, a habit from PyTorch."""
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3) and shape[2] == shape[3]:
        warnings.warn(
            f"images have shape {shape}, which looks like [batch, channels, height, width]; here "
            "it is read as [batch, height, width, channels]: was images.transpose(0, 2, 3, 1) "
            "meant?",
            stacklevel=4,
        )


def _check_floats(images: Any, low: Any, high: Any) -> None:
    alone = hasattr(images, "dtype")
    if alone and not jax.numpy.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"images have dtype {images.dtype}, but floats {_range(low, high)} were expected "
            "(divide uint8 images by 255)."
        )


def _range(low: Any, high: Any) -> str:
    if is_number(low) and is_number(high):
        return f"in [{low:g}, {high:g}]"
    return "within the ball's bounds"


def _values(images: Any, low: Any, high: Any) -> None:
    # Concrete values stay concrete even when something else is being traced around them.
    with jax.ensure_compile_time_eval():
        least, most = float(images.min()), float(images.max())
        if np.ndim(low) or np.ndim(high):
            # NumPy, as ranks may differ.
            below = low is not None and bool((np.asarray(images) < np.asarray(low)).any())
            above = high is not None and bool((np.asarray(images) > np.asarray(high)).any())
        else:
            # A bound as the images' dtype holds it: 0.3 in float32 is more than 0.3.
            below = low is not None and least < float(np.asarray(low, images.dtype))
            above = high is not None and most > float(np.asarray(high, images.dtype))
    if math.isnan(least) or math.isnan(most):
        bad = np.isnan(np.asarray(images).astype(np.float32)).reshape(len(images), -1)
        count = int(bad.any(axis=1).sum())
        raise ValueError(f"images hold NaN, in {count} of {len(images)} images.")
    if below or above:
        raise ValueError(
            f"images hold [{least:.4g}, {most:.4g}], but values {_range(low, high)} were expected "
            "(put mean and standard deviation into the model, not into the images; other inputs "
            "have a ball of their own, InputBall(low=..., high=...), or None)."
        )


def inputs_and_targets(images: Any, targets: Any, *, low: Any = 0.0, high: Any = 1.0) -> None:
    """Checks inputs and targets of any task: arrays with the same batch. Raises as ``inputs``."""
    batch = inputs(images, low=low, high=high)
    shapes = [getattr(leaf, "shape", None) for leaf in jax.tree.leaves(targets)]
    if not shapes or any(not shape or shape[0] != batch for shape in shapes):
        raise ValueError(
            f"targets have shapes {shapes}, but arrays [batch, ...] with the {batch} examples of "
            "the inputs were expected."
        )


def inputs_and_labels(images: Any, labels: Any, *, low: Any = 0.0, high: Any = 1.0) -> None:
    """Checks inputs as ``inputs`` does, and that labels are integers ``[batch]``."""
    check_arrays([*jax.tree.leaves(images), labels])
    _check_floats(images, low, high)
    if not jax.numpy.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels have dtype {labels.dtype}, but integers were expected.")
    shapes = [leaf.shape for leaf in jax.tree.leaves(images)]
    if labels.ndim != 1 or not shapes or any(s[:1] != labels.shape or not s for s in shapes):
        raise ValueError(
            f"images have shape {shapes[0] if len(shapes) == 1 else shapes} and labels "
            f"{labels.shape}, but [batch, height, width, channels] and [batch] with the same batch "
            "were expected (for other targets give the attack a loss and a success)."
        )
    inputs(images, low=low, high=high)
    labels_below(labels, None)


def labels_below(labels: Any, num_classes: int | None) -> None:
    """Raises ``ValueError`` for known labels below 0 or of at least ``num_classes``."""
    if not is_concrete(labels):
        return
    with jax.ensure_compile_time_eval():
        least, most = int(labels.min()), int(labels.max())
    if least < 0 or (num_classes is not None and most >= num_classes):
        bound = "the number of classes" if num_classes is None else str(num_classes)
        raise ValueError(
            f"labels lie in [{least}, {most}], but values from 0 to below {bound} were expected."
        )


def images_and_labels(images: Any, labels: Any, num_classes: int | None = None) -> None:
    """Checks a batch of images in [0, 1] before a model sees it.

    Args:
        images: float ``[batch, ...]`` in [0, 1].
        labels: integer ``[batch]`` in [0, num_classes).
        num_classes: The upper bound of the labels, when known.

    Raises:
        ValueError: As ``inputs_and_labels`` and ``labels_below``.
    """
    inputs_and_labels(images, labels)
    labels_below(labels, num_classes)
