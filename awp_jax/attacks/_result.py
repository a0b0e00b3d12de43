"""What every attack returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax import results
from awp_jax.attacks._goal import Goal
from awp_jax.attacks._losses import margin
from awp_jax.balls._input_norms import per_example
from awp_jax.typing import Inputs


class AttackResult(NamedTuple):
    """The outcome of an attack.

    Attributes:
        images: The inputs, float ``[batch, ...]`` (a pytree where the model takes one): for each
            example one with which the attack has succeeded when it found one, else the one where
            the loss that it ascends is highest (where that ties, the margin). Inside the ball and
            its bounds.
        success: bool ``[batch]``: whether ``images`` are misclassified, or what the attack calls
            success.
        loss: float ``[batch]``: the highest cross-entropy over restarts, in nats (the robust loss);
            its negative for targeted attacks; for a ``success`` of one's own the attack's loss.
        steps: int ``[batch]``: steps (or queries) until the first success, 0 for a misclassified
            clean image and where nothing was found; ``None`` for attacks that do not look.
    """

    images: Inputs
    success: jax.Array
    loss: jax.Array
    steps: jax.Array | None = None

    def __repr__(self) -> str:
        head = f"{results.percent(self.success) or 'not known'} with success"
        return results.described("AttackResult", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws how the losses of the examples are spread, by success.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        losses, success = np.asarray(self.loss), np.asarray(self.success)
        edges = np.histogram_bin_edges(losses, 30)
        for mask, label in ((~success, "without success"), (success, "success")):
            if mask.any():
                axes.hist(losses[mask], edges, alpha=0.6, label=f"{label}: {int(mask.sum())}")
        axes.set_xlabel("loss (nats)")
        axes.set_ylabel("examples")
        axes.legend()
        return axes


def outcome(result: Any, attack: Any) -> AttackResult:
    """``result`` of an attack that may be anybody's.

    Raises:
        ValueError: When it is no ``AttackResult``.
    """
    if not all(hasattr(result, name) for name in ("images", "success", "loss")):
        raise ValueError(
            f"{getattr(attack, '__name__', type(attack).__name__)} returned a "
            f"{type(result).__name__}, but an awp_jax.attacks.AttackResult(images, success, loss) "
            "was expected."
        )
    return result


def images_of(result: Any, images: Any, attack: Any) -> Any:
    """The adversarial images of what anybody's attack returned: a result, or the images alone.

    Raises:
        ValueError: Where they are not like the clean ones.
    """
    found = getattr(result, "images", result)
    structure: Any = jax.tree.structure
    same = structure(found) == structure(images)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(found)]
    if not same or shapes != [leaf.shape for leaf in jax.tree.leaves(images)]:
        name = getattr(attack, "__name__", type(attack).__name__)
        what = f"shape {shapes[0]}" if same else f"a {type(found).__name__}"
        raise ValueError(
            f"{name} returned {what}, but images like the clean ones were expected, of shape "
            f"{jax.tree.leaves(images)[0].shape}, or a result with them."
        )
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), found, images)


def choose(mask: jax.Array, first: Any, second: Any) -> Any:
    """``first`` where ``mask [batch]``, else ``second``: pytrees of ``[batch, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(per_example(mask, a), a, b), first, second)


class Ranked(NamedTuple):
    """A result, and by what it is compared with others.

    Attributes:
        result: The result.
        ascended: The loss that the attack ascends, ``[batch]``: not what is reported, which is 0.0
            on both sides where a model is very sure.
        margin: What decides where that ties, ``[batch]``.
        said: The class that the model says, int ``[batch]``; ``None`` where outputs are no logits,
            and where results of several runs were joined.
    """

    result: AttackResult
    ascended: jax.Array
    margin: jax.Array
    said: jax.Array | None = None


def ranked(
    logits_fn: Callable[[Any], Any], images: Any, labels: Any, goal: Goal | None = None
) -> Ranked:
    """Looks at what the model says of ``images``: the verdict is always a forward pass."""
    outputs, goal = logits_fn(images), Goal() if goal is None else goal
    result = AttackResult(images, goal.succeeded(outputs, labels), goal.judged(outputs, labels))
    ascended = goal.ascended(outputs, labels)
    margins, said = ascended, None
    if goal.classifies:
        said = outputs.argmax(axis=1)
        margins = -margin(outputs, labels) if goal.targeted else margin(outputs, labels)
    return Ranked(result, ascended, margins, said)


def judge(
    logits_fn: Callable[[Any], Any], images: Any, labels: Any, goal: Goal | None = None
) -> AttackResult:
    """The result of ``ranked`` alone."""
    return ranked(logits_fn, images, labels, goal).result


def worse(first: Ranked, second: Ranked) -> Ranked:
    """Of two results, the worse for the model, example by example."""
    a, b = first.result, second.result
    higher = second.ascended > first.ascended
    higher |= (second.ascended == first.ascended) & (second.margin > first.margin)
    # A success beats any loss; among equals the higher loss wins.
    takes = (b.success & ~a.success) | ((b.success == a.success) & higher)
    steps = None
    if a.steps is not None and b.steps is not None:
        # The count belongs to the first success, whichever images are kept.
        steps = jnp.where(a.success, a.steps, b.steps)
    return Ranked(
        AttackResult(
            choose(takes, b.images, a.images),
            a.success | b.success,
            # The highest on the way, also where it was that of other images.
            jnp.maximum(a.loss, b.loss),
            steps,
        ),
        jnp.where(takes, second.ascended, first.ascended),
        jnp.where(takes, second.margin, first.margin),
    )
