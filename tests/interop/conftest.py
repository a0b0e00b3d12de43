"""The PyTorch definitions of ``tests/models`` serve here too."""

import importlib.util
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "models"))

needed = ("torch", "safetensors")
files = ["test_torch_checkpoint.py", "test_damaged_checkpoints.py"]
collect_ignore = [] if all(map(importlib.util.find_spec, needed)) else files
