"""Runs the README's examples of AWP where nothing but the core is installed.

The argument is the clone, for the README and its reader; the library comes from the environment.
"""

import importlib.util
import pathlib
import sys

clone = pathlib.Path(sys.argv[1])
sys.path.append(str(clone / "tests"))

import reader  # noqa: E402

import awp_jax  # noqa: E402

assert clone not in pathlib.Path(awp_jax.__file__).parents, awp_jax.__file__
there = [name for name in awp_jax.extras.BROUGHT_BY if importlib.util.find_spec(name)]
assert there == ["absl"], f"{there} are installed with the core"  # optax brings it
assert (pathlib.Path(awp_jax.__file__).parent / "py.typed").is_file()

page: dict = {}
exec(reader.READER, page)
for block in reader.python_blocks((clone / "README.md").read_text())[:2]:  # AWP, both ways
    exec(block, page)
new, _ = page["step"](page["params"], page["state"], page["images"], page["labels"])
assert (new["kernel"] != page["params"]["kernel"]).any()
