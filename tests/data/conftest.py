"""Real data for these tests."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def cifar10_dir(data_root, tmp_path_factory):
    """The folder cifar-10-batches-py with the original pickles, restored where need be."""
    source = data_root / "cifar10"
    for folder in (source / "cifar-10-batches-py", source):
        if (folder / "test_batch").is_file():
            return folder
    restore = data_root / "restore.py"
    if not restore.is_file() or not source.is_dir():
        pytest.skip(f"no CIFAR-10 in {source}")
    out = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(restore), "--out", str(out)], check=True)
    return out / "cifar-10-batches-py"
