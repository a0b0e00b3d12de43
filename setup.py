"""Puts the configs, which lie beside the library in a clone, into it where it is built.

Everything else is in setup.cfg. Not by `package_dir`: an editable installation would then be an
import hook that editors and type checkers cannot follow.
"""

import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # they are found where they lie
            return
        target = pathlib.Path(self.build_lib) / "awp_jax" / "configs"
        self.mkpath(str(target))
        for source in sorted(pathlib.Path("configs").glob("*.py")):
            self.copy_file(str(source), str(target / source.name))


setup(cmdclass={"build_py": BuildWithConfigs})
