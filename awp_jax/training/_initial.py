"""Where training starts: fresh parameters, or those of another run."""

import pathlib
import sys
from typing import Any

import jax

from awp_jax.config import from_dict
from awp_jax.training._checkpoints import BEST
from awp_jax.training._experiment import Experiment, build
from awp_jax.training._records import WorkdirError, read_config
from awp_jax.training._restore import restore
from awp_jax.training._state import TrainState

# Kernel and bias of the classifying layer, of which another number of classes has others.
_MOST_FRESH = 2


def check_start(workdir: str) -> None:
    """Raises ``ValueError`` where there is no run to start from: before anything is written."""
    try:
        read_config(pathlib.Path(workdir))
    except WorkdirError as error:
        raise ValueError(
            f"init_from is {workdir}, but a run to start from was expected there: {error}"
        ) from None


def initial_state(experiment: Experiment) -> TrainState:
    """The state before the first step: fresh, or of the run that ``init_from`` names.

    Args:
        experiment: What a config stands for.

    Returns:
        The state, on every device of the experiment's mesh.

    Raises:
        ValueError: In one sentence, when the run of ``init_from`` cannot be used.
    """
    state, config = experiment.init(), experiment.config
    if not config.init_from:
        return state
    start = start_from(state, config.init_from, config.init_checkpoint)
    return jax.device_put(start, experiment.places)


def start_from(state: TrainState, workdir: str, which: str = BEST) -> TrainState:
    """A fresh state with the parameters and statistics of another run's checkpoint.

    For fine-tuning (the Pre-training row of AWP, NeurIPS 2020, Table 2; Hendrycks et al., ICML
    2019): what does not fit, because there are other classes, stays fresh, and a line on stderr
    says so. Step and optimiser start anew.

    Args:
        state: Fresh.
        workdir: The other run's directory, also an imported one.
        which: ``"best"``, ``"last"`` or ``"average"``.

    Returns:
        The state.

    Raises:
        ValueError: In one sentence, when there is no such run, its checkpoint is damaged, or it
            holds another architecture.
    """
    path = pathlib.Path(workdir)
    found = restored(path, build(from_dict(read_config(path))), which)
    params, fresh = _fitting(state.params, found.params)
    batch_stats, others = _fitting(state.batch_stats, found.batch_stats)
    # Statistics have no class in them: any that differ mean another architecture.
    if others or len(fresh) > _MOST_FRESH:
        wrong = (others + fresh)[0]
        raise ValueError(
            f"init_from is {workdir}, whose model is another: {wrong} differs in more than the "
            "number of classes."
        )
    if fresh:
        print(f"Not taken from {workdir}, but fresh: {', '.join(fresh)}.", file=sys.stderr)
    # Copies: the step donates the state, and no buffer can be donated twice.
    average = jax.tree.map(lambda leaf: leaf.copy(), params) if state.average else state.average
    return state._replace(params=params, batch_stats=batch_stats, average=average)


def restored(path: pathlib.Path, experiment: Experiment, which: str) -> TrainState:
    """A checkpoint of another run; what was passed over is told on stderr."""
    return restore(path, experiment, which, lambda text: print(text, file=sys.stderr))[0]


def _fitting(fresh: Any, found: Any) -> tuple[Any, list[str]]:
    """``fresh`` with what ``found`` has in the same place and shape, and the names of the rest."""
    there = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(found)}
    left = []

    def take(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        other = there.get(name)
        if other is None or other.shape != leaf.shape:
            left.append(".".join(str(entry.key) for entry in path))
            return leaf
        return other

    taken = jax.tree_util.tree_map_with_path(take, fresh)
    return taken, left
