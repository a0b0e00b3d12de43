"""Auto-PGD, untargeted and targeted (Croce and Hein, ICML 2020)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from awp_jax import checks, streams
from awp_jax.attacks._apgd_l1 import LEAST_STEPS, SparseSteps
from awp_jax.attacks._apgd_steps import APGDState, HalvedSteps, Steps
from awp_jax.attacks._goal import Goal, Loss, Success
from awp_jax.attacks._gradient import loss_and_gradient, model_key
from awp_jax.attacks._in_ball import is_l1
from awp_jax.attacks._losses import cross_entropy, targeted_dlr, targeted_margin
from awp_jax.attacks._model import predict
from awp_jax.attacks._result import choose
from awp_jax.attacks._stepped import SteppedAttack, ranked_targets
from awp_jax.balls._protocol import check_step_size
from awp_jax.pytrees import pytree_dataclass
from awp_jax.typing import Inputs, Key, Labels, Outputs, Radius


@pytree_dataclass("ball", "step_size", "loss", "success")
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(SteppedAttack):
    """Auto-PGD: ascent whose step size adapts itself (Croce and Hein, ICML 2020; L1: ICML 2021).

    In Linf, L2 and balls of one's own: starts on the sphere (Linf: a uniform draw rescaled so that
    its largest entry is epsilon; L2: a Gaussian one of length epsilon) with step size 2 epsilon and
    momentum. At each of ``checkpoints(steps)`` the step is halved where the loss rose in at most
    ``rho`` of the steps since the last one, or where the best loss did not improve and the step was
    not halved then; those examples go on from their best point, with its gradient.

    In L1: starts at standard normal noise, projected on ball and bounds together, with step size
    epsilon. Each step moves the entries with the largest gradients only, a fifth of them at first,
    and there is no momentum. After every 4% of the steps it is set how many the next ones move: 1.5
    times fewer than the best point displaces. Where that point became sparser by more than 5% the
    step size is epsilon again and the ascent goes on from there; elsewhere it is divided by 1.5,
    down to epsilon / 10 (ICML 2021, section 4, as in fra31/auto-attack).

    Returned is the latest misclassified iterate, else the one with the highest loss.

    Attributes:
        epsilon, steps, norm, ball, restarts, unroll: As in ``SteppedAttack``. In a ball that is no
            ``InputBall`` it starts at ``ball.start``.
        loss: ``"cross_entropy"``, ``"dlr"``, ``"margin"`` or ``(outputs, targets) -> [batch]``.
        success, targeted: As in ``PGD``: with ``targeted`` the labels are classes to reach.
        step_size: The first one, in the units of the ball's radius; ``None`` for twice that, in L1
            for the radius itself.
        rho: Share of rising steps below which the step is halved (0.75, the paper); not in L1.
        momentum: Weight of the new step (0.75, the paper's alpha); the first has weight 1. Not in
            L1.
        larger_radii: In L1: 30, 30 and 40% of the steps in balls of 3, 2 and 1 epsilon (ICML 2021,
            section 4.4), each from the point of the highest loss of the last, projected, with
            ``step_size`` as much larger. Only what is found in the last counts. It needs at least 5
            steps, and looks at the model twice more, which ``AttackResult.steps`` counts. Off, as
            in the released APGD; ``autoattack`` has it on.
        released_counts: In L1: count displaced entries as the released code does, where those count
            too that a rounding error left off their places. Steps are less sparse then, and one run
            finds less where float32 does not hold pixels exactly (1.5 points less on jittered
            digits). For comparisons only: what rounds otherwise, another batch size or ``vmap``,
            changes many images and some verdicts.
        eot: Random passes to average gradients and losses over; above 0 the model is called as
            ``logits_fn(images, key)``. AutoAttack's ``rand`` has 20.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import APGD
        >>> logits_fn = lambda images: images.mean((1, 2)) * jnp.array([[1.0, 2.0, 3.0]])
        >>> images = jnp.full((1, 4, 4, 1), 0.02)
        >>> attack = APGD("8/255", steps=10, loss="dlr")
        >>> attack(logits_fn, jax.random.key(0), images, jnp.array([2])).success
        Array([ True], dtype=bool)

    Raises:
        ValueError: For bad settings, settings that the norm has not, or the DLR loss with fewer
            than 3 classes.
    """

    loss: Loss = "cross_entropy"
    success: Success | None = None
    targeted: bool = False
    step_size: Radius = None
    rho: float = 0.75
    momentum: float = 0.75
    larger_radii: bool = False
    released_counts: bool = False
    eot: int = 0  # type: ignore[misc]

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        _ = self.goal  # which checks the loss
        self._check_norm()
        check_step_size(self.ball, self.step_size, f"step_size to {type(self).__name__}")
        checks.positive_integer(self.eot, "eot", minimum=0)

    def _check_norm(self) -> None:
        """Raises ``ValueError`` for settings that have no meaning in the norm of the ball."""
        for name in ("larger_radii", "released_counts"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}, but True or False was expected.")
            if value and not is_l1(self.ball):
                raise ValueError(f"{name} is True, but only APGD in an L1 ball has {name}.")
        if self.larger_radii and self.steps < LEAST_STEPS:
            raise ValueError(
                f"steps is {self.steps}, but at least {LEAST_STEPS} were expected with "
                "larger_radii: some for each of three balls."
            )
        for name in ("rho", "momentum"):
            # Whoever changes one of these expects an effect, which it could not have here.
            value, usual = getattr(self, name), getattr(APGD, name)
            if is_l1(self.ball) and value != usual:
                raise ValueError(f"{name} is {value!r}, but APGD in an L1 ball has none.")

    @property
    def _steps(self) -> Steps:
        """The rule of the steps."""
        if is_l1(self.ball):
            return SparseSteps(
                self.ball, self.step_size, self.steps, self.larger_radii, self.released_counts
            )
        return HalvedSteps(self.ball, self.step_size, self.steps, self.rho, self.momentum)

    @property
    def passes(self) -> int:
        """How often a run looks at the model after its start."""
        return self._steps.passes

    @property
    def goal(self) -> Goal:
        """What the attack wants."""
        return Goal(self.loss, self.success, self.targeted)

    def objective(self, outputs: Outputs, labels: Labels, targets: Any) -> jax.Array:
        """The loss to ascend, ``[batch]``."""
        del targets
        return self.goal.ascended(outputs, labels)

    def _evaluate(
        self,
        function: Callable[..., Any],
        point: Inputs,
        keys: Key,
        labels: Labels,
        targets: Any,
        index: Any,
    ) -> tuple[jax.Array, jax.Array, Any]:
        # Verdict, loss and gradient come from one pass: to look at every iterate costs nothing.
        key = model_key(keys, index) if self.eot else None
        outputs, loss, gradient = loss_and_gradient(
            function, lambda z: self.objective(z, labels, targets), point, key, self.eot
        )
        return self.goal.succeeded(outputs, labels), loss, gradient

    def _targets(
        self,
        function: Callable[..., Any],
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
    ) -> Any:
        del function, keys, images, rank
        # Not needed, but every leaf of the state has the batch as its first axis.
        return labels

    def begin(
        self,
        function: Callable[..., Any],
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
        restart: jax.Array,
    ) -> APGDState:
        """The state at the random start."""
        # The keys have it folded in already.
        del restart
        rule = self._steps
        point = rule.start(keys, images)
        targets = self._targets(function, keys, images, labels, rank)
        wrong, loss, gradient = self._evaluate(
            function, point, keys, labels, targets, streams.MODEL_START
        )
        batch = keys.shape[0]
        return APGDState(
            keys=keys,
            images=images,
            labels=labels,
            targets=targets,
            point=point,
            gradient=gradient,
            best=point,
            best_gradient=gradient,
            best_loss=loss,
            found=point,
            # With larger radii the start lies in another ball than the attack's, and never counts.
            success=wrong & rule.counts(-1),
            first=jnp.zeros((batch,), jnp.int32),
            share=jnp.ones((batch,), jnp.float32),
            memory=rule.memory(images, point, loss),
        )

    def step(self, function: Callable[..., Any], index: jax.Array, state: APGDState) -> APGDState:
        """One step (algorithm 1 of the paper)."""
        rule = self._steps
        s = rule.moved(index, state)
        wrong, loss, gradient = self._evaluate(
            function, s.point, s.keys, s.labels, s.targets, index
        )
        wrong = wrong & rule.counts(index)
        # By the loss alone: an example that is broken steps on.
        better = loss > s.best_loss
        s = s._replace(
            gradient=gradient,
            found=choose(wrong, s.point, s.found),
            # Counted from 1: 0 is a success at the start, or none.
            first=jnp.where(wrong & ~s.success, index.astype(jnp.int32) + 1, s.first),
            success=s.success | wrong,
            best=choose(better, s.point, s.best),
            best_gradient=choose(better, gradient, s.best_gradient),
            best_loss=jnp.where(better, loss, s.best_loss),
        )
        return rule.checked(index, s, loss)

    def candidates(self, state: APGDState) -> tuple[Any, Any, Any]:
        """The latest misclassified iterate, else the one with the highest loss."""
        return state.success, state.found, state.best

    def candidate(self, state: APGDState) -> Any:
        """Chosen from ``candidates``."""
        return choose(*self.candidates(state))

    def highest_loss(self, state: APGDState, loss: jax.Array) -> jax.Array:
        """The highest cross-entropy on the way, when that is what was ascended."""
        # Other losses cannot be compared with the cross-entropy that is reported. APGDTargeted has
        # the same goal, but ascends the targeted DLR.
        known = (self.goal.loss is cross_entropy or not self.goal.classifies) and not self.targets
        return jnp.maximum(loss, state.best_loss) if known else loss


@pytree_dataclass("ball", "step_size", "loss", "success")
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGDTargeted(APGD):
    """APGD on the targeted DLR loss, once for each of the most likely wrong classes.

    Croce and Hein, ICML 2020, section 4: with 9 targets, ranks 2 to 10 of the clean logits. With
    fewer classes all wrong classes are tried; below 4 classes, where the targeted DLR is not
    defined, ``z_t - z_y`` takes its place.

    Attributes:
        epsilon, steps, norm, ball, restarts, step_size, rho, momentum, larger_radii,
            released_counts, eot, unroll: As in ``APGD``; labels are the true ones, and any other
            class is a success.
        loss, success, targeted: Not used.
        targets: Number of target classes (9, fra31/auto-attack; ``autoattack`` in L1 has 5).
    """

    targets: int = 9  # type: ignore[misc]

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        checks.positive_integer(self.targets, "targets")
        if self.success is not None or self.targeted:
            raise ValueError(
                "APGDTargeted chooses its targets itself and looks for any other class: for "
                "targets or a success of your own use APGD(targeted=True) or APGD(success=...)."
            )

    def objective(self, outputs: Outputs, labels: Labels, targets: Any) -> jax.Array:
        """The targeted loss to ascend, ``[batch]``."""
        loss = targeted_dlr if outputs.shape[1] >= 4 else targeted_margin
        return loss(outputs, labels, targets)

    def _targets(
        self,
        function: Callable[..., Any],
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
    ) -> Any:
        # Of the clean image, not of the start: ranks are those of the clean logits, as released.
        logits = predict(
            function, images, model_key(keys, streams.MODEL_TARGETS) if self.eot else None
        )
        return ranked_targets(logits, labels, rank)
