"""Reads the text of a compiled program of XLA: its computations, and what their lines hold."""

import math
import re

import numpy as np

SIZES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "s64": 8, "u64": 8, "s32": 4, "u32": 4}
SIZES |= {"s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1}
_SHAPE = re.compile(rf"\b({'|'.join(SIZES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)")


def computations(text):
    """The lines of every computation of a HLO module by name; the entry is ``"ENTRY"``."""
    found, name = {}, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
        if head and not line.startswith(" "):
            name = "ENTRY" if head[1] else head[2]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def bytes_of(shapes):
    """Bytes of all arrays whose types stand in a text."""
    total = 0
    for dtype, dimensions in _SHAPE.findall(shapes):
        size = SIZES[dtype]
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size
    return total


def instruction(line):
    """``(name, type, operation, names of the operands)`` of a line, or ``None``."""
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    name, kind, operation, rest = found.groups()
    return name, kind, operation, re.findall(r"%([\w.\-]+)", rest.split("), ")[0])


def inner(line):
    """Computations that a line runs, each with how often: the body of a loop, or what it calls."""
    loop = re.search(r" while\(.*body=%?([\w.\-]+)", line)
    if loop:
        turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        return [(loop[1], int(turns[1]) if turns else 1)]
    branches = re.search(r"branch_computations=\{([^}]*)\}", line)
    if branches:
        return [(name.strip().lstrip("%"), 1) for name in branches[1].split(",")]
    if re.search(r" (?:call|conditional)\(", line):
        return [(name, 1) for name in _CALLED.findall(line)]
    return []


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def _arranged(sizes, dimensions, turned):
    ids = np.arange(math.prod(sizes))
    if dimensions:
        ids = ids.reshape(_numbers(dimensions))
    return ids.transpose(_numbers(turned)) if turned else ids


def group(line, devices):
    """Which devices, by number, a collective's first group has; all where the line names none."""
    mesh = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[(.*?)\](?:T\((.*?)\))?\))? \{(.*?)\}",
        line,
    )
    if mesh:
        axes, dimensions, turned, over = mesh.groups()
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", axes), strict=True)
        if ":" in over:
            raise ValueError(f"Parts of an axis are not read: {over}.")
        ids = _arranged([int(s) for s in sizes], dimensions, turned).reshape(
            [int(s) for s in sizes]
        )
        chosen = re.findall(r"'(\w+)'", over)
        return sorted(ids[tuple(slice(None) if n in chosen else 0 for n in names)].ravel().tolist())
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return sorted(_numbers(listed[1]))
    counted = re.search(r"replica_groups=\[(.*?)\]<=\[(.*?)\](?:T\((.*?)\))?", line)
    if counted:
        sizes, dimensions, turned = counted.groups()
        return sorted(
            _arranged(_numbers(sizes), dimensions, turned).reshape(_numbers(sizes))[0].tolist()
        )
    return list(range(devices))
