"""Accuracy and loss of any logits function on a whole data set, clean or attacked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks, parallel, results
from awp_jax.attacks import PGD
from awp_jax.attacks._model import as_pytree_function, check_examples, check_logits
from awp_jax.attacks._result import outcome
from awp_jax.data import as_float, padded_batches
from awp_jax.evaluation._verdict import judge_passes
from awp_jax.explicit import on_any_mesh
from awp_jax.random import example_keys


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured on a set of images.

    Attributes:
        accuracy: Share classified correctly (after the attack), in [0, 1].
        loss: Mean cross-entropy in nats; under attack the worst over restarts per example.
        examples: Number of images.
    """

    accuracy: float
    loss: float
    examples: int

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return dataclasses.asdict(self)

    def save(self, path: Any) -> None:
        """Writes ``as_dict`` as JSON.

        Raises:
            ValueError: For a path that does not end in ``.json``.
        """
        results.save_plain(path, self.as_dict())


# One program each: made eagerly, every operation on every shape would be one.
@jax.jit
def _cut_out(images: Any, labels: Any, keys: Any, indices: Any) -> tuple[Any, Any, Any]:
    return as_float(images[indices]), labels[indices], keys[indices]


@jax.jit
def _added(sums: Any, mask: Any, error: Any, losses: Any) -> tuple[Any, Any]:
    correct, loss = sums
    correct = correct + jnp.sum(jnp.where(mask, 1.0 - error, 0.0))
    return correct, loss + jnp.sum(jnp.where(mask, losses, 0.0)).astype(jnp.float32)


def _judged(
    attacks: tuple[Any, ...],
    function: Any,
    batch: tuple[Any, Any, Any],
    mask: Any,
    sums: tuple[Any, ...],
    eot: int,
) -> tuple[Any, ...]:
    """The sums after one more batch, of each attack."""
    images, labels, keys = batch
    after = []
    for attack, before in zip(attacks, sums, strict=True):
        point = images
        if attack is not None:
            result = outcome(attack(function, keys, images, labels), attack)
            point, error, losses = result.images, result.success, result.loss
        # An attack's result has the verdict already, but of a randomised model only one lucky draw.
        if attack is None or eot:
            error, losses, _ = judge_passes(function, keys, point, labels, eot)
        after.append(_added(before, mask, error, losses))
    return tuple(after)


_compiled_judged = jax.jit(_judged, static_argnums=5)


def _is_one_program(attacks: tuple[Any, ...]) -> bool:
    """Whether a batch is judged by one program: not on a CPU, where loops run from Python."""
    ours = all(attack is None or isinstance(attack, PGD) for attack in attacks)
    return ours and jax.default_backend() != "cpu"


def measure(
    logits_fn: Callable,
    images: Any,
    labels: Any,
    attack: Callable | None = None,
    *,
    key: jax.Array | None = None,
    batch_size: int = 256,
    eot: int = 0,
    on_batch: Callable[[int], Any] | None = None,
) -> Measurement:
    """Accuracy and loss on all images; the last batch is padded and masked, never dropped.

    Args:
        logits_fn: ``images -> logits [batch, classes]``; a ``jax.tree_util.Partial`` over the
            parameters is compiled once for all parameters.
        images: ``[n, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[n]``.
        attack: ``None`` for clean accuracy, or ``attack(logits_fn, key, images, labels)``.
        key: One typed key, folded by the index of the example; needed with an attack.
        batch_size: Images per forward pass; does not change the result (of a deterministic model).
        eot: For a randomised model, ``logits_fn(images, key)``: accuracy and loss are the average
            of this many random passes on the clean or attacked images. 0: deterministic.
        on_batch: Called whenever a batch is done, with how many examples are; what it raises ends
            the measurement.

    Returns:
        A ``Measurement``.

    Raises:
        ValueError: For bad images or labels, no examples, or a missing key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import PGD
        >>> from awp_jax.evaluation import measure
        >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) @ jnp.array([[1.0, -1.0]])
        >>> images = jnp.stack([jnp.full((2, 2, 1), value) for value in (0.52, 0.9)])
        >>> labels = jnp.array([0, 0])
        >>> attack, key = PGD("8/255", steps=2), jax.random.key(0)
        >>> measure(logits_fn, images, labels).accuracy
        1.0
        >>> measure(logits_fn, images, labels, attack, key=key).accuracy
        0.5
    """
    options: dict[str, Any] = {"batch_size": batch_size, "eot": eot, "on_batch": on_batch}
    return measure_each(logits_fn, images, labels, {"": attack}, key=key, **options)[""]


@on_any_mesh(logits_fn="images")
def measure_each(
    logits_fn: Callable,
    images: Any,
    labels: Any,
    attacks: Mapping[str, Callable | None],
    *,
    key: jax.Array | None = None,
    batch_size: int = 256,
    eot: int = 0,
    on_batch: Callable[[int], Any] | None = None,
) -> dict[str, Measurement]:
    """``measure`` under several attacks, each on all images, in one pass over the batches.

    On a GPU or TPU a batch is one compiled program where all attacks are PGD's, or ``None``.

    Args:
        attacks: By name; ``None`` for clean accuracy.
        logits_fn, images, labels, key, batch_size, eot, on_batch: As in ``measure``.

    Returns:
        A ``Measurement`` by name.

    Raises:
        ValueError: As ``measure``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import PGD
        >>> from awp_jax.evaluation import measure_each
        >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) @ jnp.array([[1.0, -1.0]])
        >>> images = jnp.stack([jnp.full((2, 2, 1), value) for value in (0.52, 0.9)])
        >>> attacks = {"clean": None, "pgd-2": PGD("8/255", steps=2)}
        >>> found = measure_each(
        ...     logits_fn, images, jnp.array([0, 0]), attacks, key=jax.random.key(0)
        ... )
        >>> {name: each.accuracy for name, each in found.items()}
        {'clean': 1.0, 'pgd-2': 0.5}
    """
    n = len(labels)
    function, each = as_pytree_function(logits_fn), tuple(attacks.values())
    floats = as_float(images)
    for attack in each:
        check_examples(floats, labels, getattr(attack, "ball", None))
    del floats  # four times the bytes of what is measured
    checks.positive_integer(batch_size, "batch_size")
    if any(attack is not None for attack in each) and key is None:
        raise ValueError("key is missing: an attack draws random starts from it.")
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    keys = example_keys(jax.random.key(0) if key is None else key, n)
    judge = _compiled_judged if _is_one_program(each) else _judged
    # Sums stay on the device, so that batches can be sent ahead without waiting.
    zero = jnp.zeros([], jnp.float32)
    sums, done = ((zero, zero),) * len(each), 0
    for indices, mask in padded_batches(n, min(batch_size, n), parallel.shards(function)):
        if on_batch is not None and done:
            # Who counts batches wants those that are done, and not those that are sent.
            jax.block_until_ready(sums)
            on_batch(done)
        batch = parallel.follow(function, _cut_out(images, labels, keys, indices))
        sums = judge(each, function, batch, mask, sums, eot)
        done += int(mask.sum())
    found = {}
    for (name, attack), (correct, loss) in zip(attacks.items(), sums, strict=True):
        if attack is not None:
            check_logits(loss)  # which the attacks inside a program could not
        found[name] = Measurement(float(correct) / n, float(loss) / n, n)
    return found
