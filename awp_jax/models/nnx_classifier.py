"""A Classifier from a Flax NNX network.

NNX stays inside this file and the networks: outside, parameters are plain nested dicts. The
module is built and split once, abstractly; from then on a nested dict becomes the module's state
by re-labelling alone, without touching any shared object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from awp_jax.checks import positive_integer
from awp_jax.models.classifier import Classifier, ImageShape, Tree, check_sizes
from awp_jax.models.context import Context
from awp_jax.models.initial import draw
from awp_jax.models.layers import Layers, Network

Path = tuple[str, ...]


class Labels:
    """The paths of a NNX state's leaves, to and from a nested dict with string keys."""

    def __init__(self, what: str, state: nnx.State):
        with_paths, self.treedef = jax.tree_util.tree_flatten_with_path(state)
        self.what = what
        # The last entry of a path is the NNX Variable's own.
        # Places in an nnx.List become text as well: parameters have string keys only.
        self.paths: list[Path] = [
            tuple(str(entry.key) for entry in path[:-1]) for path, _ in with_paths
        ]
        self.known = frozenset(self.paths)
        self.shapes = [leaf.shape for _, leaf in with_paths]
        variables = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, nnx.Variable))
        # What `Layers` and `BatchNorm` note; `None` for layers of other origin.
        self.initials = [variable.get_metadata().get("initial") for variable in variables]

    def nested(self, state: Any) -> Tree:
        tree: Tree = {}
        for path, leaf in zip(self.paths, jax.tree.leaves(state), strict=True):
            node = tree
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = leaf
        return tree

    def state(self, tree: Tree) -> nnx.State:
        leaves = dict(_walk(tree))
        # By name and not by order: a dict from elsewhere may be sorted otherwise.
        if leaves.keys() != self.known:
            wrong = sorted(self.known.symmetric_difference(leaves))[0]
            problem = "lacks" if wrong in self.known else "has an unknown"
            raise ValueError(f"{self.what} {problem} {'/'.join(wrong)}.")
        return jax.tree.unflatten(self.treedef, [leaves[path] for path in self.paths])


def _split(network: Network) -> Any:
    # These two and nothing else: a variable of another kind is refused here, not lost.
    return nnx.split(network, nnx.Param, nnx.BatchStat)


