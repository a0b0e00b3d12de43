"""FGSM, PGD and the CW loss by PGD."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from awp_jax import checks
from awp_jax.ascent import loop
from awp_jax.attacks._gradient import loss_and_gradient, model_key
from awp_jax.attacks._losses import LOSSES, HingedMargin
from awp_jax.attacks._model import as_pytree_function, check_logits, prepare, verdict
from awp_jax.attacks._result import AttackResult, worse
from awp_jax.balls import NORMS, ImageBall
from awp_jax.random import example_keys, fold_keys

Loss = str | Callable[[jax.Array, jax.Array], jax.Array]


def loss_function(loss: Loss) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A per-example loss ``(logits, labels) -> [batch]`` by name, or the callable itself."""
    return loss if callable(loss) else LOSSES[checks.choice(loss, LOSSES, "loss")]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PGD:
    """Projected gradient descent (Madry et al. 2018; AWP, NeurIPS 2020, eq. 14).

    ``attack = PGD(epsilon="8/255", steps=20); attack(logits_fn, key, images, labels)`` is a pure
    function: it can be called as it is, or inside ``jit``, ``vmap`` and ``shard_map``.

    Attributes:
        epsilon: Radius in pixel units, images in [0, 1]: a number or a fraction such as "8/255".
        steps: Number of gradient steps (10 for training, 20 or 100 for tests in the AWP papers).
        step_size: In pixel units; ``None`` for 2.5 * epsilon / steps (Madry et al., section 5).
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        loss: ``"cross_entropy"``, ``"margin"`` or ``(logits, labels) -> [batch]`` to ascend.
        start: ``"uniform"``, ``"gaussian"`` (0.001, TRADES) or ``"none"``; see ``ImageBall.start``.
        restarts: Independent runs; the worst is kept per example.
        momentum: Decay mu of the accumulated gradient ``g <- mu g + grad / mean|grad|``, along
            which steps are taken (MI-FGSM, Dong et al. 2018, eq. 6, there 1.0); 0 for none.
        eot: 0 for a deterministic ``logits_fn(images)``. Above: the model is randomised and called
            as ``logits_fn(images, key)``; each step follows the average gradient of this many
            passes, and the verdict is one more pass.
        unroll: See ``awp_jax.ascent.loop``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from awp_jax.attacks import PGD
        >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) * jnp.array([[1.0, 0.0]])
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.52), jnp.array([0, 1])
        >>> PGD(epsilon="8/255", steps=5)(logits_fn, jax.random.key(0), images, labels).success
        Array([ True,  True], dtype=bool)

    Raises:
        ValueError: For a negative epsilon, an unknown norm, loss or start, or steps below 0; when
            called, for images outside [0, 1], wrong dtypes or wrong shapes.
    """

    epsilon: Any = 8 / 255
    steps: int = 20
    step_size: Any = None
    norm: str = "linf"
    loss: Loss = "cross_entropy"
    start: str = "uniform"
    restarts: int = 1
    momentum: float = 0.0
    eot: int = 0
    unroll: bool | None = None

    def __post_init__(self):
        checks.positive_integer(self.steps, "steps", minimum=0)
        checks.positive_integer(self.eot, "eot", minimum=0)
        if not self.momentum >= 0:
            raise ValueError(f"momentum is {self.momentum!r}, but at least 0 was expected.")
        checks.positive_integer(self.restarts, "restarts")
        checks.choice(self.norm, NORMS, "norm")
        checks.choice(self.start, ("uniform", "gaussian", "none"), "start")
        loss_function(self.loss)
        epsilon = checks.radius(self.epsilon, "epsilon", self.norm)
        size = 2.5 * epsilon / max(self.steps, 1) if self.step_size is None else self.step_size
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "step_size", checks.radius(size, "step_size", self.norm))

    def perturb(
        self, logits_fn: Callable, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """One run without the verdict.

        Args:
            logits_fn: ``images -> logits [batch, classes]``.
            key: One typed key, or one per example.
            images: float ``[batch, ...]`` in [0, 1].
            labels: int ``[batch]``.

        Returns:
            The last iterate, ``[batch, ...]``, inside the ball.
        """
        ball = ImageBall(self.norm, self.epsilon)
        keys = example_keys(key, images.shape[0])
        point = ball.start(keys, images, self.start)
        if self.steps == 0:
            return ball.project(images, point)
        model_keys = keys if self.eot else None
        rule = _Rule(self.norm, self.loss, self.momentum, self.eot)
        sizes = (self.epsilon, self.step_size)
        function = as_pytree_function(logits_fn)
        body = Partial(_pgd_step, rule, sizes, function, images, labels, model_keys)
        velocity = jnp.zeros_like(images) if self.momentum else None
        return loop(body, (point, velocity), self.steps, unroll=self.unroll)[0]

    def __call__(
        self, logits_fn: Callable, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> AttackResult:
        """Attacks a batch.

        Args:
            logits_fn: ``images -> logits [batch, classes]``; a ``jax.tree_util.Partial`` over the
                parameters is compiled once for all parameters.
            key: One typed key, or one per example (then the result does not depend on batching).
            images: float ``[batch, height, width, channels]`` in [0, 1].
            labels: int ``[batch]``.

        Returns:
            An ``AttackResult``.

        Raises:
            ValueError: For bad images or labels, or a model that returns NaN.
        """
        function, keys, _ = prepare(self, logits_fn, key, images, labels)
        result = None
        for restart in range(self.restarts):
            keys_now = keys if self.restarts == 1 else fold_keys(keys, restart)
            point = self.perturb(function, keys_now, images, labels)
            judge_key = model_key(keys_now, self.steps) if self.eot else None
            found = verdict(function, point, labels, judge_key)
            result = found if result is None else worse(result, found)
        assert result is not None  # restarts >= 1
        check_logits(result.loss)
        return result


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Rule:
    """What a compiled step depends on: not the radius nor the number of steps."""

    norm: str
    loss: Loss
    momentum: float
    eot: int


def _pgd_step(rule: _Rule, sizes, logits_fn: Partial, images, labels, keys, index, state):
    point, velocity = state
    epsilon, step_size = sizes
    loss = loss_function(rule.loss)
    key = model_key(keys, index) if rule.eot else None
    _, _, gradient = loss_and_gradient(
        logits_fn, lambda logits: loss(logits, labels), point, key, rule.eot
    )
    if velocity is not None:
        axes = tuple(range(1, gradient.ndim))
        # 1e-30 keeps a zero gradient zero instead of NaN.
        scale = jnp.maximum(jnp.abs(gradient).mean(axes, keepdims=True), 1e-30)
        velocity = rule.momentum * velocity + gradient / scale
        gradient = velocity
    point = ImageBall(rule.norm, epsilon).step(images, point, gradient, step_size)
    return point, velocity


def FGSM(epsilon: Any = 8 / 255, *, norm: str = "linf", loss: Loss = "cross_entropy") -> PGD:
    """Fast gradient sign method (Goodfellow et al. 2015; AWP eq. 13).

    One step of length epsilon from the clean image: ``x + epsilon * sign(gradient)``, clipped to
    [0, 1]; for L2 along the normalised gradient.

    Args:
        epsilon: Radius in pixel units.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        loss: As in ``PGD``.

    Returns:
        An attack, called as ``attack(logits_fn, key, images, labels)``.
    """
    return PGD(epsilon, steps=1, step_size=epsilon, norm=norm, loss=loss, start="none")


def CW(
    epsilon: Any = 8 / 255,
    *,
    steps: int = 100,
    kappa: float = 10.0,
    norm: str = "linf",
    step_size: Any = None,
    restarts: int = 1,
) -> PGD:
    """CW-infinity: PGD on the margin ``max_{j != y} z_j - z_y`` (AWP, NeurIPS 2020, Table 2).

    Args:
        epsilon: Radius in pixel units.
        steps: Number of gradient steps (100 in the paper).
        kappa: Confidence in units of logits at which the margin is cut off (10 in the released RWP
            code).
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        step_size: As in ``PGD``.
        restarts: As in ``PGD``.

    Returns:
        An attack, called as ``attack(logits_fn, key, images, labels)``.
    """
    loss = HingedMargin(float(kappa))
    return PGD(epsilon, steps, step_size, norm, loss, restarts=restarts)
