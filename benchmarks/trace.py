"""Counts the kernels that one training step runs on a GPU, and their time, from a profile.

    python benchmarks/trace.py --out=trace.json [--model=preact-resnet-18] [--batch=128]

AT-AWP, PGD-10, bfloat16: what ``plan.py`` says without a GPU. ``--quick`` takes a small network, on
any device; a CPU has no kernels to count.
"""

import argparse
import collections
import json
import pathlib
import tempfile

import jax
from training import AWP, Ours, config_of


def kernels(folder):
    """``{name: [runs, nanoseconds]}`` of what ran on the first GPU."""
    found = collections.defaultdict(lambda: [0, 0])
    for path in pathlib.Path(folder).rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:GPU:0"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    found[event.name][0] += 1
                    found[event.name][1] += event.duration_ns
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="preact-resnet-18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", default="trace.json")
    parser.add_argument("--quick", action="store_true", help="a small network")
    o = parser.parse_args()
    if o.quick:
        o.model, o.batch = "digits-resnet", 8
    shape = (8, 8, 1) if o.quick else (32, 32, 3)
    ours = Ours(config_of(o.model, o.batch, method=AWP, dtype="bfloat16", shape=shape), shape)
    ours.step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            ours.step()
        found = kernels(folder)
    rows = sorted(found.items(), key=lambda item: -item[1][1])
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "kernels": sum(runs for runs, _ in found.values()),
        "milliseconds": sum(time for _, time in found.values()) / 1e6,
        "longest": [[name, runs, round(time / 1e6, 3)] for name, (runs, time) in rows[:40]],
    }
    pathlib.Path(o.out).write_text(json.dumps(result, indent=1) + "\n")
    print({name: value for name, value in result.items() if name != "longest"})


if __name__ == "__main__":
    main()