def _walk(tree: Tree, prefix: Path = ()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def from_network(
    build: Callable[[Layers], Network],
    *,
    name: str,
    image_shape: ImageShape,
    num_classes: int,
    activation: str = "relu",
    dtype: str = "float32",
    batch_norm_groups: int = 1,
    axis_name: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    auxiliary: int = 0,
    remat: bool = False,
) -> Classifier:
    """A ``Classifier`` from a function that builds a ``Network`` out of ``Layers``.

    Args:
        build: ``build(layers) -> network``.
        name: name of the architecture.
        image_shape: height, width, channels.
        num_classes: number of logits.
        activation: "relu", "silu", "gelu", "mish" or "softplus".
        dtype: compute dtype of convolutions and hidden dense layers: "float32" (that of the
            parameters), "bfloat16" or "float16". Parameters, BatchNorm statistics and logits keep
            the parameters' dtype.
        batch_norm_groups: groups of the global batch with BatchNorm statistics of their own; 1 is
            synchronised BatchNorm. See ``BatchNorm``.
        axis_name: mapped axis over which the batch is split, for callers who map ``apply``
            themselves; ``None`` under plain ``jax.jit``, whatever the sharding.
        mean: subtracted from the images, one value per channel; empty for none.
        std: divides the images afterwards, one value per channel; empty for none.
        auxiliary: number of logits of a second dense head on the features, parameters
            "auxiliary", for ``Classifier.auxiliary``; 0 for none.
        remat: whether backward passes compute the inside of residual blocks again instead of
            keeping it: less memory, about a third more time, the same numbers. Without residual
            blocks it has no effect.

    Returns:
        The classifier.

    Raises:
        ValueError: for an unknown option or a value out of range.
    """

    check_sizes(image_shape, num_classes)

    width = 0

    def construct(key: Array) -> Network:
        layers = Layers(nnx.Rngs(key), activation, dtype, batch_norm_groups, axis_name)
        network = build(layers)
        network.remat = remat
        if width:
            network.auxiliary = layers.dense(width, auxiliary, classifies=True)
        return network

    if positive_integer(auxiliary, "auxiliary", minimum=0):
        # The second head needs the width of the features, which the network knows once it is built.
        width = nnx.eval_shape(
            lambda: construct(jax.random.key(0)).features(
                jnp.zeros((1, *image_shape)), Context("running")
            )
        ).shape[-1]

    # Abstract: structure, names and shapes are wanted, and no numbers drawn.
    abstract = nnx.eval_shape(lambda: construct(jax.random.key(0)))
    graphdef, params_state, stats_state = _split(abstract)
    params_labels = Labels("params", params_state)
    stats_labels = Labels("batch_stats", stats_state)

    cast = _cast(abstract)
    initials = params_labels.initials + stats_labels.initials

    def init(key: Array) -> tuple[Tree, Tree]:
        # All layers say how they start: one draw for all, which compiles many times faster.
        if None not in initials:
            values = draw(key, initials, params_labels.shapes + stats_labels.shapes)
            params_count = len(params_labels.paths)
            return (
                params_labels.nested(values[:params_count]),
                stats_labels.nested(values[params_count:]),
            )
        _, params, batch_stats = _split(construct(key))
        return params_labels.nested(params), stats_labels.nested(batch_stats)

    def merge(params: Tree, batch_stats: Tree) -> Any:
        return nnx.merge(graphdef, params_labels.state(params), stats_labels.state(batch_stats))

    def forward(
        params: Tree,
        batch_stats: Tree,
        images: Array,
        *,
        mode: str,
        key: Array | None,
        mask: Array | None,
    ) -> tuple[Array, Tree]:
        # A module of this pass alone: what BatchNorm writes ends in the statistics returned.
        network = merge(params, batch_stats)
        context = Context(mode, key, mask)
        logits = network.classify(network.features(images, context), context)
        return logits, stats_labels.nested(nnx.state(network, nnx.BatchStat))

    def auxiliary_forward(
        params: Tree, batch_stats: Tree, images: Array, *, mode: str, key: Array | None
    ) -> tuple[Array, Tree]:
        # Without a mask: no step with rotations is padded.
        network = merge(params, batch_stats)
        logits = network.auxiliary(network.features(images, Context(mode, key)))
        return logits, stats_labels.nested(nnx.state(network, nnx.BatchStat))

    def features(params: Tree, batch_stats: Tree, images: Array) -> Array:
        # On running statistics, as the verdict that a feature attack is after.
        return merge(params, batch_stats).features(images, Context("running"))

    return Classifier(
        name=name,
        num_classes=num_classes,
        image_shape=image_shape,
        init_fn=init,
        forward_fn=forward,
        features_fn=features,
        auxiliary_fn=auxiliary_forward if auxiliary else None,
        nnx_fn=merge,
        cast_fn=cast,
        has_dropout=abstract.dropout_rate > 0,
        mean=mean,
        std=std,
        axis_name=axis_name,
    )


def _cast(network: Network) -> Callable[[Tree], Tree] | None:
    """Casts what each layer computes with to its dtype; ``None`` where no layer has one."""
    layers = (nnx.Conv, nnx.Linear)
    dtypes = {
        tuple(map(str, path)): module.dtype
        for path, module in nnx.iter_modules(network)
        if isinstance(module, layers) and module.dtype is not None
    }
    if not dtypes:
        return None

    def cast(params: Tree, path: Path = ()) -> Tree:
        if not isinstance(params, dict):
            dtype = dtypes.get(path[:-1])
            return params if dtype is None else params.astype(dtype)
        return {name: cast(value, (*path, name)) for name, value in params.items()}

    return cast
