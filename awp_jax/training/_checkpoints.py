"""Checkpoints: the last and the best state of a run, checked when they are read back."""

import errno
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_leaves_with_path

from awp_jax import parallel
from awp_jax.files import StorageError, checksum
from awp_jax.training._quiet import quiet_orbax, quiet_tasks
from awp_jax.training._state import digest

LAST, BEST, KEPT, AVERAGE = "last", "best", "kept", "average"
KINDS = (LAST, BEST, KEPT, AVERAGE)
_CHECKSUM = "info_crc32"
# Fields of the state that checkpoints before them have not.
_LATER = ("class_means", "loss_scale", "delta")


class CheckpointError(ValueError):
    """A checkpoint is missing or cannot be used; the message is one sentence that says why."""


class Checkpoints:
    """The checkpoints of one run directory, through Orbax.

    ``last`` keeps the two newest, ``best`` the one that selection picked, ``kept`` all that
    ``checkpoint.keep_every_epochs`` asks for, ``average`` the newest average of the weights, with
    BatchNorm statistics of its own. Every checkpoint carries a digest of all its bits beside the
    arrays, and a checksum of what is beside them, because Orbax restores flipped bytes silently.

    Args:
        directory: Where they lie, ``<workdir>/checkpoints``.
        read_only: Never creates, moves or deletes anything.
    """

    def __init__(self, directory: str | pathlib.Path, *, read_only: bool = False) -> None:
        self._directory = pathlib.Path(directory).absolute()
        self._read_only = read_only
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._saved = False  # in the background, where errors come late
        quiet_tasks()

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        if kind not in self._managers:
            keep = {LAST: 2, BEST: 1, KEPT: None, AVERAGE: 1}[kind]
            options = ocp.CheckpointManagerOptions(
                create=not self._read_only,
                read_only=self._read_only,
                max_to_keep=None if self._read_only else keep,
                enable_async_checkpointing=not self._read_only,
            )
            self._managers[kind] = ocp.CheckpointManager(
                self._directory / kind, options=options, item_names=("state", "info")
            )
        return self._managers[kind]

    @quiet_orbax()
    def steps(self, kind: str) -> list[int]:
        """Steps of which there is a checkpoint, newest first."""
        if not (self._directory / kind).is_dir():
            return []
        return sorted(self._manager(kind).all_steps(), reverse=True)

    @quiet_orbax()
    def save(self, kind: str, state: Any, info: dict[str, Any]) -> None:
        """Begins to save ``state`` and ``info``; writing goes on in the background.

        Args:
            kind: Of ``KINDS``.
            state: A ``TrainState``.
            info: Plain values for JSON.

        Raises:
            StorageError: When it, or an earlier one, could not be written (a full disk, say).
            CheckpointError: When Orbax refuses.
        """
        step = int(state.step)
        try:
            for other, unfinished in self._managers.items():
                # Orbax's barriers between processes bear the same names in every manager.
                if other != kind:
                    unfinished.wait_until_finished()
            manager = self._manager(kind)
            manager.check_for_errors()
            info = {**info, "digest": int(digest(state))}
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(_written(state)),
                info=ocp.args.JsonSave({**info, _CHECKSUM: checksum(info)}),
            )
            saved = manager.save(step, args=args, force=True)
        except Exception as error:
            late = ", or the one before it," if self._saved else ""
            raise StorageError(
                f"Saving the checkpoint of step {step}{late} failed ({_reason(error)}); "
                "earlier checkpoints are untouched."
            ) from error
        self._saved = True
        if not saved:
            raise CheckpointError(
                f"Orbax refused to save the checkpoint of step {step} in {self._directory / kind}."
            )

    @quiet_orbax()
    def info(self, kind: str, step: int) -> dict[str, Any] | None:
        """What lies beside the arrays of a checkpoint; ``None`` where that is damaged."""
        args = ocp.args.Composite(info=ocp.args.JsonRestore())
        try:
            found = dict(self._manager(kind).restore(step, args=args)["info"])
        except Exception:  # as in restore
            return None
        return found if found.pop(_CHECKSUM, None) in (None, checksum(found)) else None

    @quiet_orbax()
    def restore(
        self,
        kind: str,
        like: Any,
        *,
        step: int | None = None,
        report: Callable[[str], None] = print,
    ) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint that is whole.

        A damaged one is reported, and the one before it is taken; ``discard_after`` moves it aside.

        Args:
            kind: Of ``KINDS``.
            like: A ``TrainState`` of arrays or ``jax.ShapeDtypeStruct``.
            step: This one and no other; ``None`` for the newest.
            report: Gets one sentence per damaged checkpoint.

        Returns:
            ``(state, info)``.

        Raises:
            CheckpointError: When there is none, or none is whole, or they hold another
                architecture.
        """
        steps = [s for s in self.steps(kind) if step is None or s == step]
        if not steps and step is not None:
            raise CheckpointError(f"No {kind} checkpoint of step {step} in {self._directory}.")
        if not steps:
            raise CheckpointError(
                f"No {kind} checkpoint in {self._directory}: was the run trained, or is the "
                "directory another?"
            )
        problems = []
        for one in steps:
            try:
                return self._restore_step(kind, one, like)
            except Exception as error:  # Orbax raises at least seven types for damaged files
                if other := self._other_network(kind, one, like):
                    raise CheckpointError(other) from None
                problem = f"The {kind} checkpoint of step {one} is damaged ({_first_line(error)})"
            problems.append(problem)
            if step is not None:
                raise CheckpointError(f"{problem}.")
            others = "the one before it is used" if one != steps[-1] else "no other is there"
            report(f"{problem}; {others}.")
        raise CheckpointError(f"{problems[0]}, and no other {kind} checkpoint is whole.")

    def _other_network(self, kind: str, step: int, like: Any) -> str:
        """A sentence where a whole checkpoint is of other parameters than ``like``; else empty."""
        try:
            saved = self._manager(kind).item_metadata(step)["state"]
            kept = {
                keystr(path): tuple(leaf.shape)
                for path, leaf in tree_leaves_with_path(saved["params"])
            }
            now = {
                keystr(path): tuple(leaf.shape) for path, leaf in tree_leaves_with_path(like.params)
            }
        except Exception:  # damaged, or no TrainState
            return ""
        differ = [name for name in [*kept, *now] if kept.get(name) != now.get(name)]
        if not differ:
            return ""
        name = differ[0]
        return (
            f"The {kind} checkpoint of step {step} in {self._directory} is of another network: "
            f"params{name} has shape {kept.get(name, 'none')} there and {now.get(name, 'none')} "
            "here. Was the model's code changed since the run was trained?"
        )

    def _restore_step(self, kind: str, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf)),
            like,
        )
        manager = self._manager(kind)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(_written(abstract)), info=ocp.args.JsonRestore()
        )
        restored = manager.restore(step, args=args)
        state, info = like._replace(**restored["state"]), dict(restored["info"])
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            if leaf.shape != wanted.shape:
                raise CheckpointError(f"an array has shape {leaf.shape}, not {wanted.shape}")
        if int(digest(state)) != info.get("digest"):
            raise CheckpointError("its digest does not match its contents")
        if info.pop(_CHECKSUM, None) not in (None, checksum(info)):  # earlier versions had none
            raise CheckpointError("its checksum does not match what is beside the arrays")
        return state, info

    @quiet_orbax()
    def discard_after(self, step: int) -> None:
        """Moves aside what is newer than ``step``: damaged ones, or of a run that is redone.

        Orbax would refuse to save an earlier step while they are there. Of several processes all
        must call this; the first moves them.
        """
        newer = [(kind, s) for kind in KINDS for s in self.steps(kind) if s > step]
        for kind in {kind for kind, _ in newer}:
            self._managers.pop(kind).close()
        parallel.main_says(True)  # now all have looked,
        for kind, s in newer if parallel.is_main() else ():
            target = self._directory / f"damaged-{kind}-{s}"
            shutil.rmtree(target, ignore_errors=True)
            (self._directory / kind / str(s)).rename(target)
        parallel.main_says(True)  # and from now on they are gone

    @quiet_orbax()
    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            StorageError: When writing in the background has failed.
        """
        for kind, manager in self._managers.items():
            try:
                manager.wait_until_finished()
                manager.check_for_errors()
            except Exception as error:
                raise StorageError(
                    f"Writing a {kind} checkpoint failed ({_reason(error)}); earlier checkpoints "
                    "are untouched."
                ) from error

    @quiet_orbax()
    def close(self) -> None:
        """Waits, then releases Orbax's threads."""
        try:
            self.wait()
        finally:
            for manager in self._managers.values():
                manager.close()
            self._managers.clear()


def _written(state: Any) -> dict[str, Any]:
    """What Orbax is given: it tells an empty field from none, and older checkpoints have none."""
    fields = state._asdict()
    return {
        name: held for name, held in fields.items() if name not in _LATER or jax.tree.leaves(held)
    }


def _sharding(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    return sharding if sharding is not None else jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _reason(error: Exception) -> str:
    """What the system said, which Orbax and TensorStore wrap in much else."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
    said = (os.strerror(code) for code in codes)
    return next((text for text in said if text in str(error)), _first_line(error))


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
