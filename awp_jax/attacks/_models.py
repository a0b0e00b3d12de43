"""Several models as one: their mean, or the one that is hardest to fool."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.attacks._losses import cross_entropy, margin
from awp_jax.attacks._model import as_pytree_function
from awp_jax.typing import ApplyFn, Inputs, Labels, Outputs, Params

_MEANS = ("probabilities", "logits")
_WORST = {"cross_entropy": cross_entropy, "margin": margin}


def _mean(outputs: Outputs, of: str) -> jax.Array:
    """The mean over the first axis of logits ``[models, batch, classes]``."""
    if of == "logits":
        return outputs.mean(axis=0)
    # In logs throughout: a probability that underflows to 0 would have no finite logarithm.
    logs = jax.nn.log_softmax(outputs, axis=-1)
    return jax.nn.logsumexp(logs, axis=0) - math.log(outputs.shape[0])


def _outputs(models: tuple[Partial, ...], images: Inputs) -> jax.Array:
    return jnp.stack([model(images) for model in models])


# Functions of the module, not closures: a Partial of one is found in the cache of jit again.
def _mean_probabilities(models: tuple[Partial, ...], images: Inputs) -> jax.Array:
    return _mean(_outputs(models, images), "probabilities")


def _mean_logits(models: tuple[Partial, ...], images: Inputs) -> jax.Array:
    return _mean(_outputs(models, images), "logits")


def _stacked_probabilities(apply_fn: Partial, params: Params, images: Inputs) -> jax.Array:
    return _mean(jax.vmap(lambda one: apply_fn(one, images))(params), "probabilities")


def _stacked_logits(apply_fn: Partial, params: Params, images: Inputs) -> jax.Array:
    return _mean(jax.vmap(lambda one: apply_fn(one, images))(params), "logits")


def _each(models: tuple[Partial, ...], images: Inputs) -> jax.Array:
    # The batch first, as in every output that attacks choose from example by example.
    return jnp.swapaxes(_outputs(models, images), 0, 1)


def _checked(models: Sequence[Callable[..., Any]]) -> tuple[Partial, ...]:
    if callable(models) or not models or not all(callable(model) for model in models):
        raise ValueError(
            f"models is {models!r}, but a sequence of at least one logits_fn was expected."
        )
    return tuple(as_pytree_function(model) for model in models)


def mean_of_models(models: Sequence[Callable[..., Any]], of: str = "probabilities") -> Partial:
    """An ensemble as one ``logits_fn``, for any attack.

    Args:
        models: Functions ``images -> logits [batch, classes]`` of the same classes. A
            ``jax.tree_util.Partial`` over parameters keeps these arguments: other parameters
            compile nothing anew.
        of: ``"probabilities"``: the logarithm of the mean of the softmax outputs, which is what
            averaging predictions means (computed by log-sum-exp, finite for extreme logits);
            ``"logits"``: the mean of the logits.

    Returns:
        ``images -> [batch, classes]``.

    Raises:
        ValueError: For no models, something that is no function, or an unknown mean.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import mean_of_models
        >>> sure = lambda images: jnp.array([[0.0, 200.0]])
        >>> unsure = lambda images: jnp.array([[0.0, 0.0]])
        >>> jnp.exp(mean_of_models([sure, unsure])(jnp.zeros((1, 2, 2, 1)))).tolist()
        [[0.25, 0.75]]
    """
    checks.choice(of, _MEANS, "of")
    mean = _mean_logits if of == "logits" else _mean_probabilities
    return Partial(mean, _checked(models))


def stacked_models(apply_fn: ApplyFn, params: Params, of: str = "probabilities") -> Partial:
    """An ensemble of one architecture as one ``logits_fn``, run by ``vmap`` over its parameters.

    Args:
        apply_fn: ``(params, images) -> logits [batch, classes]``, of one model.
        params: A pytree whose every leaf has a leading axis of models, such as
            ``jax.tree.map(lambda *leaves: jnp.stack(leaves), *all_params)``.
        of: As in ``mean_of_models``.

    Returns:
        ``images -> [batch, classes]``.

    Raises:
        ValueError: For an unknown mean, no parameters, or leaves whose first axes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import stacked_models
        >>> apply_fn = lambda weights, images: images.reshape(images.shape[0], -1) @ weights
        >>> weights = jnp.stack([jnp.eye(2), 3 * jnp.eye(2)])
        >>> stacked_models(apply_fn, weights, of="logits")(jnp.ones((1, 2))).tolist()
        [[2.0, 2.0]]
    """
    checks.choice(of, _MEANS, "of")
    firsts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(firsts) != 1 or firsts & {(), (0,)}:
        raise ValueError(
            f"The leaves of params have first axes {sorted(firsts)}, but one and the same number "
            "of models was expected in all of them."
        )
    mean = _stacked_logits if of == "logits" else _stacked_probabilities
    return Partial(mean, as_pytree_function(apply_fn), params)


# Static and compared by its fields: equal losses share what was compiled.
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SmallestLoss:
    """The loss of the model that is hardest to fool: ``min_m loss(logits_m, label)``.

    Ascending it raises whichever model is still lowest, so that none is left behind.

    Attributes:
        loss: ``"margin"``, comparable between models and positive exactly where all are fooled, or
            ``"cross_entropy"``.

    Raises:
        ValueError: For an unknown loss.
    """

    loss: str = "margin"

    def __post_init__(self) -> None:
        checks.choice(self.loss, _WORST, "loss")

    def __call__(self, outputs: Outputs, labels: Labels) -> jax.Array:
        """``(outputs [batch, models, classes], labels int [batch]) -> [batch]``."""
        one = jax.vmap(_WORST[self.loss], in_axes=(1, None), out_axes=1)
        return one(outputs, labels).min(axis=1)


def every_model_fooled(outputs: Outputs, labels: Labels) -> jax.Array:
    """Whether no model is right.

    Args:
        outputs: float ``[batch, models, classes]``.
        labels: int ``[batch]``.

    Returns:
        bool ``[batch]``.
    """
    return (outputs.argmax(axis=2) != labels[:, None]).all(axis=1)


class WorstOfModels(NamedTuple):
    """What an attack on all of several models needs.

    Attributes:
        logits_fn: ``images -> outputs [batch, models, classes]``, a ``jax.tree_util.Partial``.
        loss: ``(outputs, labels) -> [batch]`` to ascend.
        success: ``(outputs, labels) -> bool [batch]``: whether every model is fooled.
    """

    logits_fn: Partial
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    success: Callable[[jax.Array, jax.Array], jax.Array]

    def __repr__(self) -> str:
        names = [getattr(one, "__name__", type(one).__name__) for one in self[1:]]
        return f"WorstOfModels(logits_fn, loss {names[0]}, success {names[1]})"


def worst_of_models(models: Sequence[Callable[..., Any]], loss: str = "margin") -> WorstOfModels:
    """One image that fools every model: the smallest loss is ascended, all must be wrong.

    Args:
        models: As in ``mean_of_models``.
        loss: ``"margin"`` or ``"cross_entropy"``, see ``SmallestLoss``.

    Returns:
        A ``WorstOfModels``: hand its ``loss`` and ``success`` to the attack, and its ``logits_fn``
        to the call.

    Raises:
        ValueError: For no models, something that is no function, or an unknown loss.

    Example:
        >>> import jax.numpy as jnp
        >>> from awp_jax.attacks import worst_of_models
        >>> first = lambda images: jnp.array([[0.0, 2.0]])
        >>> second = lambda images: jnp.array([[1.0, 0.0]])
        >>> both = worst_of_models([first, second])
        >>> outputs = both.logits_fn(jnp.zeros((1, 2, 2, 1)))
        >>> both.loss(outputs, jnp.array([0])).tolist()  # margins 2 and -1
        [-1.0]
        >>> both.success(outputs, jnp.array([0])).tolist()
        [False]
    """
    return WorstOfModels(Partial(_each, _checked(models)), SmallestLoss(loss), every_model_fooled)
