"""State dicts in ``.pt``, ``.pth`` and ``.safetensors`` files, as numpy arrays by name."""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from awp_jax.extras import needed_by
from awp_jax.files import read_json, write_bytes
from awp_jax.interop import hub
from awp_jax.interop.errors import CheckpointError

SAFETENSORS = ".safetensors"
INDEX = ".safetensors.index.json"
TORCH = (".pt", ".pth")
_SHARD = re.compile(r"(.+)-\d+-of-(\d+)\.safetensors")
# How PyTorch's files begin: a zip archive, or before version 1.6 a pickle of protocol 2.
_BEGINNINGS = (b"PK", b"\x80")
# Under these keys training scripts put the state dict, beside the epoch and the accuracy.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
# The types of safetensors; PyTorch calls these three bfloat16, float8_e4m3fn and float8_e5m2.
_NOT_OF_NUMPY = {
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
_DTYPES: dict[str, Any] = _NOT_OF_NUMPY | {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{
        f"{kind}{bits}": np.dtype(f"<{kind.lower()}{bits // 8}")
        for kind in "IU"
        for bits in (8, 16, 32, 64)
    },
    "BOOL": np.bool_,
}


def place(path: str | os.PathLike[str]) -> str | pathlib.Path:
    """A path as it is given out in messages: an address of the hub as it is, or a ``Path``."""
    return str(path) if hub.is_address(path) else pathlib.Path(path)


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors in the file at ``path``, unwrapped, by name.

    Args:
        path: ``.safetensors``; an index of several, ``...safetensors.index.json``, or the folder
            that it or a ``model.safetensors`` lies in; a PyTorch file; or an address
            ``hf://owner/name[@revision][/file]`` of one of these.

    Raises:
        CheckpointError: when the file is missing, damaged, holds anything but tensors, or needs
            PyTorch, which is not installed.
        MissingExtraError: for a .safetensors file where that package is not installed.
    """
    _check_whole(path)
    if isinstance(path, str):
        address, found = path, hub.fetch(path)
        if found.name.endswith(INDEX):
            return _read_sharded(found, lambda name: hub.fetch_beside(address, name))
        return read(found)
    if path.is_dir():
        inside = [path / name for name in hub.WEIGHTS if (path / name).is_file()]
        if not inside:
            raise CheckpointError(f"{path} is a folder with no {' or '.join(hub.WEIGHTS)}.")
        path = inside[0]
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    if path.name.endswith(INDEX):
        return _read_sharded(path, path.with_name)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    return _read_torch(path)


def _check_whole(path: str | pathlib.Path) -> None:
    """Raises ``CheckpointError`` for one of the several files that an index names."""
    shard = _SHARD.fullmatch(pathlib.PurePath(path).name)
    if shard and int(shard[2]) > 1:
        raise CheckpointError(
            f"{path} is one of {int(shard[2])} files that hold the weights together: give their "
            f"index, {shard[1]}{INDEX}, or the folder that it lies in."
        )


def _read_sharded(
    index: pathlib.Path, shard_of: Callable[[str], pathlib.Path]
) -> dict[str, np.ndarray]:
    """The tensors that an index names, out of the files beside it, one after the other."""
    content = read_json(index, CheckpointError)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise CheckpointError(f"{index} is no index: it has no weight_map of tensors to files.")
    state: dict[str, np.ndarray] = {}
    for file in dict.fromkeys(names.values()):
        if pathlib.PurePath(file).name != file or not file.endswith(SAFETENSORS):
            raise CheckpointError(
                f"{index} names the file {file!r}, but a .safetensors file beside it was expected."
            )
        shard = shard_of(file)
        if not shard.is_file():
            raise CheckpointError(f"{index} names {file}, which is not there.")
        held = _read_safetensors(shard)
        for name in (name for name, place in names.items() if place == file):
            if name not in held:
                raise CheckpointError(f"{shard} lacks {name}, which {index.name} says it holds.")
            state[name] = held[name]
    return state


def write(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes ``state`` to ``path`` at once: readers see the old file or the new one, never half.

    Args:
        path: A file, or an address ``hf://owner/name[/file]``.
        state: Arrays by name.

    Raises:
        CheckpointError: for a suffix other than .pt, .pth and .safetensors, or when PyTorch is
            needed and not installed.
        MissingExtraError: for a .safetensors file where that package is not installed.
        StorageError: when it cannot be written.
    """
    suffix = pathlib.PurePath(hub.file_of(path) if isinstance(path, str) else path).suffix
    if suffix == SAFETENSORS:
        content = _safetensors().numpy.save(dict(state))
    elif suffix in TORCH:
        torch = _torch()
        buffer = io.BytesIO()
        torch.save({name: torch.tensor(value) for name, value in state.items()}, buffer)
        content = buffer.getvalue()
    else:
        raise CheckpointError(
            f"The suffix of {path} must be .pt, .pth or .safetensors, not {suffix!r}."
        )
    if isinstance(path, str):
        hub.push(path, content)
    else:
        write_bytes(path, content)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            "Reading and writing .pt and .pth files needs PyTorch: pip install torch, or use "
            ".safetensors."
        ) from None
    return torch


