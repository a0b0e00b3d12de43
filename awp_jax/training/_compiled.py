"""The compiled step of an experiment: one, or several in one call."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import ascent, parallel
from awp_jax.training._configured import (
    average_rate_of,
    loss_scale_of,
    objective_of,
    training_attack,
    weight_perturbation,
)
from awp_jax.training._regularisation import Regularisation
from awp_jax.training._step import make_train_step
from awp_jax.typing import Images, Key, Labels

# Both change the shape of the program, and each takes two values in a run at most.
_STATIC = ("batch_size", "perturb_weights")


def runs_in_parts(experiment: Any) -> bool:
    """Whether the step is no program of its own: on CPU RWP stops early only outside jit."""
    return experiment.config.weights.method == "rwp" and jax.default_backend() == "cpu"


def step_of(experiment: Any, classifier: Any, gather: Callable[..., Any]) -> Callable[..., Any]:
    """The step of an ``Experiment``, not compiled, see ``Experiment.step``.

    Args:
        experiment: What it is for.
        classifier: With the BatchNorm groups of one part of a batch.
        gather: See ``batch_function``.
    """
    config = experiment.config
    train = make_train_step(
        classifier,
        objective_of(config, experiment.given),
        experiment.optimizer,
        attack=training_attack(config, experiment.given, experiment.steps_per_epoch),
        weights=weight_perturbation(config, experiment.given),
        regularisation=Regularisation(**config.regularisation),
        average_rate=average_rate_of(config, experiment.steps_per_epoch),
        skip_non_finite=config.optimizer.non_finite == "skip",
        steps_per_epoch=experiment.steps_per_epoch,
        micro_batches=config.optimizer.micro_batches,
        loss_scale=loss_scale_of(config),
        mesh=experiment.mesh,
        rules=config.parallel.rules,
    )
    if runs_in_parts(experiment):
        everywhere = parallel.replicated(experiment.mesh)
        gather = jax.jit(gather, static_argnames="batch_size", out_shardings=everywhere)

    def step(
        state: Any,
        images: Images,
        labels: Labels,
        order: Any,
        key: Key,
        *,
        batch_size: Any,
        perturb_weights: Any,
        teacher: Any = None,
    ) -> Any:
        number = experiment.batch_of(state.step)
        batch = gather(number, images, labels, order, key, batch_size=batch_size)
        return train(
            state,
            batch.images,
            batch.labels,
            key,
            perturb_weights=perturb_weights,
            example_weights=batch.weights,
            mask=batch.mask,
            teacher=teacher,
        )

    return step


def several(step: Callable[..., Any], batches_differ: bool, count: int) -> Callable[..., Any]:
    """``count`` steps as one function of the same arguments, with the metrics of each.

    Args:
        step: See ``step_of``.
        batches_differ: Whether images and labels are those of each step, tuples of ``count``, and
            not what all steps gather from.
        count: Number of steps.
    """

    def steps(state: Any, images: Any, labels: Any, *rest: Any, **settings: Any) -> Any:
        each = None
        if batches_differ:
            each = jnp.stack(images), jnp.stack(labels)

        def body(state: Any, batch: Any) -> Any:
            return step(state, *(batch or (images, labels)), *rest, **settings)

        # One behind the other on a CPU, for the reason that ``ascent.loop`` gives.
        unroll = count if ascent.unrolls(count, traced=True) else 1
        return jax.lax.scan(body, state, each, length=count, unroll=unroll)

    return steps


def compiled(experiment: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` or ``several`` as one program over all devices of the mesh; donates the state."""
    # An argument: as a constant of the program its weights would be there twice.
    taught = {} if experiment.teacher is None else {"teacher": experiment.teacher}
    if runs_in_parts(experiment):
        return functools.partial(step, **taught)
    # Donated: the old state is not read again, and its memory serves the new one. In the places
    # where it came in, so that the next step compiles nothing.
    program = jax.jit(
        step,
        donate_argnums=0,
        static_argnames=_STATIC,
        out_shardings=(experiment.places, parallel.replicated(experiment.mesh)),
    )
    return functools.partial(program, **taught) if taught else program
