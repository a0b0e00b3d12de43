"""The attack of the training loop: PGD on the objective's attack loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks, mapped
from awp_jax.ascent import ascend
from awp_jax.attacks._in_ball import InBall, check_start, starting_point
from awp_jax.attacks._result import images_of
from awp_jax.balls._protocol import scaled, shrunk
from awp_jax.objectives import Objective, check_losses
from awp_jax.scaling import over, times
from awp_jax.training._descent import counted
from awp_jax.training._free import check_free
from awp_jax.typing import BatchStats, Images, Inputs, Key, Labels, Logits, Params, Radius


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingAttack(InBall):
    """The PGD attack of the training loop (paper: K1 = 10 steps of 2/255 within 8/255).

    Attributes:
        epsilon, norm, ball: What it moves in, see ``awp_jax.attacks.InBall``.
        steps: K1.
        step_size: In the units of the ball's radius (2/255).
        start: ``None`` for the objective's own; see ``awp_jax.attacks.PGD``.
        batch_norm: ``None`` for the objective's own. ``"batch"``: batch statistics, running ones
            stay as they are. ``"running"``: running statistics. ``"released"``: as the released AT
            code, batch statistics with every forward pass of the attack, and one clean pass after
            the update, moving the running ones.
        own: An attack in place of PGD: ``(logits_fn, key, images, labels)`` to a result with
            ``images``, as all of ``awp_jax.attacks``, or to the images alone. It is called under
            ``jit`` at the weights w + v, with one key for the batch, ascends a loss of its own, and
            must keep to a ball of its own; the statistics of BatchNorm are those of ``batch_norm``.
        early_stop: ``None``, or tau of friendly adversarial training (Zhang et al., ICML 2020,
            algorithm 1): an image that is misclassified takes at most tau steps more.
        scale: ``None``, or ``step -> factor`` of the ball's radius and of ``step_size`` at that
            optimiser step, such as a warm-up of epsilon; not for ``own``.
        free: Whether nothing is attacked: as in free adversarial training (Shafahi et al., NeurIPS
            2019) the images are perturbed by ``TrainState.delta``, and the backward pass of the
            descent gives the gradient of both weights and images, by which delta takes one step of
            ``step_size`` for the next step. Hand each batch to so many steps as there are replays.
            ``steps`` is not used, ``start`` is where delta was left, and the ball an ``InputBall``.
    """

    steps: int = dataclasses.field(default=10, kw_only=False)
    step_size: Radius = 2 / 255
    start: Any = None
    batch_norm: str | None = None
    early_stop: int | None = None
    own: Any = None
    scale: Callable[..., Any] | None = None
    free: bool = False

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        size = jax.tree.map(lambda s: checks.radius(s, "step_size", None), self.step_size)
        object.__setattr__(self, "step_size", size)
        if self.start is not None:
            check_start(self.start)
        checks.positive_integer(self.steps, "steps", minimum=0)
        if self.early_stop is not None:
            checks.positive_integer(self.early_stop, "early_stop", minimum=0)
        if self.own is not None:
            if not callable(self.own):
                raise ValueError(
                    f"own is {self.own!r}, but an attack was expected, called as (logits_fn, key, "
                    "images, labels)."
                )
            if self.early_stop is not None or self.batch_norm == "released" or self.scale:
                raise ValueError(
                    "early_stop, scale (attack.warmup_epochs) and batch_norm 'released' are of "
                    "PGD, not of own."
                )
        if self.free:
            check_free(self)
        if self.batch_norm is not None:
            checks.choice(self.batch_norm, ("batch", "running", "released"), "attack_batch_norm")


class Crafted(NamedTuple):
    """What an attack leaves.

    Attributes:
        images: Adversarial images ``[batch, height, width, channels]``.
        batch_stats: The running statistics afterwards.
        weight_gradient: Of the mean attack loss in the weights, at the images before the last step;
            ``None`` unless asked for.
    """

    images: Images
    batch_stats: BatchStats
    weight_gradient: Any = None


def make_attack(
    classifier: Any,
    objective: Objective,
    attack: TrainingAttack,
    *,
    share_backward: bool = False,
    unroll: bool | None = None,
    axis_name: str | None = None,
) -> tuple[Callable[..., Any], bool]:
    """The attack of a training step.

    Args:
        classifier: Fulfils the contract of ``awp_jax.models.Classifier``.
        objective: Says what is ascended and, unless ``attack`` does, from where and in which mode.
        attack: Its settings.
        share_backward: Whether the last backward pass gives the gradient in the weights as well.
        unroll: See ``awp_jax.ascent.loop``.
        axis_name: The mapped axis over which the batch is split, or ``None``.

    Returns:
        ``craft(params, batch_stats, images, labels, keys, dropout_key, mask, scale, count,
        loss_scale) -> Crafted``, and whether its forward passes move the running statistics, as
        those of the released AT code. ``count`` are the examples that ``weight_gradient`` is the
        mean over, where the images are a part of a batch with padding.
    """
    start = objective.start if attack.start is None else attack.start
    mode = attack.batch_norm or objective.attack_batch_norm
    # TRADES and MART attack in evaluation mode in their released code too.
    released = mode == "released" and objective.attack_batch_norm == "batch"
    if mode == "released":
        mode = "update" if released else objective.attack_batch_norm
    attack_loss = objective.attack_loss

    def craft(
        params: Params,
        batch_stats: BatchStats,
        images: Images,
        labels: Labels,
        keys: Key,
        dropout_key: Any,
        mask: Any = None,
        scale: Any = None,
        count: Any = None,
        loss_scale: Any = None,
    ) -> Crafted:
        if attack_loss is None:
            return Crafted(images, batch_stats)
        ball, step_size = attack.ball, attack.step_size
        begin = start
        if scale is not None:
            scale = jnp.asarray(scale, images.dtype)
            ball, step_size = shrunk(ball, scale), scaled(step_size, scale)
            # A start in a ball of its own, such as N-FGSM's, shrinks with the attack's.
            begin = start if isinstance(start, str) else shrunk(start, scale)

        def forward(params: Params, x: Any, stats: Any) -> tuple[Any, Any]:
            return classifier.apply(params, stats, x, mode=mode, key=dropout_key, **counted(mask))

        if attack.own is not None:

            def logits_fn(x: Any) -> Any:
                return forward(params, x, batch_stats)[0]

            # One key: attacks of other people know nothing of one for each example.
            made = attack.own(Partial(logits_fn), keys[0], images, labels)
            return Crafted(images_of(made, images, attack.own), batch_stats)

        clean_logits = None
        if objective.attack_uses_clean_logits:
            # Once for all steps and not differentiated: a constant of the attack's loss.
            clean_logits, batch_stats = forward(params, images, batch_stats)

        def loss(x: Any, params: Params, stats: Any) -> tuple[jax.Array, tuple[Any, Any]]:
            logits, stats = forward(params, x, stats)
            found = attack_loss(logits, labels, clean_logits)
            what = f"attack_loss of objective {objective.name!r}"
            losses = check_losses(found, labels.shape[0], what)
            if mask is not None:  # padding is normalised by the statistics of the others
                losses = jnp.where(mask, losses, 0)
            # The sum: the gradient of an image does not depend on how many others are in its batch.
            return times(losses.sum(), loss_scale), (logits, stats)

        def gradient_fn(point: Inputs, carry: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
            # Statistics are carried, because each forward pass of the released attack moves them.
            stats, left = carry
            gradient, (logits, stats) = jax.grad(loss, has_aux=True)(point, fixed, stats)
            gradient = over(gradient, loss_scale)
            if left is not None:
                gradient, left = _friendly(gradient, left, logits, labels)
            return gradient, (stats, left)

        # Once, and not in every step of the loop. The last step of `share_backward` differentiates
        # the parameters themselves.
        fixed = getattr(classifier, "in_compute_dtype", lambda p: p)(params)

        left = None
        if attack.early_stop is not None:
            left = jnp.full(images.shape[:1], attack.early_stop, jnp.int32)
            # What comes out of the loop differs from device to device, and so must what goes in.
            left = mapped.vary(left, axis_name)
        # The last step is made below, where its backward pass yields the weights' gradient too.
        rolled = attack.steps - 1 if share_backward else attack.steps
        point, (batch_stats, _) = ascend(
            gradient_fn,
            ball,
            images,
            starting_point(ball, begin, keys, images),
            (batch_stats, left),
            steps=rolled,
            step_size=step_size,
            unroll=unroll,
        )
        weight_gradient = None
        if share_backward:
            both = jax.grad(loss, argnums=(0, 1), has_aux=True)
            at = mapped.vary(params, axis_name)
            gradients, (_, batch_stats) = both(point, at, batch_stats)
            gradient, summed = over(gradients, loss_scale)
            # Sums over the mean count of a device: their mean over devices is that of all examples.
            if count is None:
                count = images.shape[0] if mask is None else mapped.mean(mask.sum(), axis_name)
            own = jax.tree.map(lambda g: g / count, summed)
            weight_gradient = mapped.mean(own, axis_name)
            point = ball.step(images, point, gradient, step_size)
        if released:  # one more forward pass, by which the released code picks among restarts
            _, batch_stats = forward(params, point, batch_stats)
        # Without steps nothing else has projected the start, which may lie outside.
        return Crafted(ball.project(images, point), batch_stats, weight_gradient)

    return craft, released


def _friendly(
    gradient: jax.Array, left: jax.Array, logits: Logits, labels: Labels
) -> tuple[jax.Array, jax.Array]:
    """Holds images that were misclassified long enough; ``left``: steps they have, -1 for none."""
    truth = labels if labels.ndim == 1 else labels.argmax(axis=1)
    wrong = logits.argmax(axis=1) != truth
    # Once stopped it stays so, also where batch statistics make it right again.
    left = jnp.where((left < 0) | (wrong & (left == 0)), -1, jnp.where(wrong, left - 1, left))
    moves = (left >= 0).reshape((-1,) + (1,) * (gradient.ndim - 1))
    return jnp.where(moves, gradient, 0.0), left
