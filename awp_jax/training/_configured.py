"""What a config names: objective, attacks, weight perturbation, data."""

import inspect
from typing import Any

from ml_collections import ConfigDict

from awp_jax import checks, data, objectives, parts
from awp_jax.attacks import FGSMRS, NFGSM, PGD
from awp_jax.balls import InputBall, WeightBall
from awp_jax.training._attack import TrainingAttack
from awp_jax.training._averaging import averaging_rate
from awp_jax.training._loss_scale import DYNAMIC
from awp_jax.training._schedules import warmup
from awp_jax.training._weights import WeightPerturbation
from awp_jax.typing import Radius

# Fast adversarial training: attacks of one step, which say themselves how long it is.
ONE_STEP = {"fgsm-rs": FGSMRS, "n-fgsm": NFGSM}
FREE = "free"


def replays_of(config: ConfigDict) -> int:
    """How many steps each batch is for: more than one in free adversarial training."""
    return config.attack.replays if config.attack.name == FREE else 1


def training_attack(
    config: ConfigDict, given: parts.Parts = parts.NONE, steps_per_epoch: int = 1
) -> TrainingAttack:
    """The training attack of a config."""
    a = config.attack
    ball = _ball(a.norm, a.epsilon)
    own = parts.own(config, "attack", given)
    if inspect.isclass(own):
        own = parts.call(
            own,
            f"attack.name {a.name!r}",
            options={"ball": ball, "steps": a.steps, "step_size": checks.radius(a.step_size)},
        )
    steps, step_size, start = a.steps, a.step_size, a.start
    free = a.name == FREE
    if free:
        steps, step_size = 0, ball.radius  # as released
    if a.name in ONE_STEP:
        made = ONE_STEP[a.name](ball=ball)
        ball, steps, step_size, start = made.ball, 1, made.size, made.start
    return TrainingAttack(
        ball=ball,
        own=own,
        steps=steps,
        step_size=step_size,
        start=start,
        batch_norm=a.batch_norm,
        early_stop=a.early_stop,
        scale=warmup(a.warmup_epochs, steps_per_epoch) if a.warmup_epochs else None,
        free=free,
    )


def _ball(norm: str, epsilon: Radius) -> InputBall:
    # ``attack.large_epsilon`` insists on a radius that is all of [0, 1] and more.
    radius = checks.radius(epsilon, "epsilon", None if norm == "linf" else norm)
    return InputBall(norm, min(radius, 1.0) if norm == "linf" else radius)


def weight_perturbation(config: ConfigDict, given: parts.Parts = parts.NONE) -> WeightPerturbation:
    """The weight perturbation of a config."""
    w = config.weights
    own = parts.own(config, "weights", given)
    if own is not None and not callable(own):
        raise ValueError(
            f"weights.method {w.method!r} is a {type(own).__name__}, but a function was expected."
        )
    # One ratio over all tensors for RWP, as released, and one for each with AWP (eq. 8).
    scope = w.scope or ("global" if w.method == "rwp" else "leaf")
    return WeightPerturbation(
        w.method if own is None else own,
        ball=WeightBall(gamma=w.gamma, size=w.size, scope=scope),
        steps=w.steps,
        alternations=w.alternations,
        c_min=w.c_min,
        loss_range=tuple(w.loss_range),
        shared_backward=w.shared_backward,
    )


def objective_of(config: ConfigDict, given: parts.Parts = parts.NONE) -> objectives.Objective:
    """The objective of a config."""
    o = config.objective
    name = parts.own(config, "objective", given) or o.name
    if not isinstance(name, str | objectives.Objective):
        what, weights = f"objective.name {o.name!r}", {"beta": o.beta, "lambda_": o.lambda_}
        name = parts.call(name, what, options=weights)
        if not isinstance(name, objectives.Objective):
            raise ValueError(
                f"{what} gave a {type(name).__name__}, but an awp_jax.objectives.Objective was "
                "expected."
            )
    return objectives.create(
        name,
        beta=o.beta,
        lambda_=o.lambda_,
        alpha=o.alpha,
        temperature=o.temperature,
        helper_weight=o.helper_weight,
        helper_scale=o.helper_scale,
        difference_weight=o.difference_weight,
        soft_weight=o.soft_weight,
        class_temperature=o.class_temperature,
        label_smoothing=o.label_smoothing,
        rotation_weight=o.rotation_weight,
        gradient_alignment=o.gradient_alignment,
    )


def loss_scale_of(config: ConfigDict) -> Any:
    """The loss scale of a config, as ``make_train_step`` takes it."""
    text = config.optimizer.loss_scale
    return text if text in (None, DYNAMIC) else float(text)


def average_rate_of(config: ConfigDict, steps_per_epoch: int) -> Any:
    """How the average of the weights moves, see ``averaging_rate``; ``None`` for none."""
    a = config.averaging
    if a.name == "none":
        return None
    return averaging_rate(
        a.name, steps_per_epoch, start_epoch=a.start_epoch, decay=a.decay, warmup=a.warmup
    )


def evaluation_attack(config: ConfigDict, **changes: Any) -> PGD:
    """The attack by which a config measures robustness (PGD-20 in the papers).

    Args:
        config: A validated config.
        **changes: Replace arguments of ``awp_jax.attacks.PGD``.
    """
    epsilon = config.evaluation.epsilon or config.attack.epsilon
    settings = {
        "ball": _ball(config.attack.norm, epsilon),
        "step_size": config.evaluation.step_size or config.attack.step_size,
        "steps": config.evaluation.steps,
        "restarts": config.evaluation.restarts,
    }
    return PGD(**(settings | changes))


def splits_of(config: ConfigDict, given: parts.Parts) -> data.Splits:
    """The data that a config names, or that a user's own function returns."""
    d = config.data
    sizes = {
        "train_examples": d.train_examples,
        "downsample": d.downsample,
        "test_examples": d.test_examples,
        "validation_examples": d.validation_examples,
        "seed": config.seed,
    }
    own = parts.own(config, "data", given)
    if own is None:
        decoding = data.Decoding(d.image_size, d.resize, d.interpolation)
        return data.load(d.name, path=d.path, decoding=decoding, **sizes)
    what = f"data.name {d.name!r}"
    if not isinstance(own, data.Splits):
        try:
            own = parts.call(own, what, options={"path": d.path, "seed": config.seed})
        except data.DataError as error:
            raise data.DataError(f"{what}: {error}") from None
    if not isinstance(own, data.Splits):
        raise ValueError(
            f"{what} gave a {type(own).__name__}, but awp_jax.data.Splits were expected."
        )
    sets = (own.train, own.validation, own.test)
    kinds = {(s.images.shape[1:], s.num_classes) for s in sets if s is not None}
    if len(kinds) > 1:
        raise ValueError(
            f"{what} gave sets of different images: shapes and classes {sorted(kinds)}."
        )
    return data.cut(own, what, **sizes)
