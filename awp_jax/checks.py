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


def radius(value: Any, name: str = "epsilon", norm: str = "linf") -> Any:
    """Reads a radius or step size: a number, or text such as ``"8/255"``, ``"0.03"``.

    Args:
        value: A number >= 0, a fraction as text, or an array/tracer (passed through unchanged, so
            that schedules and injected hyperparameters work).
        name: What to call it in messages.
        norm: What it is measured in.

    Returns:
        A Python float in the units of ``value``, or the array itself.

    Raises:
        ValueError: When the value is negative, not finite or not a number.

    Warns:
        UserWarning: Above 1 (L2: 16; L1: never): images live in [0, 1], so 8 is nearly always meant
            to be 8/255.
    """
    if isinstance(value, jax.Array | np.ndarray):
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{name} is {value!r}, but a number or a fraction such as '8/255' was expected."
        ) from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} is {value!r}, but a finite number of at least 0 was expected.")
    usual = _USUAL.get(norm, 1.0)
    if number > usual:
        warnings.warn(
            f"{name} is {value}, above {usual:g}: images are in [0, 1] and weight sizes are "
            f"relative, so was {value}/255 meant?",
            stacklevel=3,
        )
    return number


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
        ValueError: Otherwise, with the nearest name when one is near, and all of them.
    """
    options = list(choices)
    if isinstance(value, str) and value in options:
        return value
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown {name} {value!r}; known: {', '.join(options)}.{hint}")


def images_and_labels(images: Any, labels: Any, num_classes: int | None = None) -> None:
    """Checks a batch before an attack or a model sees it.

    Args:
        images: float ``[batch, ...]`` in [0, 1].
        labels: integer ``[batch]`` in [0, num_classes).
        num_classes: The upper bound of the labels, when known.

    Raises:
        ValueError: For wrong shapes or dtypes always; for values outside the range and NaN when
            the arrays are concrete (under ``jit`` only shapes and dtypes are known).
    """
    if not hasattr(images, "dtype") or not hasattr(labels, "dtype"):
        raise ValueError("images and labels must be arrays, not lists or numbers.")
    if not jax.numpy.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"images have dtype {images.dtype}, but floats in [0, 1] were expected "
            "(divide uint8 images by 255)."
        )
    if not jax.numpy.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels have dtype {labels.dtype}, but integers were expected.")
    if images.ndim < 2 or labels.ndim != 1 or images.shape[0] != labels.shape[0]:
        raise ValueError(
            f"images have shape {images.shape} and labels {labels.shape}, but "
            "[batch, height, width, channels] and [batch] with the same batch were expected."
        )
    if images.shape[0] == 0:
        raise ValueError("The batch is empty: at least one image was expected.")
    if not (is_concrete(images) and is_concrete(labels)):
        return
    # Concrete values stay concrete even when something else is being traced around them.
    with jax.ensure_compile_time_eval():
        low, high = float(images.min()), float(images.max())
        least, most = int(labels.min()), int(labels.max())
    if not (low >= 0.0 and high <= 1.0):
        if math.isnan(low) or math.isnan(high):
            bad = np.isnan(np.asarray(images).astype(np.float32)).reshape(len(images), -1)
            count = int(bad.any(axis=1).sum())
            raise ValueError(f"images hold NaN, in {count} of {len(images)} images.")
        raise ValueError(
            f"images hold [{low:.4g}, {high:.4g}], but values in [0, 1] were expected (put mean "
            "and standard deviation into the model, not into the images)."
        )
    if least < 0 or (num_classes is not None and most >= num_classes):
        bound = "the number of classes" if num_classes is None else str(num_classes)
        raise ValueError(
            f"labels lie in [{least}, {most}], but values from 0 to below {bound} were expected."
        )
