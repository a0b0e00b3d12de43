"""All attacks of a selection on one set of images, part by part."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, results
from awp_jax.attacks import AutoAttackState, FeatureAttack, Row, autoattack, transfer
from awp_jax.attacks._ensemble import is_random
from awp_jax.attacks._in_ball import OF_THE_BALL, ball_of
from awp_jax.attacks._model import as_pytree_function, check_examples, number_of_classes
from awp_jax.attacks._work import steps_of, work
from awp_jax.balls import InputBall
from awp_jax.data import as_float
from awp_jax.evaluation._outcomes import Outcome, attack_examples, summary, union
from awp_jax.evaluation._partial import PartialResults, described
from awp_jax.evaluation._per_image import PerImage, per_image
from awp_jax.evaluation._tell import Tell
from awp_jax.explicit import on_any_mesh
from awp_jax.panels import accuracy_bars
from awp_jax.progress import Progress, check_show
from awp_jax.random import example_keys

# What an unfinished AutoAttack goes on from, beside its rows.
_ARRAYS = ("images", "robust", "broken_by", "loss", "prediction")
# How many images the feature attack chooses from.
_POOL = 1000


class Evaluation(NamedTuple):
    """What all attacks of a selection did to one set of images.

    Attributes:
        attacks: By name, the ``summary`` of each attack, ``"clean"`` first; plain values.
        union: All attacks together; plain values.
        outcomes: By name, what happened to each example, with the adversarial images.
    """

    attacks: dict[str, dict[str, Any]]
    union: dict[str, Any]
    outcomes: dict[str, Outcome]

    def per_image(self, labels: Any) -> PerImage:
        """What happened to each image, and which attack broke it first.

        Args:
            labels: int ``[examples]``, those of the call.

        Returns:
            A ``PerImage``.

        Raises:
            ValueError: For another number of labels.
        """
        return per_image(self.outcomes, labels)

    def __repr__(self) -> str:
        lines = [f"Evaluation({self.union['examples']} examples)"]
        for name, row in self.attacks.items():
            loss = "" if row["loss"] is None else f", loss {row['loss']:.3f}"
            lines.append(f"  {name}: accuracy {row['accuracy']:.2%}{loss}")
        lines.append(f"  all together: accuracy {self.union['accuracy']:.2%}")
        return results.cut("\n".join(lines), "found.attacks")

    def save(self, path: Any) -> None:
        """Writes ``attacks`` and ``union`` as JSON; ``per_image`` and ``outcomes`` save arrays.

        Raises:
            ValueError: For a path that does not end in ``.json``.
        """
        results.save_plain(path, {"attacks": self.attacks, "union": self.union})

    def plot(self, axes: Any = None) -> Any:
        """Draws the accuracy under each attack, and under all together.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        values = {name: row["accuracy"] for name, row in self.attacks.items()}
        values |= {"all together": self.union["accuracy"]} if len(values) > 2 else {}
        accuracy_bars(axes, values, f"accuracy of {self.union['examples']} images (%)")
        return axes


