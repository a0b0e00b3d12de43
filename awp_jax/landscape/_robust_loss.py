"""Robust (or clean) loss of any weights, example by example."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks, parallel, results, streams
from awp_jax.attacks import PGD
from awp_jax.attacks._model import as_pytree_function, check_examples
from awp_jax.data import as_float, padded_batches
from awp_jax.explicit import on_any_mesh
from awp_jax.landscape._model import full_precision, logits_at, looked_at
from awp_jax.panels import losses_against
from awp_jax.random import check_key, example_keys, fold_keys
from awp_jax.typing import ApplyFn, Attack, Images, Key, Labels, Params

# Stutz et al. (ICCV 2021), section 4 and released code: 20 steps of 0.007, Linf epsilon 8/255.
PGD_20 = PGD("8/255", steps=20, step_size=0.007)

# What each draw and each restart comes to: arrays over examples, by name.
Part = Mapping[str, np.ndarray]
Keep = Callable[[str, Callable[[], Part]], Part]


class RobustLoss(NamedTuple):
    """Loss on attacked images, for each restart of the attack, as NumPy arrays.

    Attributes:
        loss: Highest cross-entropy over restarts, mean over examples, in nats.  # shape=()
        single: Cross-entropy of the first restart alone, mean over examples.  # shape=()
        error: Share of examples that some restart misclassifies, in [0, 1].  # shape=()
        losses: Cross-entropy.  # shape=(restarts, examples)
        success: Whether the example is misclassified.  # shape=(restarts, examples)
    """

    loss: np.ndarray
    single: np.ndarray
    error: np.ndarray
    losses: np.ndarray
    success: np.ndarray

    def __repr__(self) -> str:
        head = f"{results.short(self.loss)} nats"
        return results.described("RobustLoss", self._asdict(), head)

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws the mean loss of each restart, and ``loss``, the highest per example.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        losses_against(axes, np.mean(self.losses, axis=1), "restart", float(self.loss))
        return axes


@on_any_mesh(apply_fn="params images")
def robust_loss(
    apply_fn: ApplyFn,
    params: Params,
    images: Images,
    labels: Labels,
    key: Key,
    *,
    attack: Attack | None = PGD_20,
    restarts: int = 10,
    batch_size: int = 128,
    keep: Keep | None = None,
) -> RobustLoss:
    """The reference robust loss of Stutz et al. (ICCV 2021): PGD-20, worst of 10 restarts.

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``; a ``jax.tree_util.Partial`` of a
            module-level function, or one and the same function every time, is compiled once.
        params: Weights, a pytree of arrays.
        images: ``[examples, height, width, channels]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        key: One typed key.
        attack: ``(logits_fn, key, images, labels) -> AttackResult``; ``None`` for clean loss, which
            has no restarts.
        restarts: Independent runs of the attack.
        batch_size: Examples per pass; does not change the result.
        keep: ``(name, compute) -> arrays``, called for every restart in place of ``compute()``: a
            place to store what is finished and to tell progress.

    Returns:
        A ``RobustLoss``.

    Raises:
        ValueError: For bad images, labels or key, restarts below 1, or a model that returns NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import PGD
        >>> from awp_jax.landscape import robust_loss
        >>> def apply_fn(params, images):
        ...     return images.mean((1, 2)) @ params["kernel"]
        >>> params = {"kernel": jnp.array([[1.0, -1.0]])}
        >>> images, labels = jnp.full((4, 2, 2, 1), 0.5), jnp.zeros(4, jnp.int32)
        >>> attack = PGD("8/255", steps=3)
        >>> found = robust_loss(
        ...     apply_fn, params, images, labels, jax.random.key(0), attack=attack, restarts=2
        ... )
        >>> exact = jnp.log1p(jnp.exp(-2 * (0.5 - 8 / 255)))
        >>> found.losses.shape, bool(jnp.allclose(found.loss, exact))
        ((2, 4), True)
    """
    checks.positive_integer(restarts, "restarts")
    examples = Examples(images, labels, batch_size, params, attack)
    function, keep = as_pytree_function(apply_fn), keep or compute_only
    keys = examples.keys(jax.random.fold_in(check_one_key(key), streams.LANDSCAPE_IMAGES))

    def one(restart: int) -> Any:
        # By example and restart: neither batch size nor what was stored before changes a draw.
        return examples.losses(function, params, fold_keys(keys, restart), attack)

    parts = [
        keep(f"reference {restart}", Partial(one, restart))
        for restart in range(1 if attack is None else restarts)
    ]
    losses, success = stacked(parts)
    loss, single = mean(losses.max(axis=0)), mean(losses[0])
    return RobustLoss(loss, single, mean(success.any(axis=0)), losses, success)


def stacked(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Losses and verdicts of parts, ``[parts, examples]`` each."""
    losses, success = (
        np.stack([np.asarray(part[w]) for part in parts]) for w in ("losses", "success")
    )
    return losses, success


