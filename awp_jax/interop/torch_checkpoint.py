"""Checkpoints of the released PyTorch models, in and out."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from awp_jax.interop import files
from awp_jax.interop.errors import CheckpointError, OtherArchitectureError
from awp_jax.interop.state_dict import (
    as_released,
    from_torch_layout,
    leaves,
    nested,
    to_state_dict,
    to_torch_layout,
    torch_key,
)
from awp_jax.models.classifier import Classifier, ImageShape, Tree
from awp_jax.models.registry import create

_MEAN_NAMES = ("mean", "mu", "_mean", "new_mean")
# Counters and settings that PyTorch's definitions store, and this library has no use for.
_UNREAD = (
    "num_batches_tracked",
    "flag_update_statistics",
    "batch_num",
    *(
        f".{sparse}.{name}"
        for sparse in ("act.0", "drop_path.1")
        for name in ("momentum", "epsilon")
    ),
)
_STD_NAMES = ("std", "sigma", "_std", "new_std")


def load_torch(
    path: str | os.PathLike[str],
    model: str | Classifier,
    *,
    image_shape: ImageShape = (32, 32, 3),
    num_classes: int = 10,
    rename: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[Tree, Tree]:
    """Reads the checkpoint of a PyTorch model.

    Understands the checkpoints released with AWP, TRADES, MART, RST and those of RobustBench:
    prefixes that wrappers put before every name (``module.``, ``model.``, ``1.``, ...) are
    stripped, nested ``state_dict``, ``model`` and ``net`` are opened, the dead ``sub_block1`` of
    some wide ResNets and BatchNorm's ``num_batches_tracked`` are left out. Nothing in the file is
    executed: PyTorch files are read with ``weights_only=True``.

    Args:
        path: ``.safetensors``, an index of several (``.safetensors.index.json``) or their folder,
            a PyTorch file (``.pt``, ``.pth``, ...), or one of these at the Hugging Face hub:
            ``"hf://owner/name[@revision][/file]"``, from its cache where that has it.
        model: the classifier it is for, or the name of one.
        image_shape: height, width, channels; only for a name.
        num_classes: number of logits; only for a name.
        rename: names of modules (or of tensors) in the file, and what the released models call
            them: ``{"fc": "linear"}``.
        **options: options of ``awp_jax.models.create``; only for a name.

    Returns:
        ``(params, batch_stats)`` as the classifier takes them: float32, except that float64
        tensors stay so where JAX has 64-bit types enabled.

    Raises:
        CheckpointError: when the file is missing or damaged, is not a state dict, needs a package
            that is not installed, or holds other tensors than the model's: missing, unknown, of
            another shape, not floating or not finite; for a name in ``rename`` that the file has
            not.

    Warns:
        UserWarning: when the checkpoint carries a mean or standard deviation of its images other
            than the model's; see ``normalisation``.
    """
    classifier = _classifier(model, image_shape, num_classes, options)
    path = files.place(path)
    state = as_released(classifier.name, _renamed(path, files.read(path), rename or {}))
    params_like, stats_like = jax.eval_shape(classifier.init, jax.random.key(0))
    expected, found = _paired(classifier, (params_like, stats_like), state)
    if not expected.keys() & found.keys():
        raise CheckpointError(
            f"{path} holds no tensor of {classifier.name}: it has {_few(list(found))}, where "
            f"{_few(list(expected))} were expected."
        )
    _check_shapes(path, classifier, expected, found)
    missing = [name for name in expected if name not in found]
    extra = _extra(found, expected)
    unknown = [name for name in extra if _normalisation(name) is None]
    if missing:
        has = f", and has {_few(unknown)}" if unknown else ""
        raise CheckpointError(
            f"{path} lacks {_few(missing)} of {classifier.name}{has}."
            + _proposal(missing, unknown, expected, found)
        )
    _compare_normalisation(path, classifier, found, extra)
    if unknown:
        raise CheckpointError(f"{path} has {_few(unknown)}, which {classifier.name} has not.")

    def rebuild(tree: Tree) -> Tree:
        flat = {}
        for leaf_path, _ in leaves(tree):
            name = torch_key(classifier.name, leaf_path)
            value = from_torch_layout(_checked(path, name, found[name]))
            flat[leaf_path] = jnp.asarray(value)
        return nested(flat)

    return rebuild(params_like), rebuild(stats_like)


def normalisation(
    path: str | os.PathLike[str],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and standard deviation of images that a checkpoint carries, as many do.

    Args:
        path: As in ``load_torch``.

    Returns:
        ``(mean, std)``, one value per channel, or one for all; ``None`` where the file has none.

    Raises:
        CheckpointError: As ``load_torch`` does; when the file has several, or only one of the two.
    """
    path = files.place(path)
    found: dict[str, set[tuple[float, ...]]] = {"mean": set(), "std": set()}
    for name, value in files.read(path).items():
        what = _normalisation(name)
        if what is not None:
            found[what].add(tuple(float(v) for v in np.asarray(value, np.float64).ravel()))
    if not found["mean"] and not found["std"]:
        return None
    if len(found["mean"]) != 1 or len(found["std"]) != 1:
        counts = f"{len(found['mean'])} means and {len(found['std'])} standard deviations"
        raise CheckpointError(f"{path} holds {counts} of images, but one of each was expected.")
    return found["mean"].pop(), found["std"].pop()


