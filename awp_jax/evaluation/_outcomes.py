"""What one attack does to every example, and what that comes to."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import parallel, results
from awp_jax.ascent import Watch, watched
from awp_jax.attacks._model import as_pytree_function
from awp_jax.attacks._result import images_of
from awp_jax.attacks._survivors import of_examples
from awp_jax.balls import InputBall
from awp_jax.data import as_float, padded_batches
from awp_jax.evaluation._verdict import judge_passes


class Outcome(NamedTuple):
    """What one attack did to all examples, as NumPy arrays.

    Attributes:
        success: bool ``[examples]``: misclassified, by a forward pass on ``images``; by at least
            half of the passes of a randomised model.
        loss: float ``[examples]``: highest cross-entropy over restarts, in nats; ``None`` where the
            attack does not measure it (AutoAttack).
        steps: int ``[examples]``: steps or queries to the first success; ``None`` where not known.
        images: float ``[examples, height, width, channels]``: inside the ball and its bounds.
        seconds: Wall time, compilation included.
        stages: Of AutoAttack, one plain dict per attack; else empty.
        error: float ``[examples]``: of a randomised model, the share of passes that misclassify
            ``images``; ``None`` for a deterministic one.
        prediction: int32 ``[examples]``: the class that the model says of ``images``; of a
            randomised model that of most passes.
        stage: int32 ``[examples]``: of AutoAttack, which of ``stages`` broke the example (0 where
            the clean image is misclassified), -1 for none; else ``None``.
        found_loss: float ``[examples]``: of AutoAttack, the cross-entropy of ``images`` in nats;
            else ``None``.
    """

    success: np.ndarray
    loss: np.ndarray | None
    steps: np.ndarray | None
    images: np.ndarray
    seconds: float = 0.0
    stages: tuple[dict[str, Any], ...] = ()
    error: np.ndarray | None = None
    prediction: np.ndarray | None = None
    stage: np.ndarray | None = None
    found_loss: np.ndarray | None = None

    @property
    def errors(self) -> np.ndarray:
        """``error``, or 0 and 1 for a deterministic model."""
        return self.success.astype(np.float64) if self.error is None else self.error

    def __repr__(self) -> str:
        head = f"{results.percent(self.success)} misclassified"
        return results.described("Outcome", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes an ``.npz`` file, the arrays by their names and ``stages`` in ``json``.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)


def attack_examples(
    logits_fn: Callable,
    keys: jax.Array,
    images: Any,
    labels: Any,
    attack: Callable | None,
    *,
    ball: Any,
    batch_size: int = 256,
    eot: int = 0,
    tick: Callable[[float], Any] | None = None,
    steps: int | None = None,
) -> Outcome:
    """Attacks all examples in padded batches; the attack's own word does not count.

    What it returns is projected on the ball and judged anew.

    Args:
        logits_fn: ``images -> logits``; with ``eot``, ``(images, key) -> logits``.
        keys: One typed key per example.
        images: uint8 or float in [0, 1], ``[examples, height, width, channels]``.
        labels: int ``[examples]``.
        attack: ``(logits_fn, key, images, labels) -> AttackResult``; ``None`` for clean images.
        ball: What an attack's images are projected on.
        batch_size: Examples per pass; does not change the result (of a deterministic model).
        eot: Passes of a randomised model that the verdict averages over; 0: deterministic.
        tick: Called with the share that is done.
        steps: How many steps the attack takes on a batch; ``None`` where it is not known: then
            ``tick`` hears the same share again until a batch is done.

    Returns:
        An ``Outcome``, without its seconds.

    Raises:
        ValueError: When the model returns NaN.
    """
    function = as_pytree_function(logits_fn)
    n = len(labels)
    size = min(batch_size, n)
    parts: list[tuple[np.ndarray, ...]] = []
    taken = 0

    def stepped(more: int) -> None:
        nonlocal taken
        taken += more
        assert tick is not None
        # The end of a batch is told when it is judged.
        within = min(taken / steps, 0.99) if steps else 0.0
        tick(min((len(parts) + within) * size / n, 1.0))

    watch = None if tick is None else Watch(stepped)
    for indices, mask in padded_batches(n, size, parallel.shards(function)):
        batch, batch_labels, batch_keys = parallel.follow(
            function,
            (jnp.asarray(as_float(images[indices])), jnp.asarray(labels[indices]), keys[indices]),
        )
        point, result, counted = batch, None, np.zeros(len(mask), int)
        if attack is not None:
            # Radii and masks of single examples go with their rows, padding included.
            own = ball.examples(images, indices) if isinstance(ball, InputBall) else ball
            attack_now = of_examples(attack, images, indices)
            taken = 0
            with watched(watch):
                result = attack_now(function, batch_keys, batch, batch_labels)
            # Projected before it is judged: no attack gains by leaving the ball.
            point = own.project(batch, images_of(result, batch, attack))
            # -1 for not known, which None could not be among arrays to be joined.
            known = getattr(result, "steps", None)
            counted = np.full(len(mask), -1) if known is None else known
        error, loss, said = judge_passes(function, batch_keys, point, batch_labels, eot)
        if result is not None and not eot:  # the highest of random draws would be no estimate
            loss = jnp.maximum(loss, getattr(result, "loss", loss))
        arrays = parallel.to_host((error, loss, counted, point, said))
        parts.append(tuple(array[mask] for array in arrays))
        if tick is not None:
            tick(min(len(parts) * size / n, 1.0))
    joined = (np.concatenate(p) for p in zip(*parts, strict=True))
    errors, losses, counts, adversarial, classes = joined
    if np.isnan(losses).any():
        raise ValueError(
            f"The model returns NaN for {int(np.isnan(losses).sum())} of {n} images: no verdict is "
            "possible."
        )
    known = None if (counts < 0).any() else counts
    return Outcome(
        errors >= 0.5,
        losses,
        known,
        adversarial,
        error=errors if eot else None,
        prediction=classes.astype(np.int32),
    )


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
        "accuracy": float(np.mean(1 - outcome.errors)),
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
        ``accuracy``: of what is right on the clean image and under every attack (of a randomised
        model: by the highest share of wrong passes per example); ``loss`` and its
        parts as in ``summary``, the highest per example over all attacks that measure it
        (``None`` where none does);
        ``strongest`` and ``strongest_accuracy``: the single attack that leaves least;
        ``attacks``: their names.
    """
    everything = [clean, *outcomes.values()]
    # Example by example: robust is what no attack breaks, not the lowest accuracy of one.
    robust = ~np.logical_or.reduce([o.success for o in everything])
    losses = [o.loss for o in outcomes.values() if o.loss is not None]
    # The loss of clean images alone would pass for a robust loss.
    known = [clean.loss, *losses] if clean.loss is not None else losses
    loss = np.maximum.reduce(known) if losses or not outcomes else None
    strongest = max(outcomes, key=lambda name: outcomes[name].errors.mean(), default="clean")
    accuracy = np.mean(1 - outcomes.get(strongest, clean).errors)
    worst = np.maximum.reduce([o.errors for o in everything])
    return {
        "accuracy": float(np.mean(1 - worst)),
        **_losses(loss, clean),
        "examples": len(robust),
        "broke": int((~robust & ~clean.success).sum()),
        "strongest": strongest,
        "strongest_accuracy": float(accuracy),
        "attacks": list(outcomes),
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