@on_any_mesh(logits_fn="images", surrogate_fn="images")
def evaluate(
    logits_fn: Callable,
    key: jax.Array,
    images: Any,
    labels: Any,
    attacks: Mapping[str, Any],
    *,
    norm: Any = OF_THE_BALL,
    epsilon: Any = OF_THE_BALL,
    ball: Any = None,
    batch_size: int = 256,
    eot: int = 0,
    surrogate_fn: Callable | None = None,
    partial: PartialResults | None = None,
    progress: str | Callable[[str, float], Any] | None = None,
) -> Evaluation:
    """Runs attacks on a set of images: what ``awp-jax evaluate`` does with a checkpoint.

    Each attack sees all images; within AutoAttack, each of its attacks sees what is still robust.

    Args:
        logits_fn: ``images -> logits [batch, classes]``; a ``jax.tree_util.Partial`` over the
            parameters is compiled once for all parameters.
        key: One typed key, or one per example.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        attacks: From ``attacks_by_name``; or any attacks by name, and for a cascade a list of
            ``(name, attack)``.
        norm: Of the ball that every result is projected on: ``"linf"``, ``"l2"`` or ``"l1"``; with
            ``epsilon`` short for ``ball=InputBall(norm, epsilon)``.
        epsilon: Its radius in pixel units.
        ball: In place of both.
        batch_size: Examples per pass; does not change the result (of a deterministic model).
        eot: For a randomised model, ``logits_fn(images, key)``: the number of random passes that
            every verdict averages over, on the images that an attack has found and with draws that
            it has not seen; the accuracy is the share of passes that are right. 0: deterministic.
            The attacks have an ``eot`` of their own.
        surrogate_fn: Another model, on which every attack is crafted, while ``logits_fn`` judges (a
            transfer attack); ``None`` for white-box attacks. Cascades are refused.
        partial: Where finished attacks are kept; ``None``: nowhere.
        progress: ``"text"``, ``"bar"`` or ``"auto"`` for lines or a bar on standard error, with the
            time that is left; or called with the name of an attack and the share of it that is
            done, also while a batch is attacked.

    Returns:
        An ``Evaluation``.

    Raises:
        ValueError: For another ``progress``, bad images or labels, an empty selection, a model that
            returns NaN, a surrogate of other images or classes, or a cascade on a surrogate.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.evaluation import attacks_by_name, evaluate
        >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) * jnp.array([[1.0, -1.0]])
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.9).at[1].set(0.51), jnp.array([0, 0])
        >>> found = evaluate(
        ...     logits_fn, jax.random.key(0), images, labels, attacks_by_name(["fgsm", "pgd-2"])
        ... )
        >>> found.attacks["fgsm"]["accuracy"], found.union["accuracy"]
        (0.5, 0.5)
    """
    checks.positive_integer(batch_size, "batch_size")
    check_show(progress)
    ball = ball_of(epsilon, norm, ball)
    images, labels, function = np.asarray(images), np.asarray(labels), as_pytree_function(logits_fn)
    first = as_float(images[:1])
    check_examples(as_float(images), labels, ball)
    keys = example_keys(key, len(labels))
    classes = number_of_classes(function, first, keys[0] if eot else None)
    checks.labels_below(labels, classes)
    partial = PartialResults(None, {}) if partial is None else partial
    plain = _is_plain(ball)
    outcomes: dict[str, Outcome] = {}
    lines = None
    if isinstance(progress, str):
        costs = {name: work(attack) for name, attack in {"clean": None, **attacks}.items()}
        lines = Progress(len(labels) * sum(costs.values()), unit="pass", show=progress)
        progress = Tell(lines, "", costs, len(labels))
    for name, attack in {"clean": None, **attacks}.items():
        # All that the outcome depends on beside model and images: it names the stored part.
        part: dict[str, Any] = {"attack": name, "settings": described(attack)}
        if plain:
            part["norm"] = ball.norm
        part |= (
            {"epsilon": ball.radius, "eot": eot} if plain else {"ball": described(ball), "eot": eot}
        )
        if isinstance(attack, list) and surrogate_fn is not None:
            raise ValueError(
                f"{name} looks at its own model after every attack, so it is not crafted on a "
                "surrogate: name single attacks, such as pgd-20, apgd-ce."
            )
        stored = partial.load(part)
        if stored is not None and "prediction" in stored:
            if isinstance(progress, Tell):
                progress.kept(name)
            outcomes[name] = _unpacked(stored)
        else:
            tick = Partial(_unfinished, progress, name) if progress is not None else None
            common: dict[str, Any] = {"ball": ball, "batch_size": batch_size}
            steps = steps_of(attack, classes) if hasattr(attack, "steps") else None
            if isinstance(attack, FeatureAttack) and attack.pool is None:
                # From all images: drawn from the batch, results would depend on its size.
                pool = (as_float(images[:_POOL]), labels[:_POOL])
                attack = dataclasses.replace(attack, pool=pool)
            if attack is not None and surrogate_fn is not None:
                attack = Partial(_transferred, attack, surrogate_fn, eot)
            began = time.perf_counter()
            if isinstance(attack, list):
                found = _cascade(
                    attack, function, keys, images, labels, partial, part, tick, eot, common
                )
            else:
                found = attack_examples(
                    function,
                    keys,
                    images,
                    labels,
                    attack,
                    tick=tick,
                    steps=steps,
                    eot=eot,
                    **common,
                )._replace(seconds=time.perf_counter() - began)
            outcomes[name] = found
            partial.save(part, _packed(found))
        if progress is not None:
            progress(name, 1.0)
    if lines is not None:
        lines.close()
    clean = outcomes["clean"]
    attacked = {name: found for name, found in outcomes.items() if name != "clean"}
    rows = {name: summary(found, clean) for name, found in outcomes.items()}
    return Evaluation(rows, union(attacked, clean), outcomes)


