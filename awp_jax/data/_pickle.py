"""A reader for pickles that hold only plain containers, text, numbers and numpy arrays.

CIFAR's Python version is a set of pickles, and a pickle may run any code. Here no name in the file
is ever resolved: the few that stand for numpy arrays become the inert classes below, everything
else is refused, and arrays are then made from their raw bytes after their sizes were checked.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from awp_jax.data._dataset import DataError

_DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}


def read_pickle(data: bytes, path: Path) -> Any:
    """The object in a pickle of plain containers and integer arrays, without running any of it.

    Args:
        data: the pickle, of any protocol; Python 2's strings become bytes.
        path: named in messages.

    Raises:
        DataError: when the pickle is damaged or asks for anything but the above.
    """
    try:
        _check_opcodes(data)
        loaded = _InertUnpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{path} is no acceptable pickle: {error}.") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = f"{type(error).__name__}: {error}".strip().rstrip(".:").replace("\n", " ")
        raise DataError(f"{path} is a damaged pickle ({reason}).") from error
    return loaded


def to_array(value: Any) -> np.ndarray:
    """The integer array in what `read_pickle` returned: a list of ints or a pickled array.

    Raises:
        ValueError: when it is neither, or its sizes do not agree.
    """
    if isinstance(value, _Array):
        return value.to_numpy()
    if isinstance(value, list):
        if not all(type(item) is int for item in value):
            raise ValueError("it holds something else than integers")
        return np.array(value or [], np.int64)
    raise ValueError(f"a list or an array was expected, not {type(value).__name__.strip('_')}")


def _check_opcodes(data: bytes) -> None:
    # The C unpickler allocates what length prefixes and memo indices claim; pickletools reads the
    # same opcodes from what is really there.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"memo index {argument} after {count} operations")
        if opcode.name in ("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "INST"):
            raise pickle.UnpicklingError(f"operation {opcode.name} is not allowed")


class _Inert:
    """Keeps the arguments that a pickle gives, and does nothing with them."""

    arguments: tuple[Any, ...] = ()  # for objects that a pickle makes without __init__
    state: Any = None

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Ndarray(_Inert):
    pass


class _Encode(_Inert):
    """How Python 3 writes bytes in protocols 0 to 2: text with its encoding."""

    def __new__(cls, text: str, encoding: Any = "latin1") -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes in another encoding than latin1")
        return text.encode("latin1")


class _EmptyBytes(_Inert):
    """How protocols 0 to 2 write empty bytes: `bytes()`."""

    def __new__(cls) -> Any:
        return b""


class _Dtype(_Inert):
    def to_numpy(self) -> np.dtype:
        code = self.arguments[0] if self.arguments else None
        code = code.decode("ascii", "replace") if isinstance(code, bytes) else code
        if code not in _DTYPES:
            raise ValueError(f"an integer array was expected, not one of type {code!r}")
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        return np.dtype(code).newbyteorder(">" if order in (">", b">") else "<")


class _Array(_Inert):
    """`_reconstruct(ndarray, (0,), b"b")` with its state (version, shape, dtype, fortran, raw)."""

    def _parts(self) -> tuple[Any, Any, Any, Any]:
        if not isinstance(self.state, tuple) or len(self.state) not in (4, 5):
            raise ValueError("the array has no content")
        shape, dtype, fortran, raw = self.state[-4:]
        return shape, dtype, "F" if fortran else "C", raw

    def to_numpy(self) -> np.ndarray:
        shape, dtype, order, raw = self._parts()
        if not isinstance(dtype, _Dtype):
            raise ValueError("the array has no type")
        element = dtype.to_numpy()
        if not isinstance(raw, bytes | bytearray):
            raise ValueError("the array is not made of raw bytes")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("the array has no shape")
        if math.prod(shape) * element.itemsize != len(raw):
            raise ValueError(f"shape {shape} of {element.name} does not fit {len(raw)} bytes")
        return np.frombuffer(bytes(raw), element).reshape(shape, order=order)


class _Buffer(_Array):
    """Protocol 5: `_frombuffer(raw, dtype, shape, order)`."""

    def _parts(self) -> tuple[Any, Any, Any, Any]:
        # Newer numpy adds the order of the axes, which is None for contiguous arrays.
        if len(self.arguments) not in (4, 5) or self.arguments[4:] not in ((), (None,)):
            raise ValueError("the array is not contiguous")
        raw, dtype, shape, order = self.arguments[:4]
        return shape, dtype, "F" if order in ("F", b"F") else "C", raw


_ALLOWED: dict[tuple[str, str], type[_Inert]] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    ("__builtin__", "bytes"): _EmptyBytes,
    # numpy 1 and 2 name the same function differently.
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]
