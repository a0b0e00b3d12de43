"""Without PyTorch the comparisons with it are left out."""

import importlib.util

files = [
    "test_imagenet_models.py",
    "test_model_parity.py",
    "test_published.py",
    "test_real_models.py",
]
collect_ignore = [] if importlib.util.find_spec("torch") else files
