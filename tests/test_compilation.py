"""What XLA is asked to do, and where it keeps what it has compiled."""

import os
import pathlib
import subprocess
import sys

import jaxlib
import pytest

from awp_jax.compilation import knows_cpu_flags, use_fast_convolutions

_ROOT = pathlib.Path(__file__).parents[1]
_CODE = """
import os
import jax, jax.numpy as jnp
from awp_jax.compilation import use_fast_convolutions
{call}
def convolve(x, k):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout)
compiled = jax.jit(convolve).lower(jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))).compile()
print("ynn" in compiled.as_text(), os.environ.get("XLA_FLAGS", ""))
"""


def compiled_with(call, flags=""):
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(call=call)],
        env=os.environ | {"PYTHONPATH": str(_ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    slow, _, found = done.stdout.strip().partition(" ")
    return slow == "True", found


@pytest.mark.skipif(not knows_cpu_flags(), reason="of jaxlib 0.10")
def test_convolutions_are_the_fast_ones_unless_the_user_has_chosen():
    # The first says when the work-around is no longer needed.
    assert compiled_with("")[0]
    slow, flags = compiled_with("use_fast_convolutions(); use_fast_convolutions()")
    assert not slow and flags.count("--") == 1
    own = "--xla_cpu_experimental_ynn_fusion_type=+LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    assert compiled_with("use_fast_convolutions()", own) == (True, own)


def test_other_releases_are_left_alone(monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", "0.99.0")
    assert not knows_cpu_flags()
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    use_fast_convolutions()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


_KEPT = """
import warnings
import jax, jax.numpy as jnp
import awp_jax
assert jax.config.jax_compilation_cache_dir is None  # the import alone does nothing
jax.jit(jnp.sin)(1.0).block_until_ready()  # as in a notebook, JAX has compiled before
from awp_jax.compilation import use_compilation_cache
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    use_compilation_cache()
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    value = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((8, 8)))[0, 0]
found = sum(event.endswith("/cache_hits") for event in events)
print(found, f"{value:.4f}", len(said), jax.config.jax_compilation_cache_dir)
"""


def start(home, **settings):
    """A process that compiles: ``(programs found, value, warnings, folder)``."""
    known = ("JAX_", "XLA_", "AWP_JAX_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(known)}
    own = {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", _KEPT],
        env=clean | own | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said_by(process):
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    found, value, warned, folder = out.split()
    assert value == "3.6372"  # 8 sin(1) cos(1)
    return int(found), int(warned), folder


def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    # Two at once: neither disturbs the other.
    both = [start(tmp_path), start(tmp_path)]
    folder = [said_by(process) for process in both][0][2]
    assert folder.startswith(str(tmp_path / "awp_jax" / "xla"))
    assert said_by(start(tmp_path))[:2] == (len(list(pathlib.Path(folder).glob("*-cache"))), 0)


def test_damaged_entries_cost_a_warning(tmp_path):
    _, _, folder = said_by(start(tmp_path))
    for entry in pathlib.Path(folder).glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:20])  # as a process leaves it that is killed
    found, warned, _ = said_by(start(tmp_path))
    assert found == 0 and warned > 0


def test_the_user_chooses_where_and_whether_compiled_programs_are_kept(tmp_path):
    no_home = tmp_path / "file"
    no_home.write_text("")
    assert said_by(start(no_home)) == (0, 1, "None")
    assert said_by(start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")) == (0, 0, "None")
    assert not (tmp_path / "awp_jax").exists()
