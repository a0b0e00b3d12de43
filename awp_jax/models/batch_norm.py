"""BatchNorm with PyTorch's statistics, groups of the batch, and a mask of examples.

Flax's own BatchNorm keeps the *biased* running variance and by default computes it as
E[x^2] - E[x]^2, which loses all digits when the mean is large against the deviation; PyTorch,
with which every published adversarial-training number was made, does neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from awp_jax.batch_norm import EPSILON
from awp_jax.checks import positive_integer
from awp_jax.models.context import Context
from awp_jax.models.initial import ONES, ZEROS
from awp_jax.models.normalised import normalised

MOMENTUM = 0.1  # torch.nn.BatchNorm2d: the weight of the *new* statistics


class BatchNorm(nnx.Module):
    """Batch normalisation over every axis but the last.

    With ``groups`` > 1 the batch is cut into that many contiguous groups and each is normalised
    with its own statistics. This is what PyTorch's DataParallel does on ``groups`` devices, down to
    how a batch that does not divide is cut: every group has ceil(batch / groups) examples, the
    last ones fewer, and none is an error. ``groups=1`` is synchronised BatchNorm.

    The running statistics move by the mean over the (non-empty) groups' statistics. DataParallel
    keeps those of its first device; both estimate the same quantities, the mean with less noise,
    and neither enters any output or gradient of a pass that uses batch statistics.

    A group whose examples are all masked out has no statistics: its rows are normalised with the
    running ones, so that they stay finite, and it does not move them.

    Args:
        features: size of the last axis.
        groups: number of groups the *global* batch is cut into, at least 1.
        axis_name: mapped axis (``jax.shard_map``, ``jax.pmap``, ``jax.vmap``) over which the batch
            is split; ``None`` when the batch is whole. The number of groups must then be 1, or a
            multiple of the axis size.

    Statistics are computed in float32, or in the inputs' dtype where that is wider; outputs have
    the inputs' dtype.

    References:
        Ioffe and Szegedy, https://arxiv.org/abs/1502.03167.
    """

    def __init__(self, features: int, *, groups: int = 1, axis_name: str | None = None):
        self.groups = positive_integer(groups, "batch_norm_groups")
        self.axis_name = axis_name
        ones, zeros = jnp.ones((features,), jnp.float32), jnp.zeros((features,), jnp.float32)
        self.scale = nnx.Param(ones, initial=ONES)
        self.bias = nnx.Param(zeros, initial=ZEROS)
        self.mean = nnx.BatchStat(zeros, initial=ZEROS)
        self.var = nnx.BatchStat(ones, initial=ONES)

    def __call__(
        self, inputs: Array, context: Context, activation: Callable[[Array], Array] | None = None
    ) -> Array:
        """Normalises ``inputs`` ([batch, ..., features], floating) as ``context.mode`` says.

        ``activation``, an elementwise function, comes behind it: handed in, both are one function
        with a backward pass of its own, wherever the batch is one group without a mask. That is
        differentiable as often as needed, but by reverse mode alone.
        """
        if self._is_simple(context):
            return self._fused(inputs, context, activation or _identity)
        outputs = self._plain(inputs, context)
        return outputs if activation is None else activation(outputs)

    def _is_simple(self, context: Context) -> bool:
        return (
            context.mode != "running"
            and self.groups == 1
            and self.axis_name is None
            and context.mask is None
        )

    def _fused(
        self, inputs: Array, context: Context, activation: Callable[[Array], Array]
    ) -> Array:
        dtype = jnp.promote_types(inputs.dtype, jnp.float32)
        scale, bias, shift = (v[...].astype(dtype) for v in (self.scale, self.bias, self.mean))
        outputs, mean, var = normalised(activation, inputs, scale, bias, shift)
        if context.mode == "update":
            count = jnp.full((1, 1), inputs.size // inputs.shape[-1], dtype)
            self._update(mean[None], var[None], count)
        return outputs

    def _plain(self, inputs: Array, context: Context) -> Array:
        dtype = jnp.promote_types(inputs.dtype, jnp.float32)
        x = inputs.astype(dtype)
        running_mean = self.mean[...].astype(dtype)
        running_var = self.var[...].astype(dtype)
        if context.mode == "running":
            return self._normalise(x, running_mean, running_var).astype(inputs.dtype)

        groups = self._local_groups()
        batch = x.shape[0]
        size = -(-batch // groups)  # ceil, as torch.chunk
        groups = -(-batch // size)
        padding = groups * size - batch
        valid = context.mask
        if padding:
            x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
            valid = jnp.ones((batch,), bool) if valid is None else valid
            valid = jnp.pad(valid, (0, padding))
        x = x.reshape(groups, size, *x.shape[1:])
        if valid is not None:
            valid = valid.reshape(groups, size, *(1 for _ in x.shape[2:]))

        mean, var, count = self._statistics(x, valid)
        if context.mode == "update":
            self._update(mean, var, count)
        if valid is not None:
            mean = jnp.where(count > 0, mean, running_mean.reshape(1, -1))
            var = jnp.where(count > 0, var, running_var.reshape(1, -1))
        per_group = (groups, *(1 for _ in x.shape[1:-1]), x.shape[-1])
        x = self._normalise(x, mean.reshape(per_group), var.reshape(per_group))
        x = x.reshape(groups * size, *x.shape[2:])[:batch]
        return x.astype(inputs.dtype)

    def _local_groups(self) -> int:
        """Groups in the part of the batch that this device holds."""
        if self.axis_name is None or self.groups == 1:
            return self.groups
        devices = lax.axis_size(self.axis_name)
        if self.groups % devices:
            raise ValueError(
                f"groups={self.groups} must be 1 or a multiple of the size {devices} of the mapped "
                f"axis {self.axis_name!r}."
            )
        return self.groups // devices

    def _normalise(self, x: Array, mean: Array, var: Array) -> Array:
        def last_axis(values: Array) -> Array:
            return values.reshape((1,) * (x.ndim - 1) + (-1,)) if values.ndim == 1 else values

        multiplier = lax.rsqrt(last_axis(var) + EPSILON) * last_axis(
            self.scale[...].astype(x.dtype)
        )
        return (x - last_axis(mean)) * multiplier + last_axis(self.bias[...].astype(x.dtype))

    def _statistics(self, x: Array, valid: Array | None) -> tuple[Array, Array, Array]:
        """Mean and biased variance [groups, features], and count [groups, 1], in two passes.

        By sums and counts, never by means of means: a group, or a device, may have no valid rows.
        """
        axes = tuple(range(1, x.ndim - 1))
        synchronise = self.axis_name is not None and self.groups == 1

        def over_devices(values: Array) -> Array:
            return lax.psum(values, self.axis_name) if synchronise else values

        def total(values: Array) -> Array:
            return over_devices(values.sum(axes))

        positions = math.prod(x.shape[2:-1])  # per example
        if valid is None:
            devices = lax.axis_size(self.axis_name) if synchronise else 1
            count = jnp.full((x.shape[0], 1), x.shape[1] * positions * devices, x.dtype)
        else:
            rows = valid.reshape(x.shape[0], -1).sum(1, keepdims=True, dtype=x.dtype)
            count = over_devices(rows * positions)
            # where, not a product: a padding row may hold anything, NaN included.
            x = jnp.where(valid, x, 0)
        at_least_one = jnp.maximum(count, 1)
        per_group = (x.shape[0], *(1 for _ in axes), x.shape[-1])
        mean = total(x) / at_least_one
        centred = x - mean.reshape(per_group)
        if valid is not None:
            centred = jnp.where(valid, centred, 0)
        return mean, total(jnp.square(centred)) / at_least_one, count

    def _update(self, mean: Array, var: Array, count: Array) -> None:
        """Moves the running statistics: PyTorch's momentum, and the unbiased variance."""
        mean, var, count = jax.tree.map(lax.stop_gradient, (mean, var, count))
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        weight = (count > 0).astype(mean.dtype)
        sums = ((mean * weight).sum(0), (unbiased * weight).sum(0), weight.sum())
        if self.axis_name is not None and self.groups > 1:
            sums = lax.psum(sums, self.axis_name)
        mean_sum, var_sum, nonempty = sums
        momentum = jnp.where(nonempty > 0, MOMENTUM, 0.0).astype(mean.dtype)
        for running, new_sum in ((self.mean, mean_sum), (self.var, var_sum)):
            old = running[...]
            new = new_sum / jnp.maximum(nonempty, 1)
            wide = old.astype(new.dtype)
            # set_value: assigning to running[...] would write into a caller's numpy array.
            running.set_value(((1 - momentum) * wide + momentum * new).astype(old.dtype))


def _identity(x: Array) -> Array:
    return x
