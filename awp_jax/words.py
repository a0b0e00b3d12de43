"""Words of foolbox, torchattacks, AutoAttack and cleverhans, for who types them by habit."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_HERE = {
    "gamma": "rho",
    "eps": "epsilon",
    "epsilons": "epsilon",
    "alpha": "step_size",
    "eps_step": "step_size",
    "eps_iter": "step_size",
    "abs_stepsize": "step_size",
    "stepsize": "step_size",
    "iters": "steps",
    "n_iter": "steps",
    "nb_iter": "steps",
    "num_steps": "steps",
    "max_iter": "steps",
    "n_queries": "steps",
    "n_restarts": "restarts",
    "num_random_init": "restarts",
    "n_target_classes": "targets",
    "random_start": "start",
    "rand_init": "start",
    "decay": "momentum",
    "eot_iter": "eot",
    "attacks_to_run": "attacks",
    "bs": "batch_size",
    "clip_min": "low",
    "clip_max": "high",
}
_ELSEWHERE = {
    "rho": "gamma is relative; an absolute radius is ball=WeightBall(radius=rho, scope='global')",
    "mask": "it belongs to the ball: ball=WeightBall(gamma, mask=...), InputBall(..., mask=...)",
    "scope": "it belongs to the ball: ball=WeightBall(gamma, scope=...)",
    "size": "it belongs to the ball: ball=WeightBall(gamma, size=...)",
    "verbose": "an attack prints nothing",
    "log_path": "an attack prints nothing",
    "seed": "random numbers come from the key of the call",
    "device": "an attack runs where the weights lie",
    "n_classes": "it is seen in the logits",
    "targeted": "labels are the true ones: PGD, CW and APGD have targeted=True",
    "clip_min": "bounds belong to the ball: ball=InputBall(norm, epsilon, low, high)",
    "clip_max": "bounds belong to the ball: ball=InputBall(norm, epsilon, low, high)",
    "bounds": "they belong to the ball: ball=InputBall(norm, epsilon, low, high)",
    "loss_fn": "did you mean loss",
    "restart": "did you mean restarts",
}


def refuse(target: Callable[..., Any], given: Iterable[str]) -> None:
    """Raises ``TypeError`` for words of others that ``target`` has not, with what is meant here."""
    words = [word for word in given if word in _HERE or word in _ELSEWHERE]
    if not words:  # nearly always: reading a signature takes longer than making an attack
        return
    name, known = target.__name__.lstrip("_"), inspect.signature(target).parameters
    for word in words:
        if word in known:
            continue
        here, why = _HERE.get(word), _ELSEWHERE.get(word)
        if here in known:
            raise TypeError(f"{name} has no {word!r}: did you mean {here}?")
        if why is not None:
            raise TypeError(f"{name} has no {word!r}: {why}.")


class KnownNames:
    """A dataclass that tells what a name of another library is called here."""

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        """Raises ``TypeError`` for a name of another library; Python itself does for others."""
        refuse(cls, settings)
        return super().__new__(cls)


def known_names(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function`` with the same for its keyword arguments."""

    @functools.wraps(function)
    def checked(*args: _P.args, **settings: _P.kwargs) -> _R:
        refuse(function, settings)
        return function(*args, **settings)

    return checked
