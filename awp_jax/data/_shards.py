"""Tar shards as webdataset writes them, read by the place of each image and not in a row."""

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from awp_jax.data._dataset import DataError
from awp_jax.data._encoded import ByteRanges
from awp_jax.data._files import reading
from awp_jax.data._folders import EXTENSIONS

_MOST_LABEL_BYTES = 1 << 20
_BLOCK = 512  # of a tar archive; one of zeros ends it


class _Sample(NamedTuple):
    """What one key stands for: where its image lies, and its label; -1 for what is not there."""

    name: str = ""
    offset: int = -1
    size: int = -1
    label: int = -1


def read_shards(shards: Sequence[Path]) -> tuple[ByteRanges, np.ndarray]:
    """The images of tar archives that are not compressed; their headers and labels are read.

    An image `KEY.jpg` (or another of these formats) has its label, an integer from 0, in `KEY.cls`
    as text, or in `KEY.json` as `{"label": 3}`. Other members are left alone.

    Args:
        shards: in their order, in one folder.

    Returns:
        The images in the order of the members, and labels int32 `[n]`.

    Raises:
        DataError: for a shard that is cut off, compressed or empty, or an image without a label.
    """
    samples: list[_Sample] = []
    file: list[int] = []
    for number, shard in enumerate(shards):
        found = _index(shard)
        samples += found
        file += [number] * len(found)
    ranges = ByteRanges(
        shards[0].parent,
        np.array([os.fsencode(shard.name) for shard in shards]),
        np.array(file, np.int32),
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.size for sample in samples], np.int64),
        np.array([os.fsencode(sample.name) for sample in samples]),
    )
    return ranges, np.array([sample.label for sample in samples], np.int32)


def _index(shard: Path) -> list[_Sample]:
    found: dict[str, _Sample] = {}
    with reading(shard), shard.open("rb") as file:
        try:
            archive = tarfile.open(fileobj=file, mode="r:")
        except tarfile.ReadError:
            raise DataError(
                f"{shard} is no tar archive that is not compressed: such a shard was expected."
            ) from None
        with archive:
            for member in archive:
                if member.isreg():
                    _add(found, shard, archive, member)
                # Else all headers stay in memory.
                archive.members = []  # type: ignore[attr-defined]
            end = archive.offset
        if os.fstat(file.fileno()).st_size < end + _BLOCK:
            raise DataError(f"{shard} is cut off: the end of the archive is missing.")
    for key, sample in found.items():
        if sample.offset < 0 or sample.label < 0:
            what = "label (.cls or .json)" if sample.label < 0 else "image"
            raise DataError(f"{shard}: {key} has no {what}.")
    if not found:
        raise DataError(f"{shard} holds no image.")
    return list(found.values())


def _add(
    found: dict[str, _Sample], shard: Path, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> None:
    # As webdataset: the key ends at the first point of the last part of the name.
    place, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    key, extension = f"{place}/{stem}".lstrip("./"), f".{extension.lower()}"
    sample = found.get(key, _Sample())
    if extension in EXTENSIONS:
        if sample.offset >= 0:
            raise DataError(f"{shard}: {key} has two images, {sample.name} and {member.name}.")
        sample = sample._replace(name=member.name, offset=member.offset_data, size=member.size)
    elif extension in (".cls", ".json"):
        content = archive.extractfile(member)
        text = b"" if content is None else content.read(_MOST_LABEL_BYTES)
        label = _label(text, extension == ".json")
        if label is None and extension == ".json":
            return  # of what else there is to say of an image
        if label is None:
            raise DataError(
                f"{shard}: the label in {member.name} is {text[:20].decode(errors='replace')!r}, "
                "but an integer from 0 was expected."
            )
        sample = sample._replace(label=label)
    else:
        return
    found[key] = sample


def _label(text: bytes, is_json: bool) -> int | None:
    """The label that is written, or None where there is no such thing."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if is_json:
        value = value.get("label") if isinstance(value, dict) else None
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**31 else None