def _safetensors() -> Any:
    with needed_by("Reading and writing .safetensors files"):
        import safetensors
        import safetensors.numpy
    return safetensors


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors()
    try:
        return {name: _array(**entry) for name, entry in safetensors.deserialize(path.read_bytes())}
    except Exception as error:  # its SafetensorError, or KeyError for an unknown dtype
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}).") from error


def _array(dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    """A tensor of a safetensors file; in float32 where numpy has no such type."""
    array = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    return array.astype(np.float32) if dtype in _NOT_OF_NUMPY else array


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        begins = file.read(2)
    if begins and not begins.startswith(_BEGINNINGS):
        raise CheckpointError(
            f"{path} is no PyTorch file: it begins with {begins!r}, where a zip archive or a "
            "pickle was expected."
        )
    torch = _torch()
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors, and is refused because loading them "
                "could run any code: save the state dict alone, where you trust the file by "
                f"torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], "
                "'weights.pt'), with the key that its weights are under."
            ) from error
        raise CheckpointError(f"{path} is damaged, or not a PyTorch file.") from error
    except Exception as error:  # damage brings out struct.error, TypeError, MemoryError, ...
        raise CheckpointError(f"{path} is damaged, or not a PyTorch file.") from error

    state = _unwrap(content, path, torch.is_tensor)
    arrays = {}
    for name, tensor in state.items():
        if str(tensor.dtype) in ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2"):
            tensor = tensor.float()  # numpy has none of them
        try:
            arrays[name] = tensor.detach().cpu().numpy()
        except (RuntimeError, TypeError) as error:  # sparse or quantised
            raise CheckpointError(f"{path}: {name} is no dense tensor ({error}).") from error
    return arrays


def _numpy_scalars() -> list[Any]:
    """What pickles an accuracy kept as a numpy number: harmless, and common."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
        np.dtype,
        *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")),
    ]


def _unwrap(content: Any, path: pathlib.Path, is_tensor: Any) -> dict[str, Any]:
    """The dict of tensors in ``content``, out of what a training script wrapped around it."""
    for _ in range(10):  # a pickle can hold itself
        if not isinstance(content, Mapping):
            break
        if any(is_tensor(value) for value in content.values()):
            for name, value in content.items():
                if not is_tensor(value) or not isinstance(name, str):
                    raise CheckpointError(
                        f"{path} is not a state dict: its entry {name!r} is a "
                        f"{type(value).__name__}, not a tensor."
                    )
            return dict(content)
        inner = [name for name in WRAPPERS if name in content][:1] or [
            name for name, value in content.items() if _holds_tensors(value, is_tensor)
        ]
        if len(inner) > 1:
            raise CheckpointError(
                f"{path} holds several state dicts, {', '.join(map(repr, inner))}: save one alone."
            )
        if not inner:
            found = ", ".join(map(repr, list(content)[:5])) or "nothing"
            raise CheckpointError(f"{path} is not a state dict: it holds {found}.")
        content = content[inner[0]]
    raise CheckpointError(f"{path} is not a state dict: it holds a {type(content).__name__}.")


def _holds_tensors(content: Any, is_tensor: Any, depth: int = 5) -> bool:
    """Whether tensors lie under names in ``content``; an optimiser's lie under numbers."""
    if not isinstance(content, Mapping) or not depth:
        return False
    return any(
        isinstance(name, str) and (is_tensor(value) or _holds_tensors(value, is_tensor, depth - 1))
        for name, value in content.items()
    )
