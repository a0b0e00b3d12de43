"""What all results share: a short ``repr``, one way to be saved, axes to be drawn on."""

import functools
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from awp_jax import checks
from awp_jax.extras import needed_by
from awp_jax.files import write_arrays, write_json

# Lines of a repr: what fits below the cell of a notebook.
MOST_LINES = 15
_MOST_CHARACTERS = 100
# What stands among a run's attacks and is none: the accuracy under common corruptions.
CORRUPTIONS = "corruptions"


def short(value: Any) -> str:
    """A value in one short line: of an array its type, shape and range.

    The range is looked at only where there are numbers: under ``jit`` there are none, nor on the
    devices of other processes.

    Args:
        value: Anything, such as a leaf of a result.

    Returns:
        Text without line breaks, of at most about 100 characters.

    Example:
        >>> import numpy as np
        >>> from awp_jax.results import short
        >>> short(np.array([0.25, 1.5], np.float32)), short(np.array([True, False, True]))
        ('float32[2] in [0.25, 1.5]', 'bool[3], 2 true')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, dict):
        kind = f"{type(value).__name__} of {len(value)}: " if len(value) > 3 else ""
        return _one_line(kind + ", ".join(f"{k}: {short(v)}" for k, v in list(value.items())[:3]))
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        if any(hasattr(one, "shape") for one in value):
            return _one_line(", ".join(map(short, value[:3])))
        return _one_line(repr(value[:8])[:-1] + (", ..." if len(value) > 8 else "")) + (
            "]" if isinstance(value, list) else ")"
        )
    return _one_line(repr(value))


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def _array(value: Any) -> str:
    kind = f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if not _at_hand(value):
        return kind
    numbers = np.asarray(value)
    if numbers.ndim == 0:
        return f"{numbers.item():.6g}" if numbers.dtype.kind == "f" else str(numbers.item())
    if numbers.dtype == bool:
        return f"{kind}, {int(numbers.sum())} true"
    if numbers.dtype.kind not in "iuf" or not numbers.size:
        return kind
    # bfloat16 and other types of JAX have no range of NumPy's own.
    numbers = numbers[np.isfinite(numbers)]
    missing = "" if numbers.size == np.size(value) else ", not all finite"
    if not numbers.size:
        return f"{kind}, none finite"
    return f"{kind} in [{float(numbers.min()):.4g}, {float(numbers.max()):.4g}]{missing}"


def _at_hand(value: Any) -> bool:
    """Whether the numbers of an array can be read: it is no tracer, no shape, and lies here."""
    if isinstance(value, np.ndarray | np.generic):
        return True
    if not isinstance(value, jax.Array) or not checks.is_concrete(value):
        return False
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return False
    return not value.is_deleted() and value.is_fully_addressable


def described(name: str, fields: Mapping[str, Any], head: str = "") -> str:
    """The ``repr`` of a result: its name, what it comes to, and a line for each field.

    Args:
        name: Of the type.
        fields: By name; those that are ``None`` are left out.
        head: What it comes to, in a few words.

    Returns:
        At most ``MOST_LINES`` lines.
    """
    lines = [f"{name}({head})"]
    lines += [f"  {field}: {short(value)}" for field, value in fields.items() if value is not None]
    return cut("\n".join(lines))


def cut(text: str, more: str = "") -> str:
    """The first ``MOST_LINES`` lines; the last of them says how many were left out.

    Args:
        text: Any.
        more: How to see all of it, such as ``"print(found.table())"``.
    """
    lines = text.splitlines()
    if len(lines) <= MOST_LINES:
        return text
    left_out = len(lines) - MOST_LINES + 1
    hint = f": {more}" if more else ""
    return "\n".join([*lines[: MOST_LINES - 1], f"... and {left_out} more lines{hint}"])


def percent(mask: Any) -> str:
    """The share of a bool array that is true, with the counts; empty where it is not known."""
    if not hasattr(mask, "shape") or not _at_hand(mask) or not np.size(mask):
        return ""
    count, size = int(np.sum(np.asarray(mask))), np.size(mask)
    return f"{count} of {size} ({count / size:.1%})"


def save_arrays(path: Any, result: Any) -> None:
    """Writes a result of arrays: one compressed ``.npz`` file, read by ``numpy.load``.

    Args:
        path: Ends in ``.npz``.
        result: A named tuple, or a mapping. Arrays and numbers have their field's name, leaves of a
            pytree ``FIELD/PATH``; all else is in ``json``, an object as text.

    Raises:
        ValueError: For another ending.
        StorageError: When it cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from awp_jax.attacks import AttackResult
        >>> from awp_jax.results import save_arrays
        >>> found = AttackResult(np.zeros((2, 4, 4, 1)), np.array([True, False]), np.ones(2))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "found.npz"
        >>> save_arrays(path, found)
        >>> np.load(path)["success"].tolist()
        [True, False]
    """
    fields = result._asdict() if hasattr(result, "_asdict") else dict(result)
    _check_ending(path, ".npz", "arrays")
    arrays: dict[str, Any] = {}
    words: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        leaves = jax.tree_util.tree_leaves_with_path(value)
        if all(_is_number(leaf) for _, leaf in leaves) and leaves:
            for where, leaf in leaves:
                path_in = "/".join(_step(entry) for entry in where)
                arrays[f"{name}/{path_in}" if path_in else name] = np.asarray(leaf)
        else:
            words[name] = value
    if words:
        arrays["json"] = json.dumps(words, default=_plain)
    write_arrays(path, arrays, compressed=True)


def save_plain(path: Any, values: Any) -> None:
    """Writes a result of plain values as JSON.

    Args:
        path: Ends in ``.json``.
        values: What JSON takes.

    Raises:
        ValueError: For another ending.
        StorageError: When it cannot be written.
    """
    _check_ending(path, ".json", "plain values")
    write_json(path, values)


def _check_ending(path: Any, ending: str, what: str) -> None:
    if pathlib.Path(path).suffix != ending:
        raise ValueError(
            f"path is {str(path)!r}, but this result holds {what}: a name that ends in {ending} "
            "was expected."
        )


def _is_number(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or (isinstance(leaf, int | float) and not isinstance(leaf, bool))


def _step(entry: Any) -> str:
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def axes_or_new(axes: Any = None, columns: int = 1, width: float = 4.8) -> Any:
    """Axes to draw on.

    Args:
        axes: Matplotlib axes, which are handed back; of several columns a sequence of as many.
            ``None`` for those of a new figure, which no window shows.
        columns: How many side by side.
        width: Of each, in inches.

    Returns:
        The axes; of several columns an array ``[columns]`` of them.

    Raises:
        MissingExtraError: Where matplotlib is not installed.
        ValueError: For another number of axes.
    """
    if axes is None:
        return new_figure(columns * width, 3.6).subplots(1, columns)
    if columns == 1:
        if not hasattr(axes, "plot"):
            raise ValueError(f"axes is a {type(axes).__name__}, but matplotlib axes were expected.")
        return axes
    many = np.asarray(axes, dtype=object).reshape(-1)
    if len(many) != columns:
        raise ValueError(
            f"axes are {len(many)}, but {columns} matplotlib axes were expected: as of "
            f"figure.subplots(1, {columns})."
        )
    return many


def new_figure(width: float, height: float) -> Any:
    """A new figure, in inches, which no window shows.

    Raises:
        MissingExtraError: Where matplotlib is not installed.
    """
    with needed_by("Drawing"):
        return _figure_class()(figsize=(width, height), layout="constrained")


@functools.cache
def _figure_class() -> Any:
    from matplotlib.figure import Figure  # slow to import: only where something is drawn

    def _repr_png_(self: Any) -> bytes:
        # Notebooks show only figures of pyplot by themselves, once pyplot has made one.
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()

    return type("Figure", (Figure,), {"__doc__": Figure.__doc__, "_repr_png_": _repr_png_})
