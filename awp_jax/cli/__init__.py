"""The command line: ``awp-jax train | evaluate | diagnose | ...``, see ``awp-jax --help``."""

import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from awp_jax.extras import MissingExtraError, needed_by, require

# By task, one sentence and one module per command; the module is imported when the command is
# called, so that help comes at once.
_TASKS = {
    "train": {
        "describe": "show what a config stands for, without training",
        "train": "train a model from a config, or go on where it was stopped",
        "pseudo-label": "label images by a run's model, to train with them as well",
    },
    "judge": {
        "evaluate": "measure clean and robust accuracy of a run's checkpoints",
        "diagnose": "tell robustness from gradients that mislead attacks",
    },
    "look": {
        "report": "print the table and draw the learning curves of runs",
        "landscape": "draw the adversarial loss along directions in weight space",
        "flatness": "measure how flat the loss is around a run's weights",
    },
    "exchange with PyTorch": {
        "import": "make a run directory of a checkpoint",
        "export": "write a run's model as a state dict",
    },
    "this installation": {
        "doctor": "print versions, devices, data and a self-test, for bug reports",
        "completion": "print what makes bash, zsh or fish complete commands and flags",
    },
}
# By name, what it does.
COMMANDS = {name: text for task in _TASKS.values() for name, text in task.items()}
# Long work that ends with a figure: what draws it had better be there from the start.
_DRAWING = ("diagnose", "flatness", "landscape", "report")
# How warnings of JAX's compilation cache begin.
_CACHE_FAILS = ("Error reading persistent", "Error writing persistent")


def _usage() -> str:
    lines = [
        "usage: awp-jax COMMAND [--flags]",
        "",
        "Adversarial training with adversarial weight perturbation, in JAX.",
    ]
    for task, commands in _TASKS.items():
        lines += ["", f"{task}:", *(f"  {name:<12} {text}" for name, text in commands.items())]
    return "\n".join([*lines, "", "'awp-jax COMMAND --help' explains one command."])


def _plain_warnings() -> None:
    """Warnings of this library go out as one plain line, each once."""
    warnings.simplefilter("always", UserWarning)
    shown: set[str] = set()
    ordinary = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):
        text = str(message)
        if category is not UserWarning:
            ordinary(message, category, filename, lineno, file, line)
        # A radius is read more than once on its way: "epsilon is 8, above 1", then 8.0.
        value = text.partition(" is ")[2].partition(",")[0].removesuffix(".0") or text
        # JAX says for every program that its entry is damaged, or that the disk is full.
        value = next((start for start in _CACHE_FAILS if text.startswith(start)), value)
        if category is UserWarning and value not in shown:
            shown.add(value)
            print(f"awp-jax: warning: {text}", file=sys.stderr)

    warnings.showwarning = show


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        Exit status: 0 done; 1 the work failed (a loss that is not finite, a full disk); 2 wrong
        use, bad input; 75 preempted, and the same command goes on; 76 another process of the run
        was lost.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("--help", "-h", "help"):
        _print(_usage())
        return 0 if argv else 2
    command, *rest = argv
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(
            f"awp-jax: unknown command {command!r}: {hint}'awp-jax --help' lists them.",
            file=sys.stderr,
        )
        return 2
    try:
        with needed_by(f"awp-jax {command}", "train"):
            run = main_of(command)
        if command in _DRAWING:
            require("matplotlib", f"awp-jax {command}")
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        return 2
    return _run(command, run, rest)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _reader_is_gone()


def _reader_is_gone() -> None:
    """Whoever reads has seen enough ("| head"): what is still in the buffer must go somewhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main_of(command: str) -> Callable[[Sequence[str]], int]:
    """What runs a command: its module is imported now."""
    return importlib.import_module(f"awp_jax.cli._{command.replace('-', '_')}").main


def _run(command: str, run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    import absl.logging
    import jax
    from absl import flags

    from awp_jax import parallel
    from awp_jax.cli._command import Help
    from awp_jax.cli._errors import UsageError
    from awp_jax.compilation import use_compilation_cache, use_fast_convolutions
    from awp_jax.files import StorageError
    from awp_jax.training import NonFiniteError

    use_fast_convolutions()
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax logs what it raises as well, at length
    try:
        with warnings.catch_warnings():
            _plain_warnings()
            use_compilation_cache()
            status = run(argv)
            sys.stdout.flush()
            return status
    except Help as text:
        _print(str(text))
        return 0
    except BrokenPipeError:
        _reader_is_gone()
        return parallel.leave(128 + 13)
    except KeyboardInterrupt as told:
        more = f"; {told}" if str(told) else "."
        print(f"awp-jax {command}: interrupted{more}", file=sys.stderr)
        return parallel.leave(130)
    except Exception as error:
        if parallel.lost_another(error):
            return parallel.leave(parallel.LOST)
        if isinstance(error, NonFiniteError | StorageError):
            status = 1
        elif isinstance(error, UsageError | ValueError | OSError | flags.Error | MissingExtraError):
            status = 2
        else:  # a mistake of this program
            if jax.distributed.is_initialized():
                traceback.print_exc()
                parallel.leave(1)
            raise
        print(f"awp-jax {command}: {error}", file=sys.stderr)
        return parallel.leave(status)
