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