def _is_plain(ball: Any) -> bool:
    """Whether a ball is no more than a norm and a number: images in [0, 1], nothing masked."""
    if not isinstance(ball, InputBall) or ball.mask is not None:
        return False
    numbers = all(checks.is_number(value) for value in (ball.radius, ball.low, ball.high))
    return numbers and ball == InputBall(ball.norm, ball.radius)


def _unfinished(progress, name, share, *more):
    if share < 1:  # the end is told once, when the result is kept
        progress(name, share, *(more if isinstance(progress, Tell) else ()))


def _transferred(attack, surrogate_fn, eot, function, keys, images, labels):
    return transfer(attack, surrogate_fn, function, keys, images, labels, eot=eot)


def _without_key(function, images, key):
    del key
    return function(images)


def _cascade(plan, function, keys, images, labels, partial, part, tick, eot, common) -> Outcome:
    """AutoAttack, kept after every one of its attacks."""
    # Attacks with an eot hand over a key, which a deterministic model does not take.
    attacked = Partial(_without_key, function) if is_random(plan) and not eot else function
    # A name of its own: an unfinished cascade is never taken for a result.
    part = {**part, "unfinished": True}
    stored = partial.load(part)
    state = None
    if stored is not None and "broken_by" in stored:
        rows = tuple(Row(*row) for row in json.loads(str(stored["rows"])))
        state = AutoAttackState(rows=rows, **{name: stored[name] for name in _ARRAYS})

    def keep(now: AutoAttackState) -> None:
        arrays = {name: getattr(now, name) for name in _ARRAYS}
        partial.save(part, {**arrays, "rows": json.dumps(now.rows)})

    def report(now) -> None:
        tick(now.share, now.computed, f": {now}")

    result = autoattack(
        attacked,
        keys,
        as_float(images),
        labels,
        version="custom",
        attacks=plan,
        state=state,
        on_stage=keep,
        progress=None if tick is None else report,
        **common,
    )
    seconds = sum(row.seconds for row in result.rows)
    stages = tuple(row._asdict() for row in result.rows)
    success, error, said, loss = ~result.robust, None, result.prediction, result.loss
    stage: Any = result.broken_by
    if eot:  # robust so far is what no single draw has broken: the verdict averages over new ones
        judged = attack_examples(function, keys, result.images, labels, None, eot=eot, **common)
        success, error, said, loss = judged.success, judged.error, judged.prediction, judged.loss
        # What new draws break although no earlier one did is held against the last attack.
        stage = np.where(stage < 0, len(stages) - 1, stage)
        stage = np.where(success, stage, -1).astype(np.int32)
    return Outcome(success, None, None, result.images, seconds, stages, error, said, stage, loss)


def _packed(outcome: Outcome) -> dict[str, Any]:
    # What is not known has no array, and is None again when it is read.
    arrays = {k: v for k, v in outcome._asdict().items() if v is not None}
    return {**arrays, "stages": json.dumps(outcome.stages)}


def _unpacked(arrays: dict[str, np.ndarray]) -> Outcome:
    return Outcome(
        arrays["success"],
        arrays.get("loss"),
        arrays.get("steps"),
        arrays["images"],
        float(arrays["seconds"]),
        tuple(json.loads(str(arrays["stages"]))),
        arrays.get("error"),
        arrays["prediction"],
        arrays.get("stage"),
        arrays.get("found_loss"),
    )
