"""Where PyTorch is missing, what compares with it is left out."""

import importlib.util

files = ["test_robust.py", "test_robust_step.py"]
collect_ignore = [] if importlib.util.find_spec("torch") else files
