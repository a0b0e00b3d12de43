"""State dicts in ``.pt``, ``.pth`` and ``.safetensors`` files, as numpy arrays by name."""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from awp_jax.extras import needed_by
from awp_jax.files import write_bytes

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth")
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


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not belong to the model."""


class OtherArchitectureError(CheckpointError):
    """A checkpoint whose tensors have other shapes than the model's.

    Attributes:
        problem: What differs, without a full stop, for a sentence that goes on with advice.
    """

    def __init__(self, problem: str):
        super().__init__(f"{problem}.")
        self.problem = problem


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors in the file at ``path``, unwrapped, by name.

    Raises:
        CheckpointError: when the file is missing, damaged, holds anything but tensors, or needs
            PyTorch, which is not installed.
        MissingExtraError: for a .safetensors file where that package is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    return _read_torch(path)


def write(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes ``state`` to ``path`` at once: readers see the old file or the new one, never half.

    Raises:
        CheckpointError: for a suffix other than .pt, .pth and .safetensors, or when PyTorch is
            needed and not installed.
        MissingExtraError: for a .safetensors file where that package is not installed.
        StorageError: when it cannot be written.
    """
    if path.suffix == SAFETENSORS:
        content = _safetensors().numpy.save(dict(state))
    elif path.suffix in TORCH:
        torch = _torch()
        buffer = io.BytesIO()
        torch.save({name: torch.tensor(value) for name, value in state.items()}, buffer)
        content = buffer.getvalue()
    else:
        raise CheckpointError(
            f"The suffix of {path} must be .pt, .pth or .safetensors, not {path.suffix!r}."
        )
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
    torch = _torch()
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors, and is refused because loading them "
                "could run any code: save the state dict alone."
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
