"""What one attack does to every example, and what that comes to."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.attacks._pgd import as_pytree_function
from awp_jax.attacks._result import judge
from awp_jax.balls import ImageBall
from awp_jax.data import as_float, padded_batches


class Outcome(NamedTuple):
    """What one attack did to all examples, as NumPy arrays.

    Attributes:
        success: bool ``[examples]``: misclassified, by a forward pass on ``images``.
        loss: float ``[examples]``: highest cross-entropy over restarts, in nats; ``None`` where the
            attack does not measure it (AutoAttack).
        steps: int ``[examples]``: steps or queries to the first success; ``None`` where not known.
        images: float ``[examples, height, width, channels]``: inside the ball and [0, 1].
        seconds: Wall time, compilation included.
        stages: Of AutoAttack, one plain dict per attack; else empty.
    """

    success: np.ndarray
    loss: np.ndarray | None
    steps: np.ndarray | None
    images: np.ndarray
    seconds: float = 0.0
    stages: tuple[dict[str, Any], ...] = ()


_judge = jax.jit(judge)


def attack_examples(
    logits_fn: Callable,
    keys: jax.Array,
    images: Any,
    labels: Any,
    attack: Callable | None,
    *,
    norm: str,
    epsilon: float,
    batch_size: int = 256,
    tick: Callable[[float], Any] | None = None,
) -> Outcome:
    """Attacks all examples in padded batches; the attack's own word does not count.

    What it returns is projected on the ball and judged anew.

    Args:
        logits_fn: ``images -> logits``.
        keys: One typed key per example.
        images: uint8 or float in [0, 1], ``[examples, height, width, channels]``.
        labels: int ``[examples]``.
        attack: ``(logits_fn, key, images, labels) -> AttackResult``; ``None`` for clean images.
        norm: Of the ball.
        epsilon: Its radius in pixel units.
        batch_size: Examples per pass; does not change the result.
        tick: Called with the share that is done.

    Returns:
        An ``Outcome``, without its seconds.

    Raises:
        ValueError: When the model returns NaN.
    """
    function, ball = as_pytree_function(logits_fn), ImageBall(norm, epsilon)
    n = len(labels)
    size = min(batch_size, n)
    parts: list[tuple[np.ndarray, ...]] = []
    for indices, mask in padded_batches(n, size):
        batch, batch_labels = jnp.asarray(as_float(images[indices])), jnp.asarray(labels[indices])
        if attack is None:
            verdict, steps = _judge(function, batch, batch_labels), np.zeros(size, int)
        else:
            result = attack(function, keys[indices], batch, batch_labels)
            point = jnp.clip(ball.project(batch, result.images), 0, 1)
            verdict = _judge(function, point, batch_labels)
            verdict = verdict._replace(loss=jnp.maximum(verdict.loss, result.loss))
            steps = np.full(size, -1) if result.steps is None else np.asarray(result.steps)
        found = (verdict.success, verdict.loss, steps, verdict.images)
        parts.append(tuple(np.asarray(array)[mask] for array in found))
        if tick is not None:
            tick(min(len(parts) * size / n, 1.0))
    success, loss, steps, adversarial = (np.concatenate(p) for p in zip(*parts, strict=True))
    if np.isnan(loss).any():
        raise ValueError(
            f"The model returns NaN for {int(np.isnan(loss).sum())} of {n} images: no verdict is "
            "possible."
        )
    return Outcome(success, loss, None if (steps < 0).any() else steps, adversarial)


def summary(outcome: Outcome, clean: Outcome) -> dict[str, Any]:
    """What an outcome comes to, as plain values for JSON.

    Args:
        outcome: Of an attack, or the clean one itself.
        clean: What the model says of the clean images.

    Returns:
        ``accuracy`` left; ``loss``, the robust loss over all examples, ``loss_correct`` and
        ``loss_wrong`` over those whose clean image is classified correctly and wrongly (``None``
        for none, or where it was not measured); ``broke``, how many of the correct ones;
        ``median_steps`` over these; ``examples``; ``seconds``.
    """
    broken = outcome.success & ~clean.success
    median = None
    if outcome is not clean and outcome.steps is not None and broken.any():
        median = float(np.median(outcome.steps[broken]))
    found: dict[str, Any] = {
        "accuracy": float(np.mean(~outcome.success)),
        **_losses(outcome.loss, clean),
        "examples": len(outcome.success),
        "broke": int(broken.sum()),
        "median_steps": median,
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.stages:
        found["stages"] = list(outcome.stages)
    return found


def union(outcomes: Mapping[str, Outcome], clean: Outcome) -> dict[str, Any]:
    """All attacks together.

    Args:
        outcomes: By name of the attack.
        clean: What the model says of the clean images.

    Returns:
        ``accuracy``: of what is right on the clean image and under every attack; ``loss`` and its
        parts as in ``summary``, the highest per example over all attacks that measure it;
        ``strongest`` and ``strongest_accuracy``: the single attack that leaves least.
    """
    everything = [clean, *outcomes.values()]
    robust = ~np.logical_or.reduce([o.success for o in everything])
    loss = np.maximum.reduce([o.loss for o in everything if o.loss is not None])
    strongest = min(outcomes, key=lambda name: np.mean(~outcomes[name].success), default="clean")
    accuracy = np.mean(~outcomes.get(strongest, clean).success)
    return {
        "accuracy": float(robust.mean()),
        **_losses(loss, clean),
        "examples": len(robust),
        "broke": int((~robust & ~clean.success).sum()),
        "strongest": strongest,
        "strongest_accuracy": float(accuracy),
    }


def _losses(loss: np.ndarray | None, clean: Outcome) -> dict[str, float | None]:
    def mean(which: Any) -> float | None:
        chosen = None if loss is None else np.asarray(loss, np.float64)[which]
        return None if chosen is None or not len(chosen) else float(chosen.mean())

    return {
        "loss": mean(slice(None)),
        "loss_correct": mean(~clean.success),
        "loss_wrong": mean(clean.success),
    }