def mean(values: Any, axis: int | None = None) -> np.ndarray:
    """The mean, summed in float64: the number of examples costs no accuracy."""
    return np.asarray(np.mean(values, axis=axis, dtype=np.float64))


def compute_only(name: str, compute: Callable[[], Part]) -> Part:
    """The ``keep`` that keeps nothing."""
    del name
    return compute()


def check_one_key(key: Key) -> jax.Array:
    """The key itself when it is one typed key.

    Raises:
        ValueError: Otherwise.
    """
    check_key(key)
    if key.ndim:
        raise ValueError(f"key has shape {key.shape}, but one typed key was expected.")
    return key


class Examples:
    """Images and labels, checked, and cut into padded batches of one size.

    Args:
        images: ``[examples, ...]``, uint8 or float in [0, 1].
        labels: int ``[examples]``.
        batch_size: Examples per pass.
        params: Weights of the model; batches are split among the devices that these lie on.
        attack: Whose ball holds the bounds of the images; [0, 1] without one.

    Raises:
        ValueError: For bad images or labels, or a batch size below 1.
    """

    def __init__(
        self, images: Images, labels: Labels, batch_size: int, params: Params, attack: Any = None
    ) -> None:
        checks.positive_integer(batch_size, "batch_size")
        if not hasattr(images, "dtype") or not hasattr(labels, "dtype"):
            raise ValueError("images and labels must be arrays, not lists or numbers.")
        check_examples(as_float(images), labels, getattr(attack, "ball", None))
        # On the host, as uint8 where they are: a batch becomes floats on its way to the devices.
        self.images, self.labels = np.asarray(images), np.asarray(labels)
        self.count = len(labels)
        self._params = params
        # No padding beyond the devices' where one batch holds everything.
        size = min(batch_size, self.count)
        self.batches = list(padded_batches(self.count, size, parallel.shards(params)))

    def keys(self, key: Key) -> jax.Array:
        """One key per example."""
        return example_keys(key, self.count)

    def batch(self, index: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images as floats, labels, and the mask that is False for padding."""
        indices, mask = self.batches[index]
        batch = (as_float(self.images[indices]), self.labels[indices], mask)
        images, labels, valid = parallel.follow(self._params, map(jnp.asarray, batch))
        return images, labels, valid

    def batch_keys(self, keys: Key, index: int) -> jax.Array:
        """Those of ``keys [examples]`` that belong to a batch, on the same devices."""
        (found,) = parallel.follow(self._params, (keys[self.batches[index][0]],))
        return found

    def attacked(
        self,
        apply_fn: Partial,
        params: Params,
        keys: Key,
        attack: Attack | None,
        index: int,
    ) -> jax.Array:
        """The images of a batch after the attack on ``params``."""
        images, labels, _ = self.batch(index)
        if attack is None:
            return images
        batch_keys = self.batch_keys(keys, index)
        return looked_at(attack, logits_at(apply_fn, params), batch_keys, images, labels).images

    def losses(self, apply_fn: Partial, params: Params, keys: Key, attack: Attack | None) -> Part:
        """Loss and verdict of every example after one run of the attack on ``params``."""
        logits_fn, parts = logits_at(apply_fn, params), []
        # Differences of losses are what is asked for: TF32 on a GPU would show in them.
        with full_precision():
            for index, (_, mask) in enumerate(self.batches):
                images, labels, _ = self.batch(index)
                batch_keys = self.batch_keys(keys, index)
                parts.append((looked_at(attack, logits_fn, batch_keys, images, labels), mask))
        return self.joined(parts)

    def joined(self, parts: Sequence[tuple[Any, np.ndarray]]) -> Part:
        """What the verdicts on batches come to over all examples, padding left out.

        Raises:
            ValueError: When a loss is NaN.
        """
        masks = [mask for _, mask in parts]
        # One transfer for all batches; of several processes all make it together.
        found = parallel.to_host([(verdict.loss, verdict.success) for verdict, _ in parts])
        losses, success = (
            np.concatenate([part[mask] for part, mask in zip(which, masks, strict=True)])
            for which in zip(*found, strict=True)
        )
        # A single one would make every mean NaN.
        if np.isnan(losses).any():
            raise ValueError(
                f"The model returns NaN for {int(np.isnan(losses).sum())} of {self.count} images: "
                "its loss cannot be measured."
            )
        return {"losses": losses, "success": success}
