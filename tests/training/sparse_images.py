"""Trains a few steps with a 5-GB file of extra images, and prints the peak of its memory.

``python sparse_images.py FOLDER`` prints one JSON object: bytes of the file, bytes of memory (the
peak before the file is opened, and in all), the number of extra images and the last loss. The file
is as numpy.savez writes it, but for a hole where its images are: zeros that take no room.
"""

import json
import pathlib
import re
import sys
import zipfile

import absl.logging
import numpy as np
from small_run import tiny_config

from awp_jax import data, training

# An optional copy of metrics.jsonl, whose import takes memory of its own.
sys.modules["tensorboardX"] = None  # type: ignore[assignment]

COUNT = 1_750_000
SHAPE = (32, 32, 3)


def write(path, count):
    """``image`` uint8 [count, 32, 32, 3], zeros but for the last one, and ``label``."""
    size, stream = count * int(np.prod(SHAPE)), path.open("w+b")
    info = zipfile.ZipInfo("image.npy")
    info.CRC = info.header_offset = 0  # never checked: nothing reads the images whole
    with stream:
        stream.write(info.FileHeader(zip64=True))
        start = stream.tell()
        description = {"descr": "|u1", "fortran_order": False, "shape": (count, *SHAPE)}
        np.lib.format.write_array_header_1_0(stream, description)
        stream.seek(stream.tell() + size - int(np.prod(SHAPE)))
        stream.write(b"\xff" * int(np.prod(SHAPE)))
        info.file_size = info.compress_size = stream.tell() - start
        stream.seek(0)
        stream.write(info.FileHeader(zip64=True))
        stream.seek(0, 2)
        # Behind what is no zip file yet: the directory at its end gets both.
        with zipfile.ZipFile(stream, "a") as archive:
            archive.filelist.append(info)
            with archive.open("label.npy", "w") as file:
                np.lib.format.write_array(file, np.arange(count) % 10)


def peak():
    """Of this process, also where the system tells what the one that started it had needed."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def splits():
    """Noise, as uint8."""
    random = np.random.default_rng(0)
    parts = [
        data.Dataset(random.integers(0, 256, (n, *SHAPE), np.uint8), np.arange(n) % 10, 10, "noise")
        for n in (64, 32)
    ]
    return data.Splits(train=parts[0], validation=None, test=parts[1])


def main(folder):
    """Writes the file, trains, and says what it took."""
    path = folder / "generated.npz"
    write(path, COUNT)
    config = tiny_config("linear", width=None)
    config.data.update(extra=str(path), original_fraction=0.25, validation_examples=0)
    config.evaluation.update(selection="test", train_examples=0, every_epochs=9)
    config.epochs = 4
    before = peak()
    outcome = training.train(config, folder / "run", splits=splits(), progress=None)
    records = [r for r in training.read_metrics(folder / "run") if r["kind"] == "train"]
    found = {
        "file": path.stat().st_size,
        "before": before,
        "peak": peak(),
        "steps": int(outcome.state.step),
        "loss": records[-1]["loss"],
        "last": int(data.open_images(path)[np.array([COUNT - 1], np.int32)].min()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    absl.logging.set_verbosity(absl.logging.ERROR)
    main(pathlib.Path(sys.argv[1]))
