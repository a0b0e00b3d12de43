"""The batch of a step in parts: each attacked and differentiated by itself, and then the mean."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import mapped
from awp_jax.parallel import batch_axes
from awp_jax.typing import BatchStats
from awp_jax.weights._accumulated import summed


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """How the batch of a step is cut: into equal contiguous parts of the whole batch.

    Attributes:
        count: Number of parts.
        axis_name: The mapped axis over which the batch is split, or ``None``.
        mesh: The devices that share each part under plain ``jit``, or ``None``.
        unroll: See ``awp_jax.ascent.loop``.
    """

    count: int = 1
    axis_name: str | None = None
    mesh: Any = None
    unroll: bool | None = None

    def check(self, batch: int) -> None:
        """Raises ``ValueError`` for a batch (of this device) that the parts do not divide."""
        if batch % self.count:
            raise ValueError(
                f"A batch of {batch} examples was given, which {self.count} micro-batches of one "
                "size do not divide."
            )

    def arranged(self, tree: Any) -> Any:
        """Under a mapped axis the rows of this device, part after part; else all as they are.

        Each device gets its share of every part. The parts are those of the whole batch, whatever
        the number of devices.
        """
        if self.count == 1 or self.axis_name is None:
            return tree
        device, devices = jax.lax.axis_index(self.axis_name), mapped.devices(self.axis_name)

        def own(leaf: jax.Array) -> jax.Array:
            whole = jax.lax.all_gather(leaf, self.axis_name, tiled=True)
            blocks = whole.reshape(self.count, devices, -1, *leaf.shape[1:])
            return jnp.take(blocks, device, axis=1).reshape(leaf.shape)

        return jax.tree.map(own, tree)

    def places(self, batch: int) -> jax.Array:
        """The place in the whole batch of each row that ``arranged`` leaves, int32 ``[batch]``."""
        part, row = jnp.divmod(jnp.arange(batch), batch // self.count)
        device = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name)
        devices = mapped.devices(self.axis_name)
        return (part * devices + device) * (batch // self.count) + row

    def mean(
        self, one: Callable[..., tuple[Any, BatchStats, Any]], *batch: Any, mask: Any = None
    ) -> tuple[Any, BatchStats, Any]:
        """The mean of ``one`` over the parts.

        Args:
            one: ``(*part) -> (means, batch_stats, rows)``: what is averaged, the running
                statistics, and arrays ``[examples, ...]``.
            *batch: Pytrees of arrays ``[batch, ...]``.
            mask: bool ``[batch]``, False for padding.

        Returns:
            The same of the whole batch; under a mapped axis means are those of a device.
            Statistics that all parts move from one point have then moved by the mean over all
            groups; a part without examples moves none.
        """
        if self.count == 1:
            return one(*batch)

        def weighed(part: tuple[Any, ...]) -> tuple[Any, Any]:
            batch, mask = part
            means, batch_stats, rows = one(*batch)
            counts = jnp.ones(())
            if mask is not None:
                some = jnp.any(mask).astype(jnp.float32)
                counts = jnp.ceil(mapped.mean(some, self.axis_name))
            kept = jax.tree.map(lambda leaf: leaf * counts.astype(leaf.dtype), batch_stats)
            return (means, kept, counts), rows

        (means, batch_stats, counts), rows = summed(
            weighed, self._cut((batch, mask)), unroll=self.unroll, axis_name=self.axis_name
        )
        means = jax.tree.map(lambda leaf: leaf / self.count, means)
        batch_stats = jax.tree.map(lambda leaf: leaf / counts.astype(leaf.dtype), batch_stats)
        if self.axis_name is not None:  # they are the same on all devices, which scan cannot know
            batch_stats = mapped.mean(batch_stats, self.axis_name)
        return means, batch_stats, jax.tree.map(_joined, rows)

    def rows(self, one: Callable[..., Any], *batch: Any) -> Any:
        """``one(*part) -> [examples, ...]``, of the whole batch."""
        return self.mean(lambda *part: ((), (), one(*part)), *batch)[2]

    def _cut(self, tree: Any) -> Any:
        def cut(leaf: jax.Array) -> jax.Array:
            parts = leaf.reshape(self.count, -1, *leaf.shape[1:])
            if self.mesh is None or self.mesh.size == 1:
                return parts
            split = parts.shape[1] % self.mesh.size == 0
            spec = jax.sharding.PartitionSpec(None, batch_axes(self.mesh) if split else None)
            return jax.lax.with_sharding_constraint(
                parts, jax.sharding.NamedSharding(self.mesh, spec)
            )

        return jax.tree.map(cut, tree)


def _joined(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(-1, *leaf.shape[2:])


WHOLE = Parts()
