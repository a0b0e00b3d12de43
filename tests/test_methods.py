"""docs/methods.md: every config key and every test that it names is there."""

import fnmatch
import pathlib
import re

from awp_jax import config as schema

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "methods.md").read_text()


def test_every_config_key_is_there():
    config = schema.default()
    groups = "|".join(key for key in config.keys() if hasattr(config[key], "keys"))
    named = set(re.findall(rf"\b((?:{groups})\.[a-z0-9_]+)", TEXT))
    assert len(named) > 30
    for name in sorted(named):
        group, _, key = name.partition(".")
        assert any(k == key or key.endswith("_") and k.startswith(key) for k in config[group]), name


def test_every_test_is_there():
    source = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and "test_" in line]
    assert len(rows) > 20
    for row in rows:
        file = None
        for words in re.findall(r"`([^`]*)`", row.rsplit("|", 2)[1]):
            path, _, name = words.partition("::")
            if path.endswith("/"):
                assert (ROOT / path).is_dir(), path
            elif path.endswith(".py"):
                file = path.rsplit("/", 1)[-1]
                assert file in source or (ROOT / path).is_file(), path
                assert "/" not in path or (ROOT / path).is_file(), path
            else:
                name = path
            if name:
                functions = re.findall(r"^def (test_\w+)", source[file], re.MULTILINE)
                assert fnmatch.filter(functions, name), f"{file}::{name}"
