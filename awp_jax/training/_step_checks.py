"""What a step refuses, in one sentence, before anything is compiled."""

from typing import Any

import jax

from awp_jax.objectives import ADVERSARIAL, Objective
from awp_jax.parallel import splits_weights
from awp_jax.training._attack import TrainingAttack
from awp_jax.training._parts import Parts
from awp_jax.typing import BatchStats


def check_teacher(objective: Objective, teacher: Any) -> None:
    if objective.teacher is not None and not callable(teacher):
        raise ValueError(
            f"teacher is {teacher!r}, but {objective.name} learns from one: images -> logits was "
            "expected, such as classifier.logits_fn(params, batch_stats)."
        )
    if objective.teacher is None and teacher is not None:
        raise ValueError(f"A teacher was given, but {objective.name} learns from none.")


def check_free_step(objective: Objective, weights: Any) -> None:
    """What a free attack has no room for: it needs images to attack, and is no attack itself."""
    if objective.attack_loss is None or ADVERSARIAL not in objective.inputs:
        raise ValueError(
            f"The attack is free, but objective {objective.name} looks at no attacked images."
        )
    if weights.alternations > 1 or weights.shared_backward:
        name = "shared_backward" if weights.shared_backward else "alternations"
        raise ValueError(
            f"{name} is {getattr(weights, name)}, but a free attack makes no pass of its own, to "
            "be shared or to alternate with."
        )


def check_axis(classifier: Any, batch_stats: BatchStats, axis_name: str | None) -> None:
    if axis_name is None:
        return
    known = getattr(classifier, "axis_name", None)
    if jax.tree.leaves(batch_stats) and known != axis_name:
        raise ValueError(
            f"axis_name is {axis_name!r}, but BatchNorm of {classifier.name} has {known!r}: make "
            "the classifier with the same axis_name."
        )
    _check_draws(
        classifier, "a mapped step cannot draw as the whole batch would: use plain jax.jit"
    )


def check_shareable(objective: Objective, attack: TrainingAttack) -> None:
    """The attack's gradient must be that of the loss that weights ascend, in the same mode."""
    if not objective.attacks_its_loss:
        raise ValueError(
            f"shared_backward needs an attack that ascends what the weights ascend, as that of AT; "
            f"{objective.name} attacks another loss."
        )
    if attack.own is not None:
        raise ValueError("shared_backward takes its gradient from PGD's last step, not from own.")
    if attack.batch_norm == "running" or attack.early_stop is not None or attack.steps < 1:
        raise ValueError(
            "shared_backward takes its gradient from the last step of the attack in batch "
            "statistics, so it needs attack steps of at least 1, no early_stop and batch_norm "
            f"'batch' or 'released', not steps {attack.steps}, early_stop {attack.early_stop} and "
            f"batch_norm {attack.batch_norm!r}."
        )


def check_parts(classifier: Any, objective: Objective, parts: Parts) -> None:
    """What needs a look at the whole batch has no parts, and what is mapped no split weights."""
    if parts.axis_name and parts.mesh is not None and splits_weights(parts.mesh):
        raise ValueError(
            f"axis_name is {parts.axis_name!r}, but mesh has an axis 'fsdp', along which weights "
            "are split: under pmap and shard_map each device has to have the whole ones, so use "
            "plain jit."
        )
    if parts.count == 1:
        return
    needs = {
        "rotation_weight": "whose rotated images are one batch",
        "gradient_alignment": "whose mean is over the examples that have a gradient",
    }
    for name, why in needs.items():
        if value := getattr(objective, name):
            raise ValueError(
                f"micro_batches is {parts.count}, but {name} is {value:g}, {why}: 1 was expected."
            )
    _check_draws(classifier, "micro_batches cannot draw as the whole batch would: use 1")


def _check_draws(classifier: Any, why: str) -> None:
    if classifier.is_random and classifier.has_dropout:
        raise ValueError(f"{classifier.name} draws noise and has dropout, which {why}.")