def save_torch(
    path: str | os.PathLike[str], classifier: Classifier, params: Tree, batch_stats: Tree
) -> None:
    """Writes parameters and BatchNorm statistics as the PyTorch model's state dict.

    The file appears at once, or not at all. It loads into the released models with a strict
    ``load_state_dict``, and back here bit for bit.

    Args:
        path: ends in ``.pt``, ``.pth`` or ``.safetensors``; folders are made. Or an address
            ``"hf://owner/name[/file]"``, by default of a file ``model.safetensors``.
        classifier: the model.
        params: as its ``init`` returns them.
        batch_stats: as its ``init`` returns them.

    Raises:
        CheckpointError: for another suffix, parameters of another model, or when the package for
            the format is not installed; for a randomised model.
    """
    if classifier.is_random:
        raise CheckpointError(
            f"{classifier.name} draws its kernels at every pass: no released PyTorch model takes "
            "its tensors."
        )
    like = jax.eval_shape(classifier.init, jax.random.key(0))
    wanted = {leaf_path: leaf.shape for tree in like for leaf_path, leaf in leaves(tree)}
    given = {
        leaf_path: np.shape(leaf)
        for tree in (params, batch_stats)
        for leaf_path, leaf in leaves(tree)
    }
    if wanted != given:
        odd = [
            "/".join(leaf_path)
            for leaf_path in wanted.keys() | given.keys()
            if wanted.get(leaf_path) != given.get(leaf_path)
        ]
        raise CheckpointError(f"{_few(sorted(odd))} do not fit {classifier.name}.")
    files.write(files.place(path), to_state_dict(classifier, params, batch_stats))


def _classifier(
    model: str | Classifier, image_shape: ImageShape, num_classes: int, options: dict[str, Any]
) -> Classifier:
    if isinstance(model, str):
        return create(model, image_shape=image_shape, num_classes=num_classes, **options)
    if options:
        raise ValueError(f"{_few(list(options))} can only be given with the name of a model.")
    return model


def _prefix(state: Iterable[str], expected: Iterable[str]) -> str:
    """What wrappers put before every name: the prefix under which most of ``expected`` is found."""
    names = set(state)
    expected = list(expected)
    candidates = {""} | {
        name.removesuffix(wanted)
        for wanted in expected
        for name in names
        if name.endswith(f".{wanted}")
    }
    return max(
        sorted(candidates, key=len),
        key=lambda prefix: sum(prefix + name in names for name in expected),
    )


def _renamed(
    path: Any, state: dict[str, np.ndarray], rename: Mapping[str, str]
) -> dict[str, np.ndarray]:
    for old, new in rename.items():
        pattern = re.compile(rf"(^|\.){re.escape(old)}(?=\.|$)")
        if not any(map(pattern.search, state)):
            raise CheckpointError(f"{path} has nothing called {old}: it has {_few(list(state))}.")
        state = {pattern.sub(rf"\g<1>{new}", name): value for name, value in state.items()}
    return state


