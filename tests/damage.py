"""Random damage to the bytes of a file; how much of it is tried."""

import os

# Files in all. Most are data sets: a checkpoint takes ten times as long.
FILES = int(os.environ.get("AWP_JAX_FUZZ", "10000"))
ROUNDS = FILES * 136 // 1000  # of each of seven formats
CHECKPOINT_ROUNDS = FILES * 16 // 1000  # of each of three formats


def damaged(data, random):
    """One truncation, a few flipped bits, a zeroed stretch or an inserted byte."""
    data = bytearray(data)
    # Half of the time near the start, where the headers are.
    size = min(len(data), 300) if random.rand() < 0.5 else len(data)
    position = random.randint(size)
    kind = random.randint(4)
    if kind == 0:
        del data[position:]
    elif kind == 1:
        for _ in range(random.randint(1, 4)):
            data[random.randint(size)] ^= 1 << random.randint(8)
    elif kind == 2:
        data[position : position + 8] = bytes([random.choice([0, 255])]) * 8
    else:
        data.insert(position, random.randint(256))
    return bytes(data)
