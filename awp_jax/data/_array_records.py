"""Image files in array_record shards, as TensorFlow Datasets prepares them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awp_jax.data._dataset import DataError
from awp_jax.extras import needed_by

_AT_ONCE = 64  # records whose images are in memory while labels are looked up
# Kinds of fields of a protocol buffer: https://protobuf.dev/programming-guides/encoding/
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ArrayRecords:
    """Records that are a tf.train.Example with an encoded `image` and an integer `label`.

    Args:
        shards: of one split, in their order.

    Raises:
        DataError: when one cannot be opened, or is empty.
        MissingExtraError: without array_record.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = list(shards)
        self._readers: dict[int, Any] = {}
        counts = []
        for number in range(len(self._shards)):
            counts.append(int(self._call(number, lambda reader: reader.num_records())))
        self._ends = np.cumsum(counts)
        if not len(self):
            raise DataError(f"{self._shards[0]} holds no record.")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Open readers do not travel to other processes.
        return {**self.__dict__, "_readers": {}}

    def where(self, number: int) -> str:
        shard, place = self._place(number)
        return f"{self._shards[shard]}, record {place},"

    def read(self, number: int) -> bytes:
        shard, place = self._place(number)
        (record,) = self._call(shard, lambda reader: reader.read([place]))
        image, _ = self._parsed(record, number)
        return image

    def labels(self) -> np.ndarray:
        """Labels int32 `[n]`: all records are read once, and only their labels kept."""
        found = np.empty(len(self), np.int32)
        start = 0
        for shard, end in enumerate(self._ends.tolist()):
            first = start
            while start < end:
                stop = min(start + _AT_ONCE, end)
                some = range(start - first, stop - first)
                records = self._call(shard, lambda reader, some=some: reader.read(list(some)))
                for number, record in enumerate(records, start):
                    found[number] = self._parsed(record, number)[1]
                start = stop
        return found

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - (int(self._ends[shard - 1]) if shard else 0)

    def _call(self, shard: int, use: Any) -> Any:
        with needed_by("Reading array_record files", "grain"):
            from array_record.python.array_record_module import ArrayRecordReader
        path = self._shards[shard]
        try:
            if shard not in self._readers:
                with path.open("rb"):  # says what is wrong in the system's words
                    reader = ArrayRecordReader(os.fspath(path))
                if not reader.ok():
                    raise DataError(f"{path} is cut off, or no array_record file.")
                self._readers[shard] = reader
            return use(self._readers[shard])
        except DataError:
            raise
        except Exception as error:  # each of its own
            reason = getattr(error, "strerror", None) or str(error).split(";")[0].strip()
            raise DataError(f"{path} could not be read: {reason.rstrip('.')}.") from None

    def _parsed(self, record: bytes, number: int) -> tuple[bytes, int]:
        try:
            features = dict(_features(record))
            image, label = features[b"image"], features[b"label"]
            if isinstance(image, bytes) and isinstance(label, int):
                return image, label
        except (KeyError, IndexError, ValueError, UnicodeDecodeError):
            pass
        raise DataError(
            f"{self.where(number)} is no tf.train.Example with an encoded image and a label, as "
            "tensorflow-datasets writes them."
        )


def _features(example: bytes) -> Iterator[tuple[bytes, bytes | int]]:
    """Names and first values of an Example: Example.features, Features.feature, a map of Feature.

    https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/example.proto
    """
    for _, features in _fields(example):
        for _, entry in _fields(features):
            pair = dict(_fields(entry))
            for kind, values in _fields(pair[2]):
                found = next(_fields(values), (0, b""))[1]
                if kind == 3 and isinstance(found, bytes):  # packed Int64List
                    found, _ = _varint(found, 0)
                if kind in (1, 3):
                    yield pair[1], found


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protocol buffer."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind, value = tag & 7, None
        if kind == _VARINT:
            value, place = _varint(message, place)
        else:
            if kind == _BYTES:
                size, place = _varint(message, place)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}[kind]
            value, place = message[place : place + size], place + size
            if place > len(message):
                raise ValueError("cut off")
        yield tag >> 3, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = message[place]
        found, shift, place = found | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            # Negative numbers are written as of 64 bits.
            return found - (1 << 64) if found >> 63 else found, place
