"""A model whose weights lie in parts on many devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from awp_jax import parallel
from awp_jax.reductions import of_split_weights
from awp_jax.typing import Params


class Gathered:
    """A classifier that gathers its weights where it computes, and nowhere else.

    State, displacement and gradients stay in parts; a forward pass sees whole weights, so that each
    device computes on its own examples, and no more is communicated than the weights themselves.
    Without this XLA might split the computation of a layer in place of its batch.

    Args:
        classifier: Fulfils the contract of ``awp_jax.models.Classifier``.
        mesh: With an axis ``"fsdp"``.
        rules: See ``parallel.rules_of``.
    """

    def __init__(self, classifier: Any, mesh: jax.sharding.Mesh, rules: str = "") -> None:
        self._classifier, self._mesh, self._rules = classifier, mesh, rules

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """As that of the classifier."""
        return self._classifier.apply(self._whole(params), *args, **kwargs)

    def auxiliary(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """As that of the classifier."""
        return self._classifier.auxiliary(self._whole(params), *args, **kwargs)

    def in_compute_dtype(self, params: Params) -> Any:
        """As that of the classifier, and gathered once: of half the bytes in bfloat16."""
        cast = getattr(self._classifier, "in_compute_dtype", lambda p: p)
        return self._whole(cast(params))

    def _whole(self, params: Params) -> Any:
        places = parallel.state_sharding(self._mesh, params, self._rules)
        return jax.tree.map(functools.partial(_whole, self._mesh), places, params)


def on_mesh(
    classifier: Any, mesh: jax.sharding.Mesh | None, rules: str = ""
) -> tuple[Any, Callable[..., Any]]:
    """What a training step on this mesh computes with, and how it is wrapped.

    Where the mesh splits weights: the classifier ``Gathered``, and sums of weights that leave them
    where they lie; else both as they are.
    """
    if mesh is None or not parallel.splits_weights(mesh):
        return classifier, lambda step: step

    def on_parts(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with of_split_weights():
                return step(*args, **kwargs)

        return call

    return Gathered(classifier, mesh, rules), on_parts


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _whole(
    mesh: jax.sharding.Mesh, place: jax.sharding.NamedSharding, weights: jax.Array
) -> jax.Array:
    del place
    return jax.lax.with_sharding_constraint(weights, parallel.replicated(mesh))


def _forward(
    mesh: jax.sharding.Mesh, place: jax.sharding.NamedSharding, weights: jax.Array
) -> tuple[jax.Array, None]:
    return _whole(mesh, place, weights), None


def _backward(
    mesh: jax.sharding.Mesh, place: jax.sharding.NamedSharding, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    del mesh
    # In parts again: a reduce-scatter where the transpose of the above is an all-reduce.
    return (jax.lax.with_sharding_constraint(gradient, place),)


_whole.defvjp(_forward, _backward)
