"""Which packages there are; everything else is in setup.cfg."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["awp_jax*"]), "awp_jax.configs"],
    # Beside the library in a clone, where readers look for them; inside it where it is installed.
    package_dir={"awp_jax.configs": "configs"},
)
