"""The losses of a training step, and its descent: gradient at w + v, optimiser, bookkeeping."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from awp_jax import mapped
from awp_jax.attacks import cross_entropy
from awp_jax.objectives import (
    ADVERSARIAL,
    CLASS_MEANS,
    CLEAN,
    ROTATIONS,
    TEACHER,
    Objective,
    check_losses,
    self_supervised,
)
from awp_jax.random import example_keys, keys_at
from awp_jax.scaling import over, times
from awp_jax.training import _class_means
from awp_jax.training._alignment import misalignment
from awp_jax.training._free import Free
from awp_jax.training._loss_scale import LossScale
from awp_jax.training._norms import norms
from awp_jax.training._parts import WHOLE, Parts
from awp_jax.training._regularisation import Regularisation
from awp_jax.training._state import TrainState
from awp_jax.typing import BatchStats, Images, Key, Labels, Logits, Params

IN_IMAGES = "gradient of images"  # beside logits, of free adversarial training
BESIDE = "beside"  # the images x + eta of GradAlign, which only the descent looks at


def counted(mask: jax.Array | None) -> dict[str, jax.Array]:
    """What ``classifier.apply`` is told of padding: nothing where there is none."""
    return {} if mask is None else {"mask": mask}


def weighted(losses: jax.Array, relative: jax.Array | None) -> jax.Array:
    """Losses ``[batch]`` times the relative weights of the examples."""
    return losses if relative is None else losses * relative


@dataclasses.dataclass(frozen=True, eq=False)
class StepModel:
    """A classifier with the objective that a step computes on it.

    Attributes:
        classifier: Fulfils the contract of ``awp_jax.models.Classifier``.
        objective: From ``awp_jax.objectives``.
        axis_name: The mapped axis over which the batch is split, or ``None``.
    """

    classifier: Any
    objective: Objective
    axis_name: str | None

    def dropout_keys(
        self, key: Key | None, batch: int, copies: int = 1, places: jax.Array | None = None
    ) -> Any:
        """A key for each example, where its place is not that in the batch.

        That is on one of several devices, or in a part, whose ``places`` are given.
        """
        if key is None or (self.axis_name is None and places is None):
            return key
        # A randomised network draws its kernels once for the batch, from one key.
        if self.classifier.is_random or not self.classifier.has_dropout:
            return key
        if places is not None:
            return keys_at(key, places)
        # Rotated copies of the batch lie one behind the other, in the whole batch as on a device.
        first = mapped.first_example(batch, self.axis_name)
        whole = batch * mapped.devices(self.axis_name)
        return jnp.concatenate(
            [example_keys(key, batch, copy * whole + first) for copy in range(copies)]
        )

    def losses(
        self,
        mode: str,
        params: Params,
        batch_stats: BatchStats,
        inputs: dict[str, Any],
        labels: Labels,
        dropout_key: Any,
        mask: jax.Array | None = None,
        places: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """``[batch]`` losses, with the logits of each input and the new statistics beside them."""
        logits, objective, batch = {}, self.objective, labels.shape[0]
        for place, name in enumerate(objective.inputs):
            # Each input has dropout of its own; running statistics move from one pass to the next.
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, place)
            logits[name], batch_stats = self.classifier.apply(
                params,
                batch_stats,
                inputs[name],
                mode=mode,
                key=self.dropout_keys(key, batch, places=places),
                **counted(mask),
            )
        known = {name: inputs[name] for name in (TEACHER, CLASS_MEANS) if name in inputs}
        found = objective.loss({**logits, **known}, labels)
        values = check_losses(found, batch, f"The loss of objective {objective.name!r}")
        if objective.rotation_weight:
            extra, batch_stats = self_supervised(
                self.classifier,
                params,
                batch_stats,
                inputs[objective.attacked],
                mode,
                self.dropout_keys(dropout_key, batch, ROTATIONS),
            )
            values = values + objective.rotation_weight * extra
        return values, (logits, batch_stats)

    def accuracy(self, logits: Logits, labels: Labels, mask: jax.Array | None = None) -> jax.Array:
        """The share of right predictions over all devices; of label distributions the mode."""
        truth = labels if labels.ndim == 1 else labels.argmax(axis=1)
        right = logits.argmax(axis=1) == truth
        if mask is None:
            return mapped.mean(jnp.mean(right), self.axis_name)
        # Means first and then their ratio: devices may hold different numbers of examples.
        shares = mapped.mean((jnp.mean(right & mask), jnp.mean(mask)), self.axis_name)
        return shares[0] / shares[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Descent:
    """The second half of a step, compiled as one: called as ``descend`` of ``make_train_step``.

    Attributes:
        model: What is computed.
        optimizer: Acts at w + v.
        regularisation: Of the weights.
        average_rate: ``step -> r`` of the average of the weights, or ``None``.
        skip_non_finite: Whether a step that is not finite leaves the state as it was.
        released: Whether the clean forward pass of the released code's log is made.
        steps_per_epoch: After which means of classes begin anew, or ``None``.
        parts: How the batch is cut.
        loss_scale: By which the loss is multiplied while it is differentiated.
        free: Of free adversarial training, or ``None``.
    """

    model: StepModel
    optimizer: optax.GradientTransformation
    regularisation: Regularisation
    average_rate: Callable[..., Any] | None
    skip_non_finite: bool
    released: bool
    steps_per_epoch: int | None = None
    parts: Parts = WHOLE
    loss_scale: LossScale = LossScale()
    free: Free | None = None

    def __call__(
        self,
        state: TrainState,
        batch_stats: BatchStats,
        perturbed: Params,
        inputs: dict[str, Any],
        labels: Labels,
        relative: jax.Array | None,
        dropout_key: Any,
        mask: jax.Array | None = None,
        places: jax.Array | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The gradient at w + v, the optimiser there, and back to w (eq. 11 of AWP)."""
        model, parts, before = self.model, self.parts, batch_stats
        scale = self.loss_scale.of(state.loss_scale)

        def part(
            inputs: dict[str, Any], labels: Labels, relative: Any, mask: Any, places: Any
        ) -> tuple[Any, BatchStats, dict[str, jax.Array]]:
            return self._gradient(
                before, perturbed, inputs, labels, relative, dropout_key, mask, places, scale
            )

        (loss, grads), batch_stats, logits = parts.mean(
            part, inputs, labels, relative, mask, places, mask=mask
        )
        loss, grads = mapped.mean((loss, grads), model.axis_name)
        # At w + v, weight decay included; the update is a difference, so added to w it is the way
        # back (eq. 11). Clipping comes last and holds for the weights that are kept.
        updates, opt_state = self.optimizer.update(grads, state.opt_state, perturbed)
        params = self.regularisation.constrain(optax.apply_updates(state.params, updates))
        displacement = jax.tree.map(jnp.subtract, perturbed, state.params)
        *shown, new_norm = norms(grads, state.params, displacement, params)
        names = "gradient_norm", "weight_norm", "perturbation_norm"
        metrics = {"loss": loss, **dict(zip(names, shown, strict=True))}
        for name, label in ((CLEAN, "clean_accuracy"), (ADVERSARIAL, "robust_accuracy")):
            if name in logits:
                metrics[label] = model.accuracy(logits[name], labels, mask)
        if self.released:  # the clean forward pass that the released code makes for its log
            moved = batch_stats

            def clean(images: Images, mask: Any, places: Any) -> tuple[Any, BatchStats, Logits]:
                logits, after = model.classifier.apply(
                    params,
                    moved,
                    images,
                    mode="update",
                    key=model.dropout_keys(dropout_key, images.shape[0], places=places),
                    **counted(mask),
                )
                return (), after, logits

            _, batch_stats, logits_now = parts.mean(clean, inputs[CLEAN], mask, places, mask=mask)
            metrics["clean_accuracy"] = model.accuracy(logits_now, labels, mask)
        average = self._average(state, params)
        means = self._class_means(state, logits, labels, mask)
        scaled = state.loss_scale
        if scale is not None:
            metrics["loss_scale"] = jnp.asarray(scale, jnp.float32)
            scaled = self.loss_scale.after(scaled, jnp.isfinite(metrics["gradient_norm"]))
        delta = self._delta(state, inputs, logits.get(IN_IMAGES))
        after = TrainState(
            state.step + 1, params, batch_stats, opt_state, average, means, scaled, delta
        )
        return self._kept(state, after, metrics, new_norm)

    def _gradient(
        self,
        batch_stats: BatchStats,
        perturbed: Params,
        inputs: dict[str, Any],
        labels: Labels,
        relative: jax.Array | None,
        dropout_key: Any,
        mask: jax.Array | None,
        places: jax.Array | None,
        scale: Any,
    ) -> tuple[Any, BatchStats, dict[str, jax.Array]]:
        """Loss and gradient, the statistics afterwards, and the logits of each input."""
        model = self.model

        def mean_loss(params: Params, attacked: Any = None) -> tuple[jax.Array, Any]:
            seen = inputs if attacked is None else {**inputs, ADVERSARIAL: attacked}
            values, aux = model.losses(
                "update", params, batch_stats, seen, labels, dropout_key, mask, places
            )
            # The penalty is one of w + v, and only here: weights do not ascend it.
            loss = weighted(values, relative).mean() + self.regularisation.penalty(params)
            if model.objective.gradient_alignment:
                loss = loss + self._alignment(
                    params, batch_stats, inputs, labels, relative, dropout_key, mask
                )
            return times(loss, scale), aux

        # Each device differentiates its own part, whatever JAX does with replicated arguments.
        at = mapped.vary(perturbed, model.axis_name)
        if self.free is None:
            (loss, (logits, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(at)
            return over((loss, grads), scale), batch_stats, logits
        both = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
        (loss, (logits, batch_stats)), (grads, in_images) = both(at, inputs[ADVERSARIAL])
        rows = {**logits, IN_IMAGES: over(in_images, scale)}
        return over((loss, grads), scale), batch_stats, rows

    def _alignment(
        self,
        params: Params,
        batch_stats: BatchStats,
        inputs: dict[str, Any],
        labels: Labels,
        relative: jax.Array | None,
        dropout_key: Any,
        mask: jax.Array | None,
    ) -> jax.Array:
        model = self.model

        def losses(images: Any) -> jax.Array:
            # Batch statistics, as released, but running ones do not see these passes.
            logits, _ = model.classifier.apply(
                params,
                batch_stats,
                images,
                mode="batch",
                key=model.dropout_keys(dropout_key, labels.shape[0]),
                **counted(mask),
            )
            found = cross_entropy(logits, labels)
            return found if mask is None else jnp.where(mask, found, 0)

        apart = misalignment(losses, inputs[CLEAN], inputs[BESIDE], relative, model.axis_name)
        return model.objective.gradient_alignment * apart

    def _delta(self, state: TrainState, inputs: dict[str, Any], in_images: Any) -> Any:
        if self.free is None:
            return state.delta
        images = inputs[CLEAN]
        rows = images.shape[0]
        moved = self.free.after(state.step, images, state.delta[:rows], in_images)
        # The last batch of an epoch may be smaller: the rest stays for the next.
        return jnp.concatenate([moved, state.delta[rows:]]) if rows < len(state.delta) else moved

    def _average(self, state: TrainState, params: Params) -> Any:
        if self.average_rate is None:
            return state.average
        # Towards the weights after the step: v never enters an average.
        rate = self.average_rate(state.step)
        return jax.tree.map(
            lambda a, w: ((1 - rate) * a + rate * w).astype(w.dtype), state.average, params
        )

    def _class_means(
        self, state: TrainState, logits: dict[str, Any], labels: Labels, mask: jax.Array | None
    ) -> Any:
        temperature = self.model.objective.class_temperature
        if temperature is None or self.steps_per_epoch is None:
            return state.class_means
        return _class_means.after(
            state.class_means,
            state.step,
            self.steps_per_epoch,
            logits[CLEAN] / temperature,
            labels,
            mask=mask,
            axis_name=self.model.axis_name,
        )

    def _kept(
        self,
        before: TrainState,
        after: TrainState,
        metrics: dict[str, jax.Array],
        new_norm: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The new state, or the old one where that is wanted of a step that is not finite."""
        # A norm is finite only where everything is.
        numbers = metrics["loss"], metrics["gradient_norm"], new_norm, *norms(after.batch_stats)
        finite = jnp.isfinite(jnp.stack(numbers)).all()
        if self.skip_non_finite:
            after = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                after,
                # The step counts all the same, or batch and keys of the next would be these again.
                before._replace(step=after.step, loss_scale=after.loss_scale),
            )
        return after, metrics | {"finite": finite}
