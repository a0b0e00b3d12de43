"""Without PyTorch the comparisons with it are left out."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("torch") else ["test_model_parity.py"]
