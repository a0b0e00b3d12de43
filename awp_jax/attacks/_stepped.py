"""What the step-by-step evaluation attacks share: runs, state per example, the verdict."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.ascent import loop
from awp_jax.attacks._gradient import model_key
from awp_jax.attacks._in_ball import InBall
from awp_jax.attacks._model import check_logits, prepare, ranked_verdict
from awp_jax.attacks._result import AttackResult, Ranked, worse
from awp_jax.explicit import on_any_mesh
from awp_jax.random import fold_keys
from awp_jax.typing import Inputs, Key, Labels, Logits, LogitsFn, Radius


def ranked_targets(logits: Logits, labels: Labels, rank: jax.Array) -> jax.Array:
    """The class of the given rank, ``[batch]``: 2 is the most likely class other than the label.

    The label counts as rank 1, so for correctly classified images these are the ranks of the
    clean logits.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    # The label is sorted first whatever the model says, so that it is never a target.
    order = jnp.argsort(jnp.where(is_label, jnp.inf, logits), axis=1, descending=True)
    return jnp.take(order, rank - 1, axis=1).astype(labels.dtype)


@dataclasses.dataclass(frozen=True)
class SteppedAttack(InBall):
    """Base of attacks whose state holds everything per example.

    Because every leaf of the state has the batch as its first axis, ``autoattack`` can drop
    finished examples on the way; and because targets are data, one compilation serves all of them.

    Attributes:
        epsilon, norm, ball: See ``InBall``.
        steps: Number of steps or queries of one run.
        restarts: Runs from new random starts; the worst is kept per example.
        unroll: See ``awp_jax.ascent.loop``.
    """

    steps: int = 100
    restarts: int = 1
    unroll: bool | None = None

    # After how many steps autoattack looks which examples are done.
    segment: ClassVar[int] = 10
    targets: ClassVar[int] = 0
    eot: ClassVar[int] = 0

    def __post_init__(self, epsilon: Radius, norm: Any) -> None:
        super().__post_init__(epsilon, norm)
        checks.positive_integer(self.steps, "steps")
        checks.positive_integer(self.restarts, "restarts")

    @property
    def passes(self) -> int:
        """How often one run calls ``step``."""
        return self.steps

    def runs(self, classes: int | None) -> list[tuple[int, int]]:
        """All runs as ``(rank of the target class or 0, restart)``."""
        # Rank 1 is the label itself; 0 stands for no target.
        ranks = range(2, min(self.targets + 1, classes or 0) + 1) if self.targets else (0,)
        return [(rank, restart) for rank in ranks for restart in range(self.restarts)]

    def check(self, images: Inputs) -> None:
        """Raises ``ValueError`` for images that the attack cannot work on."""

    def begin(
        self,
        function: Partial,
        keys: Key,
        images: Inputs,
        labels: Labels,
        rank: jax.Array,
        restart: jax.Array,
    ) -> Any:
        """The state before the first step."""
        raise NotImplementedError

    def step(self, function: Partial, index: jax.Array, state: Any) -> Any:
        """The state after one more step."""
        raise NotImplementedError

    def candidate(self, state: Any) -> Any:
        """The images to be judged."""
        raise NotImplementedError

    def candidates(self, state: Any) -> tuple[Any, Any, Any]:
        """``(mask, first, second)``: the candidate is ``first`` where ``mask``, else ``second``.

        Parts of the state as they are, for ``autoattack``, which chooses on the host.
        """
        images = self.candidate(state)
        return state.success, images, images

    def highest_loss(self, state: Any, loss: jax.Array) -> jax.Array:
        """The highest cross-entropy that was seen, given that of the candidate."""
        del state
        return loss

    @on_any_mesh(logits_fn="images")
    def __call__(
        self, logits_fn: LogitsFn, key: Key, images: Inputs, labels: Labels
    ) -> AttackResult:
        """Attacks a batch; clean images that are misclassified count as found.

        Args:
            logits_fn: ``images -> logits [batch, classes]``; a ``jax.tree_util.Partial`` over the
                parameters is compiled once for all parameters.
            key: One typed key, or one per example (then the result does not depend on batching).
            images: float ``[batch, height, width, channels]`` in [0, 1], or what the ball holds.
            labels: int ``[batch]``, or what ``loss`` and ``success`` take.

        Returns:
            An ``AttackResult``.

        Raises:
            ValueError: For bad images or labels, or a model that returns NaN.
        """
        function, keys, images, classes = prepare(self, logits_fn, key, images, labels)
        self.check(images)
        # The clean image is the first candidate, and no run can end with less.
        best = judged(self, function, keys, images, labels)
        check_logits(best.result.loss)
        # No step was needed where the clean image is misclassified.
        unmoved = best.result._replace(steps=jnp.zeros(keys.shape, jnp.int32))
        best = best._replace(result=unmoved)
        for number, (rank, restart) in enumerate(self.runs(classes)):
            state = begin(self, function, keys, images, labels, rank, restart)
            # A Partial of a function of the module: outside jit a step compiles once for all calls.
            state = loop(Partial(advance, self, function), state, self.passes, unroll=self.unroll)
            found = finish(self, function, state)
            result = found.result
            # Runs before this one count as well: the cost of the attack up to its success.
            done = jnp.where(result.success, result.steps + number * self.passes, 0)
            best = worse(best, found._replace(result=result._replace(steps=done)))
        check_logits(best.result.loss)
        return best.result


@jax.jit
def begin(
    attack: SteppedAttack,
    function: Partial,
    keys: Key,
    images: Inputs,
    labels: Labels,
    rank: jax.Array,
    restart: jax.Array,
) -> Any:
    """The first state of one run; every run has keys of its own."""
    # Rank and restart are traced arguments: all runs share one compilation.
    run_keys = fold_keys(fold_keys(keys, rank), restart)
    return attack.begin(function, run_keys, images, labels, rank, restart)


def advance(attack: SteppedAttack, function: Partial, index: jax.Array, state: Any) -> Any:
    """One step, as the body of a loop."""
    return attack.step(function, index, state)


@jax.jit
def judged(
    attack: SteppedAttack, function: Partial, keys: Key, images: Inputs, labels: Labels
) -> Ranked:
    """The verdict on images, by a random pass for a randomised model."""
    # No step has this number: the draw of the verdict is not one that the attack has seen.
    key = model_key(keys, attack.passes + 1) if attack.eot else None
    return ranked_verdict(function, images, labels, key, attack.goal)


@jax.jit
def finish(attack: SteppedAttack, function: Partial, state: Any) -> Ranked:
    """Projects and judges what a run found."""
    # Before the verdict: what is judged is what is returned.
    images = attack.ball.project(state.images, attack.candidate(state))
    found = judged(attack, function, state.keys, images, state.labels)
    loss = attack.highest_loss(state, found.result.loss)
    return found._replace(result=found.result._replace(loss=loss, steps=state.first))
