"""The small run, and what is left out where PyTorch is missing."""

import importlib.util

import pytest
import small_run

# Where PyTorch is missing, what compares with it is left out.
collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else ["test_alignment.py", "test_batches.py", "test_options.py", "test_recipes.py"]
)


@pytest.fixture
def tiny_config():
    """A function that makes a small config; see ``small_run``."""
    return small_run.tiny_config