def _proposal(missing: list[str], unknown: list[str], expected: Any, found: Any) -> str:
    """A renaming that would pair what is missing with what is there, nearest names first."""
    pairs: dict[str, str] = {}
    for name in missing:
        module, _, leaf = name.rpartition(".")
        shape = _torch_shape(expected[name])
        fitting = [u for u in unknown if u.endswith(f".{leaf}") and found[u].shape == shape]
        nearest = difflib.get_close_matches(name, fitting, n=1, cutoff=0.0)
        if module and nearest:
            pairs.setdefault(nearest[0].rpartition(".")[0], module)
    shown = ",".join(f"{old}:{new}" for old, new in list(pairs.items())[:3])
    return f" If they are the same, rename: --rename={shown}." if pairs else ""


def _check_shapes(path: Any, classifier: Classifier, expected: Any, found: Any) -> None:
    for name, like in expected.items():
        if name not in found:
            continue
        shape = _torch_shape(like)
        if found[name].shape != shape:
            raise OtherArchitectureError(
                f"{path} is of another architecture than {classifier.name}: {name} has shape "
                f"{found[name].shape}, not {shape}"
            )


def fitting(path: str | os.PathLike[str], classifiers: Iterable[Classifier]) -> Classifier | None:
    """The first classifier whose tensors a checkpoint holds, all of them in their shapes.

    Args:
        path: As in ``load_torch``.
        classifiers: What it may be of.
    """
    read = files.read(files.place(path))
    for classifier in classifiers:
        trees = jax.eval_shape(classifier.init, jax.random.key(0))
        expected, found = _paired(classifier, trees, as_released(classifier.name, read))
        unknown = [name for name in _extra(found, expected) if _normalisation(name) is None]
        shapes = {name: value.shape for name, value in found.items()}
        if {name: _torch_shape(like) for name, like in expected.items()}.items() <= shapes.items():
            if not unknown:
                return classifier
    return None


def _paired(
    classifier: Classifier, trees: Iterable[Tree], state: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is expected by PyTorch's names, and what is there without what wrappers put before."""
    expected = {
        torch_key(classifier.name, leaf_path): like
        for tree in trees
        for leaf_path, like in leaves(tree)
    }
    prefix = _prefix(state, expected)
    return expected, {name.removeprefix(prefix): value for name, value in state.items()}


def _torch_shape(like: Any) -> tuple[int, ...]:
    return to_torch_layout(np.empty(like.shape, np.bool_)).shape


def _extra(found: Iterable[str], expected: Any) -> list[str]:
    return [
        name
        for name in found
        if name not in expected and not name.endswith(_UNREAD) and "sub_block1." not in name
    ]


def _normalisation(name: str) -> str | None:
    last = name.rsplit(".", 1)[-1]
    if last in _MEAN_NAMES:
        return "mean"
    return "std" if last in _STD_NAMES else None


def _compare_normalisation(
    path: Any, classifier: Classifier, found: dict[str, np.ndarray], extra: list[str]
) -> None:
    for name in extra:
        what = _normalisation(name)
        if what is None:
            continue
        channels = classifier.image_shape[-1]
        identity = (0.0 if what == "mean" else 1.0,)
        theirs = np.asarray(found[name], np.float64).ravel()
        ours = np.asarray(getattr(classifier, what) or identity)
        if theirs.size not in (1, channels) or not np.allclose(theirs, ours, atol=1e-5):
            values = ", ".join(f"{value:.4g}" for value in theirs[:channels])
            warnings.warn(
                f"{path} normalises images with {what} ({values}), and {classifier.name} was made "
                f"with {what}={getattr(classifier, what)}.",
                stacklevel=3,
            )


def _checked(path: Any, name: str, value: np.ndarray) -> np.ndarray:
    if not np.issubdtype(value.dtype, np.floating):
        raise CheckpointError(f"{name} in {path} is {value.dtype}, not floating.")
    if value.dtype != np.float64:
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise CheckpointError(f"{name} in {path} holds values that are not finite.")
    if name.endswith("running_var") and (value < 0).any():
        raise CheckpointError(f"{name} in {path} holds negative variances.")
    return value


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
